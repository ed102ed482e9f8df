"""Anderson acceleration of a fixed-point iteration ``g <- T(g)``.

The next point is ``sum_i alpha_i T(g_i)`` over the last points, with the weights that minimize
``|sum_i alpha_i (T(g_i) - g_i)|`` subject to ``sum_i alpha_i = 1``.

References:
    Anderson (1965), Iterative procedures for nonlinear integral equations.
    Walker, Ni (2011), Anderson acceleration for fixed-point iterations, sec. 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Memory(NamedTuple):
    """The last points of an iteration.

    Attributes:
        images: T(g_i) [depth, m].
        residuals: T(g_i) - g_i [depth, m].
        filled: Number of points in it.
    """

    images: Float[Array, "depth m"]
    residuals: Float[Array, "depth m"]
    filled: Int[Array, ""]


def empty(depth: int, g: Float[Array, " m"]) -> Memory:
    """A memory without points."""
    zeros = jnp.zeros((depth, *g.shape), g.dtype)
    return Memory(zeros, zeros, jnp.zeros((), jnp.int32))


def accelerate(memory: Memory, g: Array, image: Array) -> tuple[Array, Memory]:
    """The next point, and the memory with this one.

    Args:
        memory: The last points.
        g: The point.
        image: T(g).
    """
    images = jnp.roll(memory.images, 1, axis=0).at[0].set(image)
    residuals = jnp.roll(memory.residuals, 1, axis=0).at[0].set(image - g)
    depth = images.shape[0]
    filled = jnp.minimum(memory.filled + 1, depth)
    present = jnp.arange(depth) < filled
    gram = jnp.matmul(residuals, residuals.T, precision=jax.lax.Precision.HIGHEST)
    size = jnp.trace(gram)
    # Old residuals become dependent; the ridge keeps the weights moderate.
    ridge = 10 * jnp.finfo(g.dtype).eps * size + jnp.finfo(g.dtype).tiny
    gram = jnp.where(present[:, None] & present, gram, 0.0)
    gram = gram + jnp.diag(jnp.where(present, ridge, size + 1.0))
    alpha = jnp.linalg.solve(gram, present.astype(g.dtype))
    alpha = jnp.where(present, alpha, 0.0)
    total = jnp.sum(alpha)
    usable = jnp.isfinite(total) & (total != 0)
    mixed = jnp.matmul(alpha / jnp.where(usable, total, 1.0), images, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(usable, mixed, image), Memory(images, residuals, filled.astype(jnp.int32))
