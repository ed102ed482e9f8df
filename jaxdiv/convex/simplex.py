r"""Euclidean projection onto the simplex {z ≥ 0, Σ z = s}.

    P(x) = max(x - τ, 0),  τ such that Σ P(x) = s

References:
    Held, Wolfe, Crowder (1974), Validation of subgradient optimization.
    Duchi, Shalev-Shwartz, Singer, Chandra (2008), Efficient projections onto the l1-ball, fig. 1.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.convex.norm import per_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def onto_simplex(x: Float[Array, "*b n"], scale: Float[Array, "..."]) -> Float[Array, "*b n"]:
    """The projection along the last axis of a floating array; `scale` broadcasts with `x`."""
    # P(x - c) = P(x): after the shift the cumulated sums no longer cancel.
    shifted = x - jax.lax.stop_gradient(jnp.max(x, -1, keepdims=True))
    empty = scale == 0
    limit = jnp.where(shifted == 0, 0.0, -jnp.inf)
    scaled = jnp.where(empty, limit, shifted / jnp.where(empty, 1.0, scale))
    # optax mixes float32 with the default dtype and fails unless the two are the same.
    rows = scaled.reshape(-1, x.shape[-1]).astype(float)
    unit: Array = jax.vmap(optax.projections.projection_simplex)(rows)
    return scale * unit.astype(x.dtype).reshape(x.shape)


def project_simplex(
    x: Float[Array, "*s"], scale: Numeric | Float[Array, "*b"] = 1.0, *, axis: int = -1
) -> Float[Array, "*s"]:
    """Projects onto the simplex along one axis.

    Args:
        x: Any shape; ``-inf`` gets 0, as long as one entry of its row is finite.
        scale: What the entries sum to, not negative; one number, or one per batch element.
        axis: Axis of the simplex; the others are batch axes.

    Returns:
        The nearest nonnegative points whose entries sum to `scale`, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks the axis, or if `scale` is negative,
            infinite or of another shape.

    Note:
        ``optax.projections.projection_simplex`` on rows, and its derivative. Added here: axes, rows far
        from 0 (float32 loses the sum from entries near 1e6 on) and ``scale = 0``, where optax gives NaN;
        the derivative by `scale` is there its limit from above. The sum is `scale` up to rounding.

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra (2008), Efficient projections onto the l1-ball, fig. 1.

    Example:
        >>> project_simplex(jnp.array([[0.5, 0.25, 0.25], [2.0, 1.5, -3.0]])).tolist()
        [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]]
    """
    wide = checks.floating("x", x)
    checks.not_empty("x", wide)
    (position,) = checks.axes("x", wide, axis)
    checks.in_range("scale", scale, 0.0, open_high=True)
    moved = jnp.moveaxis(wide, position, -1)
    out = onto_simplex(moved, per_batch("scale", scale, moved, (-1,)))
    return jnp.moveaxis(out, -1, position).astype(jnp.result_type(x))
