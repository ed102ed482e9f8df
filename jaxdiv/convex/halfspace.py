r"""Euclidean projection onto a halfspace {⟨a, z⟩ ≤ b}.

    P(x) = x - max(⟨a, x⟩ - b, 0) a / |a|²

References:
    Parikh, Boyd (2014), Proximal algorithms, section 6.2.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.convex.hyperplane import unit_scale
from jaxdiv.core.types import Numeric


def project_halfspace(
    x: Float[Array, "*s"],
    normal: Float[Array, "..."],
    offset: Numeric | Float[Array, "*b"] = 0.0,
    *,
    axis: int | Sequence[int] | None = -1,
) -> Float[Array, "*s"]:
    """Projects onto the halfspace of the points whose product with `normal` is at most `offset`.

    Args:
        x: Any shape.
        normal: a, of any length but 0; broadcasts to `x`.
        offset: b, may be ``inf``; one number, or one per batch element.
        axis: Axis or axes of the vectors, None for the whole array; the others are batch axes.

    Returns:
        The nearest point of the halfspace, in the dtype of `x`; inside it that is `x`.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks an axis, or if `normal` does not broadcast
            to `x` or is concrete and all zeros, or if `offset` has another shape.

    Note:
        ``optax.projections.projection_halfspace`` on vectors, with an infinite offset. On the boundary the
        derivative is the mean of those of both sides. A traced normal of zeros gives NaN.

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.2.

    Example:
        >>> x = jnp.array([[2.0, 1.0], [0.25, 0.5]])
        >>> project_halfspace(x, jnp.array([1.0, 1.0]), 1.0).tolist()
        [[1.0, 0.0], [0.25, 0.5]]
    """
    arguments.nonzero("normal", normal)
    wide, axes = arguments.vectors(x, axis)
    rows, vectors = (arguments.to_rows(v, axes) for v in (wide, arguments.like("normal", normal, wide)))
    levels = arguments.per_vector("offset", offset, wide, axes)
    # Without a bound there is no step; its derivative would multiply 0 by infinity.
    bounded = levels < jnp.inf
    project = jnp.vectorize(optax.projections.projection_halfspace, signature="(k),(k),()->(k)")
    out = project(rows, *unit_scale(vectors, jnp.where(bounded, levels, 0.0)))
    out = jnp.where((levels == jnp.inf)[..., None], rows, out)
    return arguments.from_rows(out, wide, axes).astype(jnp.result_type(x))
