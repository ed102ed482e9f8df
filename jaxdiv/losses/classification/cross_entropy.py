"""Cross-entropy of a softmax against labels or distributions.

    H(y, p) = -sum_k y_k log p_k,        p = softmax(z)

References:
    `optax.safe_softmax_cross_entropy` and `optax.softmax_cross_entropy_with_integer_labels`, which
    compute it once the arguments have one form.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import checks
from jaxdiv.losses import arguments


def cross_entropy(
    logits: Float[Array, "B C"],
    targets: Int[Array, " B"] | Float[Array, "B C"],
    *,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example cross-entropy.

    Args:
        logits: Scores [B, C]; class ``-inf`` has probability zero.
        targets: Integer labels [B] or distributions [B, C], taken as they are (not normalized).
        where: Classes to include, broadcast to [B, C]; the others have probability zero.

    Returns:
        The losses [B]. A label outside [0, C) gives NaN in its row; target mass on a class of
        probability zero gives +inf.

    Raises:
        ValueError: If the logits are integers or empty, or ranks or shapes do not fit.

    Example:
        >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
        Array([1.3863, 1.3863], dtype=float32)
    """
    logits = arguments.class_logits("logits", logits)
    mask = arguments.mask(where, logits)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        labels, valid = arguments.class_labels("targets", targets, logits)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(valid, losses, jnp.nan)
    targets = checks.floating("targets", targets)
    checks.same_shape(logits=logits, targets=targets)
    return optax.safe_softmax_cross_entropy(logits, targets)
