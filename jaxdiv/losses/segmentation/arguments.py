"""The arguments that segmentation losses share: scores [B, *pixels, C] and one class per pixel [B, *pixels]."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import checks


def pixels(
    logits: Float[Array, "B *n C"], labels: Int[Array, "B *n"]
) -> tuple[Float[Array, "B n C"], Int[Array, "B n"], Bool[Array, " B"]]:
    """Scores in float32 or wider and usable labels, pixels in one axis, and which examples had valid labels.

    Raises:
        ValueError: If the logits are not floating or have no class axis, are empty, or the labels are not integers
            of the same pixels.
    """
    logits, labels = checks.floating("logits", logits), checks.integers("labels", labels)
    if logits.ndim < 2:
        raise ValueError(f"logits must have a batch and a class axis; got shape {logits.shape}.")
    checks.not_empty("logits", logits)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must hold one integer per pixel of the logits {logits.shape}, shape {logits.shape[:-1]}; "
            f"got shape {labels.shape}."
        )
    batch, classes = logits.shape[0], logits.shape[-1]
    labels = labels.reshape(batch, -1)
    valid = (labels >= 0) & (labels < classes)
    return logits.reshape(batch, -1, classes), jnp.where(valid, labels, 0), jnp.all(valid, axis=1)
