"""The nuclear norm Σσ_i(X): dual σ_max(Y), oracle -r u vᵀ, projection of σ onto the l1 ball.

The projection soft-thresholds the singular values; with their threshold τ it is X - C_τ(X), where C_τ
clips them at τ.

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
from jaxdiv.convex.simplex import onto_simplex
from jaxdiv.core.pytree import pytree_dataclass, static_field
from jaxdiv.core.types import Numeric


@pytree_dataclass
class Nuclear(Norm):
    """The sum of the singular values of the matrices in the last two axes.

    Example:
        >>> g = jnp.diag(jnp.array([3.0, 4.0]))
        >>> nuclear.value(g), nuclear.dual(g), nuclear.lmo(-g).tolist()
        (Array(7., dtype=float32), Array(4., dtype=float32), [[0.0, 0.0], [0.0, 1.0]])
    """

    axis: int | Axes | None = static_field(default=(-2, -1))
    matrix: ClassVar[bool] = True

    def _value(self, x: Array, axes: Axes) -> Array:
        return singular.nuclear_norm(x)

    def _dual(self, y: Array, axes: Axes) -> Array:
        return singular.spectral_norm(y)

    def _ascent(self, g: Array, axes: Axes) -> Array:
        return singular.leading(g)

    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        s = singular.values(x)
        outside = jnp.sum(s, -1)[..., None, None] > radius
        kept = onto_simplex(s, jnp.where(outside, radius, 1.0)[..., 0])
        # The largest value is always in the support, also where the radius is 0.
        threshold = s[..., :1] - kept[..., :1]
        return jnp.where(outside, x - singular.clip(x, threshold), x)


nuclear = Nuclear()


def project_nuclear_ball(
    x: Float[Array, "*s"],
    radius: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: Sequence[int] = (-2, -1),
) -> Float[Array, "*s"]:
    """Projects onto the ball of the nuclear norm.

    Args:
        x: Matrices in two of the axes.
        radius: Of the ball, not negative; one number, or one per batch element.
        axis: The two axes of the matrices.

    Returns:
        The matrices with their singular values projected onto the l1 ball, in the dtype of `x`.

    Raises:
        ValueError: As ``Norm.project``.

    Note:
        The derivative is finite at repeated and at zero singular values.

    Example:
        >>> project_nuclear_ball(jnp.diag(jnp.array([2.0, 1.5, 0.25]))).round(4).tolist()
        [[0.75, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]]
    """
    return nuclear.over(axis).project(x, radius)
