r"""Proximal operator of the group lasso: block soft thresholding.

    argmin_z ½|z - x|² + Σ_G s_G |z_G| = max(1 - s_G / |x_G|, 0) x_G

References:
    Yuan, Lin (2006), Model selection and estimation in regression with grouped variables.
    Parikh, Boyd (2014), Proximal algorithms, section 6.5.4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.convex import arguments
from jaxdiv.convex.norm import per_batch
from jaxdiv.core import checks, safe_norm, safe_sqrt
from jaxdiv.core.types import Numeric


def prox_group_lasso(
    x: Float[Array, "*s"],
    scale: Numeric | Float[Array, "..."] = 1.0,
    *,
    axis: int | Sequence[int] | None = -1,
    groups: Int[Array, " k"] | None = None,
) -> Float[Array, "*s"]:
    """Moves each group towards 0 by `scale` along its direction, at most to 0.

    Args:
        x: Any shape.
        scale: s, not negative, may be ``inf``. Without `groups` one number, or one per vector; with them one
            number, or one per label.
        axis: Without `groups` the axis or axes of the vectors, each of which is one group (None is the whole
            array). With them the one axis along which the labels stand.
        groups: The group of each of the k entries along the axis, integers in [0, k).

    Returns:
        The minimizer, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks an axis, if `groups` is not one label in
            range for each entry, or if `scale` is negative or of another shape.

    Note:
        The derivative at ``|x_G| = s`` is that of the inside, 0.

    References:
        Yuan, Lin (2006), Model selection and estimation in regression with grouped variables.

    Example:
        >>> prox_group_lasso(jnp.array([[3.0, 4.0], [0.5, -0.5]]), 2.5).tolist()
        [[1.5, 2.0], [0.0, 0.0]]
        >>> prox_group_lasso(jnp.array([3.0, 1.0, 4.0]), 2.5, groups=jnp.array([0, 1, 0])).tolist()
        [1.5, 0.0, 2.0]
    """
    wide, axes = arguments.vectors(x, axis)
    checks.in_range("scale", scale, 0.0)
    rows = arguments.to_rows(wide, axes)
    if groups is None:
        s = per_batch("scale", scale, rows, (-1,))
        length = safe_norm(rows, -1, keepdims=True)
    else:
        labels = _labels(groups, rows.shape[-1], len(axes))
        s = jnp.asarray(scale, rows.dtype)
        if s.ndim > 1 or (checks.concrete(labels) and s.ndim == 1 and s.size <= int(jnp.max(labels))):
            raise ValueError(f"scale must be one number or one per label; got shape {s.shape}.")
        s = s[labels] if s.ndim else s
        length = _lengths(rows, labels)
    gone = length <= s
    # An infinite scale would reach the branch that is not taken, and its derivative.
    kept = rows - jnp.where(gone, 0.0, s) * (rows / jnp.where(gone, 1.0, length))
    return arguments.from_rows(jnp.where(gone, 0.0, kept), wide, axes).astype(jnp.result_type(x))


def _labels(groups: Int[Array, " k"], size: int, axes: int) -> Int[Array, " k"]:
    groups = checks.integers("groups", groups)
    if axes != 1:
        raise ValueError(f"axis must be one axis where groups are given; got {axes} axes.")
    if groups.shape != (size,):
        raise ValueError(f"groups must have shape ({size},), as x along the axis; got {groups.shape}.")
    checks.in_range("groups", groups, 0, size - 1)
    return groups.astype(jnp.int32)


def _lengths(rows: Float[Array, "*b k"], labels: Int[Array, " k"]) -> Float[Array, "*b k"]:
    """The Euclidean norm of each entry's group; scaled, so that the squares cannot overflow."""
    zero = jnp.zeros_like(rows)
    top = jax.lax.stop_gradient(zero.at[..., labels].max(jnp.abs(rows)))
    scale = jnp.where(top > 0, top, 1.0)
    squares = zero.at[..., labels].add((rows / scale[..., labels]) ** 2)
    return (scale * safe_sqrt(squares))[..., labels]
