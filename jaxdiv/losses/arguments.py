"""The arguments that losses share, checked and brought to one form."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxdiv.core import checks


def class_logits(name: str, logits: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """Returns logits in at least float32.

    Raises:
        ValueError: If they are not floating, not of rank 2, or empty.
    """
    logits = checks.floating(name, logits)
    checks.rank(name, logits, 2)
    checks.not_empty(name, logits)
    return logits


def class_pair(**logits: Float[Array, "B C"]) -> tuple[Float[Array, "B C"], ...]:
    """Returns several logits of one shape and their common dtype.

    Raises:
        ValueError: If one of them is not class logits, or shapes differ.
    """
    arrays = {name: class_logits(name, value) for name, value in logits.items()}
    checks.same_shape(**arrays)
    dtype = jnp.result_type(*arrays.values())
    return tuple(value.astype(dtype) for value in arrays.values())


def mask(where: Shaped[Array, "..."] | None, outputs: Float[Array, "*n"]) -> Bool[Array, "*n"] | None:
    """Returns the mask in the shape of the outputs; None stays None.

    Raises:
        ValueError: If `where` is not boolean or does not broadcast to the outputs.
    """
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise ValueError(f"where must be boolean; got {where.dtype}; cast it with .astype(bool).")
    try:
        return jnp.broadcast_to(where, outputs.shape)
    except ValueError:
        raise ValueError(
            f"where must broadcast to the outputs' shape {outputs.shape}; got {where.shape}."
        ) from None


def class_labels(
    name: str, labels: Int[Array, " B"], logits: Float[Array, "B C"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Returns labels that can index the classes, and which of them were in range.

    Raises:
        ValueError: If the labels are not integers of shape [B].
    """
    labels = checks.integers(name, labels)
    batch, classes = logits.shape
    if labels.shape != (batch,):
        raise ValueError(
            f"{name} must hold one integer per row of the logits {logits.shape}; got shape {labels.shape}."
        )
    valid = (labels >= 0) & (labels < classes)
    return jnp.where(valid, labels, 0), valid
