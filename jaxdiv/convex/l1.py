"""The l1 norm Σ|x_i|: dual max|y_i|, oracle -r sign(g_k) e_k at the largest |g_k|.

Its ball is projected onto through the simplex: sign(x) P_r(|x|) outside the ball.

References:
    Duchi, Shalev-Shwartz, Singer, Chandra (2008), Efficient projections onto the l1-ball, section 4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex.norm import Axes, Norm, magnitude
from jaxdiv.convex.simplex import onto_simplex
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Numeric


@pytree_dataclass
class L1(Norm):
    """The sum of absolute values; of tied entries the oracle takes the first.

    Example:
        >>> g = jnp.array([1.0, -3.0, 2.0])
        >>> l1.value(g), l1.dual(g), l1.lmo(g).tolist()
        (Array(6., dtype=float32), Array(3., dtype=float32), [0.0, 1.0, 0.0])
    """

    def _value(self, x: Array, axes: Axes) -> Array:
        return jnp.sum(magnitude(x), axes)

    def _dual(self, y: Array, axes: Axes) -> Array:
        return jnp.max(magnitude(y), axes)

    def _ascent(self, g: Array, axes: Axes) -> Array:
        flat = _flat(g, axes)
        first = jax.nn.one_hot(jnp.argmax(magnitude(flat), -1), flat.shape[-1], dtype=g.dtype)
        return first.reshape(g.shape) * jnp.sign(g)

    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        outside = jnp.sum(magnitude(x), axes, keepdims=True) > radius
        # An infinite radius would reach the branch that is not taken, and its derivative.
        scale = _flat(jnp.where(outside, radius, 1.0), axes)
        sphere = onto_simplex(_flat(magnitude(x), axes), scale).reshape(x.shape)
        return jnp.where(outside, jnp.sign(x) * sphere, x)


def _flat(x: Array, axes: Axes) -> Array:
    return x.reshape(*x.shape[: x.ndim - len(axes)], -1)


l1 = L1()


def project_l1_ball(
    x: Float[Array, "*s"],
    radius: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: int | Sequence[int] | None = None,
) -> Float[Array, "*s"]:
    """Projects onto the l1 ball.

    Args:
        x: Any shape.
        radius: Of the ball, not negative; one number, or one per batch element.
        axis: Axis or axes of the vectors; the whole array by default.

    Returns:
        The nearest point of the ball, in the dtype of `x`.

    Raises:
        ValueError: As ``Norm.project``.

    Note:
        On `project_simplex` and not ``optax.projections.projection_l1_ball``, which is NaN at radius 0 and
        knows only whole trees.

    Example:
        >>> project_l1_ball(jnp.array([2.0, -1.5, 0.25])).tolist()
        [0.75, -0.25, 0.0]
    """
    return l1.over(axis).project(x, radius)
