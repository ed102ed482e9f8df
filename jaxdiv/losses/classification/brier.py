"""Brier score of a softmax against labels or distributions.

    B(y, p) = sum_k (p_k - y_k)^2,       p = softmax(z)

References:
    Brier (1950), Verification of forecasts expressed in terms of probability.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import checks
from jaxdiv.losses import arguments


def brier(
    logits: Float[Array, "B C"],
    targets: Int[Array, " B"] | Float[Array, "B C"],
    *,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example Brier score, between 0 and 2.

    Args:
        logits: Scores [B, C]; class ``-inf`` has probability zero.
        targets: Integer labels [B] or distributions [B, C].
        where: Classes to include, broadcast to [B, C]; the others have probability zero.

    Returns:
        The losses [B]. A label outside [0, C) gives NaN in its row.

    Raises:
        ValueError: If the logits are integers or empty, or ranks or shapes do not fit.

    Example:
        >>> brier(jnp.zeros((1, 4)), jnp.array([2]))
        Array([0.75], dtype=float32)
    """
    logits = arguments.class_logits("logits", logits)
    mask = arguments.mask(where, logits)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        labels, valid = arguments.class_labels("targets", targets, logits)
        targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        targets = jnp.where(valid[:, None], targets, jnp.nan)
    targets = checks.floating("targets", targets)
    checks.same_shape(logits=logits, targets=targets)
    return jnp.sum((jax.nn.softmax(logits) - targets) ** 2, axis=-1)
