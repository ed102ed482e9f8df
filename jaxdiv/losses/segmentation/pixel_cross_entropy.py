"""Cross entropy of a softmax at every pixel, averaged over the pixels of one example.

References:
    `optax.softmax_cross_entropy_with_integer_labels`, which computes it once the arguments have one form.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdiv.losses.segmentation.arguments import pixels


def pixel_cross_entropy(logits: Float[Array, "B *n C"], labels: Int[Array, "B *n"]) -> Float[Array, " B"]:
    """Per-example mean cross entropy of the pixels.

    Args:
        logits: Scores [B, *pixels, C].
        labels: Classes [B, *pixels].

    Returns:
        The losses [B]; NaN for an example with a label outside [0, C).

    Raises:
        ValueError: If the logits are not floating or empty, or shapes do not fit.

    Example:
        >>> pixel_cross_entropy(jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 2, 2), jnp.int32)).round(4)
        Array([1.3863], dtype=float32)
    """
    scores, classes, valid = pixels(logits, labels)
    losses = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, classes), axis=1)
    return jnp.where(valid, losses, jnp.nan)
