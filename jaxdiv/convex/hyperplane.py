r"""Euclidean projection onto a hyperplane {⟨a, z⟩ = b}.

    P(x) = x - (⟨a, x⟩ - b) a / |a|²

References:
    Parikh, Boyd (2014), Proximal algorithms, section 6.2.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.core.types import Numeric


def project_hyperplane(
    x: Float[Array, "*s"],
    normal: Float[Array, "..."],
    offset: Numeric | Float[Array, "*b"] = 0.0,
    *,
    axis: int | Sequence[int] | None = -1,
) -> Float[Array, "*s"]:
    """Projects onto the hyperplane of the points whose product with `normal` is `offset`.

    Args:
        x: Any shape.
        normal: a, of any length but 0; broadcasts to `x`.
        offset: b; one number, or one per batch element.
        axis: Axis or axes of the vectors, None for the whole array; the others are batch axes.

    Returns:
        The nearest point of the hyperplane, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks an axis, or if `normal` does not broadcast
            to `x` or is concrete and all zeros, or if `offset` has another shape.

    Note:
        ``optax.projections.projection_hyperplane`` on vectors, whose squares here neither overflow nor
        underflow. A traced normal of zeros gives NaN: it is no hyperplane.

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.2.

    Example:
        >>> project_hyperplane(jnp.array([2.0, 1.0]), jnp.array([1.0, 1.0]), 1.0).tolist()
        [1.0, 0.0]
    """
    arguments.nonzero("normal", normal)
    wide, axes = arguments.vectors(x, axis)
    rows, vectors = (arguments.to_rows(v, axes) for v in (wide, arguments.like("normal", normal, wide)))
    levels = arguments.per_vector("offset", offset, wide, axes)
    project = jnp.vectorize(optax.projections.projection_hyperplane, signature="(k),(k),()->(k)")
    out = project(rows, *unit_scale(vectors, levels))
    return arguments.from_rows(out, wide, axes).astype(jnp.result_type(x))


def unit_scale(
    normal: Float[Array, "*b k"], offset: Float[Array, "*b"]
) -> tuple[Float[Array, "*b k"], Float[Array, "*b"]]:
    """The same hyperplanes with a normal whose largest entry is 1; derivatives pass the scale by."""
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(normal), -1))
    scale = jnp.where(top > 0, top, 1.0)
    return normal / scale[..., None], offset / scale
