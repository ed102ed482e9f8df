"""The maximum norm max|x_i|: dual Σ|y_i|, oracle -r sign(g), and projection by clipping."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.convex.norm import Axes, Norm, magnitude
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Numeric


@pytree_dataclass
class Linf(Norm):
    """The largest absolute value; where several are tied they share its derivative.

    Example:
        >>> g = jnp.array([1.0, -3.0, 0.0])
        >>> linf.value(g), linf.dual(g), linf.lmo(g, 0.5).tolist()
        (Array(3., dtype=float32), Array(4., dtype=float32), [-0.5, 0.5, 0.0])
    """

    def _value(self, x: Array, axes: Axes) -> Array:
        return jnp.max(magnitude(x), axes)

    def _dual(self, y: Array, axes: Axes) -> Array:
        return jnp.sum(magnitude(y), axes)

    def _ascent(self, g: Array, axes: Axes) -> Array:
        del axes
        return jnp.sign(g)

    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        del axes
        return optax.projections.projection_box(x, -radius, radius)


linf = Linf()


def project_linf_ball(
    x: Float[Array, "*s"],
    radius: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: int | Sequence[int] | None = None,
) -> Float[Array, "*s"]:
    """Projects onto the ball of the maximum norm.

    Args:
        x: Any shape.
        radius: Of the ball, not negative; one number, or one per batch element.
        axis: Axis or axes of the vectors; the whole array by default. It matters for `radius` alone.

    Returns:
        The nearest point of the ball, in the dtype of `x`.

    Raises:
        ValueError: As ``Norm.project``.

    Note:
        ``optax.projections.projection_box`` between -radius and radius.

    Example:
        >>> project_linf_ball(jnp.array([2.0, -1.5, 0.25])).tolist()
        [1.0, -1.0, 0.25]
    """
    return linf.over(axis).project(x, radius)
