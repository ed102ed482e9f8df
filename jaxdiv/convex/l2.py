"""The Euclidean norm: its own dual, oracle -r g/‖g‖, and projection r x/‖x‖ outside the ball."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex.norm import Axes, Norm
from jaxdiv.core.numerics import safe_norm
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Numeric


@pytree_dataclass
class L2(Norm):
    """The root of the sum of squares, of a matrix the Frobenius norm.

    Example:
        >>> g = jnp.array([[3.0, 0.0], [0.0, -4.0]])
        >>> l2.value(g), l2.dual(g)
        (Array(5., dtype=float32), Array(5., dtype=float32))
        >>> l2.project(g, 2.5).tolist()
        [[1.5, 0.0], [0.0, -2.0]]
    """

    def _value(self, x: Array, axes: Axes) -> Array:
        return safe_norm(x, axes)

    def _dual(self, y: Array, axes: Axes) -> Array:
        return safe_norm(y, axes)

    def _ascent(self, g: Array, axes: Axes) -> Array:
        # Scaled by the largest entry, so that the length itself cannot overflow; its derivative drops out.
        top = jax.lax.stop_gradient(jnp.max(jnp.abs(g), axes, keepdims=True))
        scaled = g / jnp.where(top == 0, 1.0, top)
        length = safe_norm(scaled, axes, keepdims=True)
        return jnp.where(length == 0, 0.0, scaled / jnp.where(length == 0, 1.0, length))

    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        outside = safe_norm(x, axes, keepdims=True) > radius
        # An infinite radius would reach the branch that is not taken, and its derivative.
        return jnp.where(outside, jnp.where(outside, radius, 1.0) * self._ascent(x, axes), x)


l2 = L2()


def project_l2_ball(
    x: Float[Array, "*s"],
    radius: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: int | Sequence[int] | None = None,
) -> Float[Array, "*s"]:
    """Projects onto the Euclidean ball.

    Args:
        x: Any shape.
        radius: Of the ball, not negative; one number, or one per batch element.
        axis: Axis or axes of the vectors; the whole array by default.

    Returns:
        The nearest point of the ball, in the dtype of `x`.

    Raises:
        ValueError: As ``Norm.project``.

    Note:
        ``optax.projections.projection_l2_ball`` is NaN for zeros at radius 0, gives 0 where the squares
        overflow and knows only whole trees.

    Example:
        >>> project_l2_ball(jnp.array([3e30, 4e30]), 5.0).tolist()
        [3.0, 4.0]
    """
    return l2.over(axis).project(x, radius)
