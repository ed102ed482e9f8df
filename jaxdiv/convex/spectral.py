"""The spectral norm σ_max(X): dual the nuclear norm Σσ_i(Y), oracle -r U Vᵀ, projection by clipping σ.

References:
    Jaggi (2013), Revisiting Frank–Wolfe, section 4. Lewis (1995), The convex analysis of unitarily
    invariant matrix functions.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex import singular
from jaxdiv.convex.norm import Axes, Norm
from jaxdiv.core.pytree import pytree_dataclass, static_field
from jaxdiv.core.types import Numeric


@pytree_dataclass
class Spectral(Norm):
    """The largest singular value of the matrices in the last two axes.

    Singular values below max(m, n) eps σ_max count as 0: the oracle leaves their directions out, where
    every choice is optimal. It is exact, by a decomposition; Newton–Schulz iterations only approach it.

    Example:
        >>> g = jnp.diag(jnp.array([3.0, 4.0]))
        >>> spectral.value(g), spectral.dual(g), spectral.lmo(-g).tolist()
        (Array(4., dtype=float32), Array(7., dtype=float32), [[1.0, 0.0], [0.0, 1.0]])
    """

    axis: int | Axes | None = static_field(default=(-2, -1))
    matrix: ClassVar[bool] = True

    def _value(self, x: Array, axes: Axes) -> Array:
        return singular.spectral_norm(x)

    def _dual(self, y: Array, axes: Axes) -> Array:
        return singular.nuclear_norm(y)

    def _ascent(self, g: Array, axes: Axes) -> Array:
        return singular.polar(g)

    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        outside = singular.spectral_norm(x)[..., None, None] > radius
        level = jnp.where(outside, radius, 1.0)[..., 0]
        return jnp.where(outside, singular.clip(x, level), x)


spectral = Spectral()


def project_spectral_ball(
    x: Float[Array, "*s"],
    radius: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: Sequence[int] = (-2, -1),
) -> Float[Array, "*s"]:
    """Projects onto the ball of the spectral norm.

    Args:
        x: Matrices in two of the axes.
        radius: Of the ball, not negative; one number, or one per batch element.
        axis: The two axes of the matrices.

    Returns:
        The matrices with their singular values clipped at `radius`, in the dtype of `x`.

    Raises:
        ValueError: As ``Norm.project``.

    Note:
        The derivative is finite at repeated and at zero singular values.

    Example:
        >>> project_spectral_ball(jnp.diag(jnp.array([3.0, 0.5]))).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    return spectral.over(axis).project(x, radius)
