"""StableMax: a softmax with a linear and a hyperbolic branch in place of the exponential.

    s(x) = x + 1 for x ≥ 0, 1/(1 - x) for x < 0,        StableMax(z)_i = s(z_i)/Σ_j s(z_j)

s is positive, continuous with its first derivative, and s(x) s(-x) = 1; log s(x) = sign(x) log(1 + abs(x)) with
derivative 1/(1 + abs(x)). Where softmax cross-entropy rounds to exactly 0, with a gradient of exactly 0, from
gaps of about 17 on in float32, this one goes on like a power. It is not invariant to a shift of the logits.

References:
    Prieto, Barsbey, Mediano, Birdal (2025), Grokking at the edge of numerical stability, sec. 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import checks
from jaxdiv.losses import arguments


def log_stablemax(logits: Float[Array, "*s"], axis: int = -1) -> Float[Array, "*s"]:
    """The logarithms of the StableMax probabilities.

    Args:
        logits: Scores of any shape; class ``-inf`` has probability zero.
        axis: The axis of the classes.

    Returns:
        Log probabilities in float32 or float64.

    Raises:
        ValueError: If the logits are integers or empty.

    Example:
        >>> log_stablemax(jnp.array([0.0, 2.0])).round(4)
        Array([-1.3863, -0.2877], dtype=float32)
    """
    logits = checks.floating("logits", logits)
    checks.not_empty("logits", logits)
    return jax.nn.log_softmax(_log_s(logits), axis)


def stablemax(logits: Float[Array, "*s"], axis: int = -1) -> Float[Array, "*s"]:
    """The StableMax probabilities.

    Args:
        logits: Scores of any shape; class ``-inf`` has probability zero.
        axis: The axis of the classes.

    Returns:
        Probabilities in float32 or float64.

    Raises:
        ValueError: If the logits are integers or empty.

    Example:
        >>> stablemax(jnp.array([0.0, 2.0]))
        Array([0.25, 0.75], dtype=float32)
    """
    return jnp.exp(log_stablemax(logits, axis))


def stablemax_cross_entropy(
    logits: Float[Array, "B C"],
    targets: Int[Array, " B"] | Float[Array, "B C"],
    *,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example cross-entropy of a StableMax.

    Args:
        logits: Scores [B, C]; class ``-inf`` has probability zero.
        targets: Integer labels [B] or distributions [B, C], taken as they are (not normalized).
        where: Classes to include, broadcast to [B, C]; the others have probability zero.

    Returns:
        The losses [B]. A label outside [0, C) gives NaN in its row; target mass on a class of probability zero
        gives +inf.

    Raises:
        ValueError: If the logits are integers or empty, or ranks or shapes do not fit.

    Note:
        Its gradients fade like a power of the gap, so that learning rates are larger than for a softmax.

    References:
        Prieto et al. (2025).

    Example:
        >>> stablemax_cross_entropy(jnp.array([[20.0, 0.0, 0.0]]), jnp.array([0])).round(4)
        Array([0.091], dtype=float32)
    """
    logits = arguments.class_logits("logits", logits)
    mask = arguments.mask(where, logits)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    log_p = log_stablemax(logits)
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        labels, valid = arguments.class_labels("targets", targets, logits)
        return jnp.where(valid, -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0], jnp.nan)
    targets = checks.floating("targets", targets)
    checks.same_shape(logits=logits, targets=targets)
    # A class without mass does not count, however improbable it is.
    return -jnp.sum(jnp.where(targets == 0, 0.0, targets * jnp.where(targets == 0, 0.0, log_p)), -1)


@jax.custom_jvp
def _log_s(x: Array) -> Array:
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


@_log_s.defjvp
def _log_s_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative at 0 is 1, which that of sign and abs would miss.
    return _log_s(*primals), tangents[0] / (1 + jnp.abs(primals[0]))
