r"""Softmins as products with a kernel matrix, for as long as its range allows.

With potentials f0, g0 set aside (absorbed), ``K_ij = exp((f0_i + g0_j - C_ij) / epsilon)`` gives

    -epsilon log sum_j w_j exp((h_j - C_ij) / epsilon)
        = f0_i - epsilon log sum_j K_ij w_j exp((h_j - g0_j) / epsilon)

at the price of one matrix-vector product instead of n m exponentials. f0 and g0 are c-transforms of each other,
so that every row and column of K has an entry 1 and none is larger. The vector is scaled to a largest entry of
1; a sum so small that lost terms could matter is reported.

References:
    Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport problems.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiv.core.types import Numeric


class Kernel(NamedTuple):
    """A kernel matrix and what was absorbed into it.

    Attributes:
        matrix: K [n, m].
        f: Potential of the rows f0 [n].
        g: Potential of the columns g0 [m].
    """

    matrix: Float[Array, "n m"]
    f: Float[Array, " n"]
    g: Float[Array, " m"]


def make(cost: Float[Array, "n m"], g: Float[Array, " m"], epsilon: Numeric) -> Kernel:
    """The kernel of a cost matrix, absorbing the c-transforms that begin with g."""
    f = jnp.min(cost - g, axis=1)
    g = jnp.min(cost - f[:, None], axis=0)
    return Kernel(jnp.exp((f[:, None] + g - cost) / epsilon), f, g)


def softmin(
    kernel: Kernel, h: Array, weights: Array, epsilon: Numeric, axis: int
) -> tuple[Array, Bool[Array, ""]]:
    """The softmin over an axis as `Geometry.softmin` has it, and whether it can be trusted."""
    inner, outer = (kernel.g, kernel.f) if axis == 1 else (kernel.f, kernel.g)
    exponent = jnp.where(weights > 0, (h - inner) / epsilon, -jnp.inf)
    top = jnp.max(exponent)
    vector = weights * jnp.exp(exponent - top)
    factors = (kernel.matrix, vector) if axis == 1 else (vector, kernel.matrix)
    total = jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)
    info = jnp.finfo(total.dtype)
    # Each lost term is below tiny; together they stay below the rounding of such a sum.
    trusted = jnp.all(total > vector.size * info.tiny / info.eps)
    log_total = jnp.log(jnp.where(total > 0, total, 1.0))
    return outer - epsilon * (log_total + top), trusted
