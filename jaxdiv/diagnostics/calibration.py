"""Expected calibration error: how far confidence is from accuracy, over bins of confidence.

With c_i the confidence of example i, a_i whether it is right, and normalized weights w_i,

    ECE = sum_b | sum_{i in b} w_i (a_i - c_i) |

which needs no division by a bin's size, so empty bins are harmless. Equal-width bins are the intervals
((b-1)/M, b/M]; adaptive bins hold equal weight in order of confidence; classwise averages over classes k
the same sum for c_i = p_ik and a_i = [y_i = k]. Logits go in; probabilities p enter as ``log(p)``.

References:
    Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks, eq. (3).
    Nixon, Dusenberry, Zhang, Jerfel, Tran (2019), Measuring calibration in deep learning: adaptive
    (there thresholded per class) and static (classwise) calibration error.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core.types import Scalar
from jaxdiv.diagnostics import arguments
from jaxdiv.losses.arguments import class_logits


def ece(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    bins: int = 15,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Expected calibration error of the predicted class, equal-width bins.

    Args:
        logits: Scores [B, C].
        labels: True classes [B].
        bins: Number of bins M.
        weights: Weight of each example [B]; 0 is padding.

    Returns:
        The error, between 0 and 1; NaN if a row that counts is NaN or its label invalid.

    Raises:
        ValueError: If the logits are integers or empty, shapes do not fit or there is no bin.

    Example:
        >>> p = jnp.array([[0.9, 0.1], [0.9, 0.1]])
        >>> print(f"{ece(jnp.log(p), jnp.array([0, 1])):.4f}")
        0.4000
    """
    confidence, correct, weights = _top(logits, labels, bins, weights)
    return _binned_gap(correct - confidence, _equal_width(confidence, bins), weights, bins)


def adaptive_ece(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    bins: int = 15,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Expected calibration error of the predicted class, bins of equal weight.

    Args:
        logits: Scores [B, C].
        labels: True classes [B].
        bins: Number of bins M.
        weights: Weight of each example [B]; 0 is padding.

    Returns:
        The error, between 0 and 1.

    Raises:
        ValueError: If the logits are integers or empty, shapes do not fit or there is no bin.

    Note:
        An example belongs to the bin in which the middle of its weight lies; equal confidences
        keep the order of the batch.

    Example:
        >>> p = jnp.array([[0.9, 0.1], [0.6, 0.4]])
        >>> print(adaptive_ece(jnp.log(p), jnp.array([0, 1]), bins=2).round(4))
        0.35
    """
    confidence, correct, weights = _top(logits, labels, bins, weights)
    order = jnp.argsort(confidence)
    share = weights[order] / jnp.sum(weights)
    middle = jnp.cumsum(share) - share / 2
    index = jnp.clip(jnp.floor(middle * bins), 0, bins - 1).astype(jnp.int32)
    return _binned_gap((correct - confidence)[order], index, weights[order], bins)


def classwise_ece(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    bins: int = 15,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Calibration error of every class's probability, averaged over the classes, equal-width bins.

    Args:
        logits: Scores [B, C].
        labels: True classes [B].
        bins: Number of bins M.
        weights: Weight of each example [B]; 0 is padding.

    Returns:
        The error, between 0 and 1.

    Raises:
        ValueError: If the logits are integers or empty, shapes do not fit or there is no bin.

    Example:
        >>> p = jnp.array([[0.9, 0.1], [0.9, 0.1]])
        >>> print(f"{classwise_ece(jnp.log(p), jnp.array([0, 1])):.4f}")
        0.4000
    """
    _, correct, weights = _top(logits, labels, bins, weights)
    probability = jax.nn.softmax(class_logits("logits", logits))

    def of_class(k: Int[Array, ""], p: Float[Array, " B"]) -> Scalar:
        frequency = jnp.where(jnp.isnan(correct), jnp.nan, labels == k)
        return _binned_gap(frequency - p, _equal_width(p, bins), weights, bins)

    return jnp.mean(jax.vmap(of_class)(jnp.arange(probability.shape[1]), probability.T))


def _top(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    bins: int,
    weights: Float[Array, " B"] | None,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Confidence, correctness and weight of each predicted class."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    logits = class_logits("logits", logits)
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    return confidence, arguments.hit(logits, labels), arguments.example_weights(weights, confidence)


def _equal_width(confidence: Float[Array, " B"], bins: int) -> Int[Array, " B"]:
    """Index of the interval ((b-1)/M, b/M] that holds each confidence; 0 falls into the first."""
    return jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)


def _binned_gap(
    gap: Float[Array, " B"], index: Int[Array, " B"], weights: Float[Array, " B"], bins: int
) -> Scalar:
    """Sum over the bins of the absolute weighted gap."""
    # A NaN confidence has no defined bin; its gap makes any of them NaN.
    sums = jax.ops.segment_sum(arguments.weighted(gap, weights), index, bins, mode="clip")
    return jnp.sum(jnp.abs(sums))
