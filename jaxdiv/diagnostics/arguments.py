"""The arguments that diagnostics of predictions share, checked and brought to one form."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core.types import Scalar
from jaxdiv.losses.arguments import class_labels


def example_weights(weights: Float[Array, " B"] | None, values: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Returns the weights [B]; ones if None.

    Raises:
        ValueError: If there is not one weight per row.
    """
    if weights is None:
        return jnp.ones(values.shape[0], values.dtype)
    weights = jnp.asarray(weights, values.dtype)
    if weights.shape != values.shape[:1]:
        raise ValueError(
            f"weights must hold one number per example, shape {values.shape[:1]}; got shape {weights.shape}."
        )
    return weights


def weighted(values: Float[Array, " B"], weights: Float[Array, " B"]) -> Float[Array, " B"]:
    """Values times normalized weights; rows of weight zero (padding) do not count, even NaN."""
    return jnp.where(weights > 0, weights * values, 0.0) / jnp.sum(weights)


def weighted_mean(values: Float[Array, " B"], weights: Float[Array, " B"] | None) -> Scalar:
    """The mean of per-example values."""
    return jnp.sum(weighted(values, example_weights(weights, values)))


def hit(logits: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """1 where the largest score is the label's, else 0; NaN for a NaN row or an invalid label.

    Raises:
        ValueError: If the labels are not integers of shape [B].
    """
    labels, in_range = class_labels("labels", labels, logits)
    valid = in_range & ~jnp.any(jnp.isnan(logits), axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
    return jnp.where(valid, correct, jnp.nan)
