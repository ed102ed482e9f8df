"""The arguments that projections and proximal operators share, checked and brought to one form."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.convex.norm import Axes, per_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def vectors(x: Float[Array, "*s"], axis: int | Sequence[int] | None) -> tuple[Float[Array, "*s"], Axes]:
    """Returns `x` in at least float32, and the axes of its vectors counted from the front.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks an axis.
    """
    x = checks.floating("x", x)
    checks.not_empty("x", x)
    return x, checks.axes("x", x, axis)


def like(name: str, value: Numeric | Array, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns `value` in the shape and dtype of `x`.

    Raises:
        ValueError: If it does not broadcast to `x`.
    """
    if not broadcasts(jnp.shape(value), x.shape):
        raise ValueError(f"{name} must broadcast to x of shape {x.shape}; got shape {jnp.shape(value)}.")
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to another."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def per_vector(name: str, value: Numeric | Array, x: Float[Array, "*s"], axes: Axes) -> Float[Array, "*b"]:
    """Returns `value`, one number or one per vector of `x`, as one per vector.

    Raises:
        ValueError: If it has another shape.
    """
    rows = to_rows(x, axes)
    return jnp.broadcast_to(per_batch(name, value, rows, (-1,)), (*rows.shape[:-1], 1))[..., 0]


def to_rows(x: Float[Array, "*s"], axes: Axes) -> Float[Array, "*b k"]:
    """The vectors in the last axis, the others before it."""
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    kept = moved.ndim - len(axes)
    return moved.reshape(*moved.shape[:kept], math.prod(moved.shape[kept:]))


def from_rows(rows: Float[Array, "*b k"], x: Float[Array, "*s"], axes: Axes) -> Float[Array, "*s"]:
    """Undoes `to_rows` of an array like `x`."""
    moved = rows.reshape(*rows.shape[:-1], *(x.shape[i] for i in axes))
    return jnp.moveaxis(moved, range(-len(axes), 0), axes)


def nonzero(name: str, vector: Array) -> None:
    """Raises ValueError if a concrete `vector` is all zeros or not finite."""
    if checks.concrete(vector) and not (np.any(np.asarray(vector)) and np.all(np.isfinite(vector))):
        raise ValueError(f"{name} must be finite and not all zeros; got {np.asarray(vector)}.")
