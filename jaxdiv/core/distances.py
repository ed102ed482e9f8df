r"""Euclidean distances between points.

Squared distances are sums of squared differences in few dimensions (exact zeros for equal points) and
`|x|^2 + |y|^2 - 2 <x, y>` on centered points at the highest matmul precision in many, where the
differences would not fit in memory; clipped at 0 and exactly 0 between a point and itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core.numerics import safe_sqrt

# Up to this dimension XLA fuses the [n, m, d] differences into their sum.
_FUSED_DIMENSION = 16


def squared_distances(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"] | None = None
) -> Float[Array, "*b n m"]:
    """Returns `|x_i - y_j|^2`; within `x`, with a diagonal of exact zeros, if `y` is left out."""
    z = x if y is None else y
    if x.shape[-1] <= _FUSED_DIMENSION:
        return jnp.sum(jnp.square(x[..., :, None, :] - z[..., None, :, :]), axis=-1)
    # Distances do not depend on the origin; the rounding of the expansion below does.
    center = jax.lax.stop_gradient(jnp.mean(z, axis=-2, keepdims=True))
    x, z = x - center, z - center
    inner = jnp.matmul(x, jnp.swapaxes(z, -1, -2), precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(x), -1)[..., :, None] + jnp.sum(jnp.square(z), -1)[..., None, :]
    squared = norms - 2.0 * inner
    positive = squared > 0
    if y is None:
        positive &= ~jnp.eye(x.shape[-2], dtype=bool)
    return jnp.where(positive, squared, 0.0)


def distances(x: Float[Array, "*b n d"], y: Float[Array, "*b m d"] | None = None) -> Float[Array, "*b n m"]:
    """Returns `|x_i - y_j|`, whose gradient between equal points is 0."""
    return safe_sqrt(squared_distances(x, y))
