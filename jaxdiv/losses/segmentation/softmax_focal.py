"""Focal loss of a softmax: cross entropy that looks away from what is classified well.

    l = mean_n  -alpha_y (1 - p_y)^gamma log p_y,      p = softmax(z_n),  y = y_n

over the pixels n of one example; gamma = 0 is the cross entropy.

References:
    Lin, Goyal, Girshick, He, Dollar (2017), Focal Loss for Dense Object Detection, eqs. (4)-(5), there of a sigmoid
    (`optax.sigmoid_focal_loss`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses.segmentation.arguments import pixels


def softmax_focal(
    logits: Float[Array, "B *n C"],
    labels: Int[Array, "B *n"],
    *,
    gamma: Numeric = 2.0,
    alpha: Float[Array, " C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example focal loss, averaged over the pixels.

    Args:
        logits: Scores [B, *pixels, C]; without pixels it is the focal loss of a classifier.
        labels: Classes [B, *pixels].
        gamma: Focus, >= 0.
        alpha: Weights [C] of the classes; 1 by default.

    Returns:
        The losses [B]; NaN for an example with a label outside [0, C).

    Raises:
        ValueError: If the logits are not floating or empty, shapes do not fit, or `gamma` is negative.

    Note:
        With r the log-odds of all other classes against y, -log p_y = log(1 + e^r) and -log(1 - p_y) = log(1 + e^-r):
        no digits are lost near p_y = 1 or 0.

    Example:
        >>> round(float(softmax_focal(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
        0.1733
    """
    checks.in_range("gamma", gamma, 0.0)
    scores, classes, valid = pixels(logits, labels)
    truth = classes[..., None] == jnp.arange(scores.shape[-1])
    own = jnp.take_along_axis(scores, classes[..., None], axis=-1)[..., 0]
    odds = core.logsumexp(scores, axis=-1, where=~truth) - own
    # Without any other class the loss is 0; a finite number in its place keeps NaN out of the derivatives.
    alone = odds == -jnp.inf
    odds = jnp.where(alone, 0.0, odds)
    losses = jnp.where(alone, 0.0, jnp.exp(-gamma * jax.nn.softplus(-odds)) * jax.nn.softplus(odds))
    if alpha is not None:
        alpha = checks.floating("alpha", alpha).astype(scores.dtype)
        if alpha.shape != scores.shape[-1:]:
            raise ValueError(f"alpha must hold one weight per class, {scores.shape[-1:]}; got {alpha.shape}.")
        losses = losses * alpha[classes]
    return jnp.where(valid, jnp.mean(losses, axis=1), jnp.nan)
