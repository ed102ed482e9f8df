"""Soft Dice: one minus the overlap of predicted and true regions, averaged over the classes.

    l = 1 - (1/C) Σ_c (Σ_n p_nc y_nc + smooth) / (½ Σ_n p_nc + ½ Σ_n y_nc + smooth),     p = softmax(z)

over the pixels n of one example. It lies in [0, 1): the negative overlap that some code bases minimize differs by the
constant, which matters where a weight is learned (see `jaxdiv.objectives.uncertainty_weighting`).

References:
    Milletari, Navab, Ahmadi (2016), V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation; `optax.losses.dice_loss`, which computes it once the arguments have one form.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses.segmentation.arguments import pixels


def dice(
    logits: Float[Array, "B *n C"], labels: Int[Array, "B *n"], *, smooth: Numeric = 1.0
) -> Float[Array, " B"]:
    """Per-example soft Dice loss.

    Args:
        logits: Scores [B, *pixels, C] of two classes at least.
        labels: Classes [B, *pixels].
        smooth: Added to both sides of each ratio, >= 0; 0 gives NaN for a class of which neither prediction nor
            truth has anything.

    Returns:
        The losses [B]; NaN for an example with a label outside [0, C).

    Raises:
        ValueError: If the logits are not floating, empty or of one class, the shapes do not fit, or `smooth` is
            negative.

    Example:
        >>> labels = jnp.array([[0, 1, 1, 0]])
        >>> dice(20.0 * jax.nn.one_hot(labels, 2), labels).round(4)
        Array([0.], dtype=float32)
    """
    checks.in_range("smooth", smooth, 0.0)
    scores, classes, valid = pixels(logits, labels)
    if scores.shape[-1] < 2:
        raise ValueError(f"logits must score two classes at least; got shape {jnp.shape(logits)}.")
    truth = jax.nn.one_hot(classes, scores.shape[-1], dtype=scores.dtype)
    return jnp.where(valid, optax.losses.dice_loss(scores, truth, smooth=smooth), jnp.nan)
