"""Classification targets in one form: distributions over the classes.

A label outside ``0 .. C-1`` becomes a row of NaN, so that its example alone is spoiled and cannot pass for
one without loss.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks


def one_hot(labels: Int[Array, "*b"], num_classes: int, dtype: jnp.dtype) -> Float[Array, "*b C"]:
    """One-hot rows; NaN where a label is out of range."""
    valid = (labels >= 0) & (labels < num_classes)
    return jnp.where(valid[..., None], jax.nn.one_hot(labels, num_classes, dtype=dtype), jnp.nan)


def as_distributions(link: str, targets: Any, logits: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """Turns integer labels into one-hot rows of the logits' width, and passes distributions.

    Args:
        link: The asking link's name, for the message.
        targets: Labels [...] or distributions [..., C].
        logits: Give the shape and the dtype.

    Returns:
        Distributions in at least float32.

    Raises:
        ValueError: If the targets are neither, or of another shape.
    """
    if not hasattr(targets, "dtype"):
        raise ValueError(
            f"link {link} needs an array of labels or distributions as targets; got {type(targets).__name__}."
        )
    logits = checks.floating(f"link {link}: logits", logits)
    labels = jnp.issubdtype(targets.dtype, jnp.integer)
    expected = logits.shape[:-1] if labels else logits.shape
    if targets.shape != expected:
        raise ValueError(
            f"link {link}: {'labels' if labels else 'distributions'} must have shape {expected} for logits "
            f"of shape {logits.shape}; got {targets.shape}."
        )
    if labels:
        return one_hot(targets, logits.shape[-1], logits.dtype)
    return checks.floating(f"link {link}: targets", targets)
