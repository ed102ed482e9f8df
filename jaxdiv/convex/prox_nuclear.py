r"""Proximal operator of the nuclear norm: soft thresholding of the singular values.

    argmin_Z ½|Z - X|² + s Σσ_i(Z) = U max(σ - s, 0) Vᵀ = X - C_s(X),   X = U σ Vᵀ

with C_s the projection onto the spectral ball of radius s, which clips the singular values.

References:
    Cai, Candès, Shen (2010), A singular value thresholding algorithm for matrix completion, theorem 2.1.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex.norm import per_batch
from jaxdiv.convex.spectral import spectral
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def prox_nuclear(
    x: Float[Array, "*s"],
    scale: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: Sequence[int] = (-2, -1),
) -> Float[Array, "*s"]:
    """Moves the singular values of a matrix towards 0 by `scale`, at most to 0.

    Args:
        x: Matrices in two of the axes.
        scale: s, not negative, may be ``inf``; one number, or one per batch element.
        axis: The two axes of the matrices.

    Returns:
        The minimizer, in the dtype of `x`; exactly 0 where all singular values are at most `scale`.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks the axes, or if `scale` is negative or of
            another shape.

    Note:
        The derivative is finite at repeated and at zero singular values. Of the singular values that are
        gone, rounding leaves about eps times the largest one of x.

    References:
        Cai, Candès, Shen (2010), A singular value thresholding algorithm for matrix completion, theorem 2.1.

    Example:
        >>> prox_nuclear(jnp.diag(jnp.array([3.0, 0.5]))).round(4).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    wide = checks.floating("x", x)
    checks.not_empty("x", wide)
    order = checks.axes("x", wide, axis)
    if len(order) != 2:
        raise ValueError(f"axis must name two axes of x, which has shape {wide.shape}; got {axis}.")
    checks.in_range("scale", scale, 0.0)
    moved = jnp.moveaxis(wide, order, (-2, -1))
    level = per_batch("scale", scale, moved, (-2, -1))
    out = moved - spectral.project(moved, level[..., 0, 0] if level.ndim else level)
    return jnp.moveaxis(out, (-2, -1), order).astype(jnp.result_type(x))
