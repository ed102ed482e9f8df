"""Euclidean projection onto a box {low ≤ z ≤ high}: each entry clipped."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def project_box(
    x: Float[Array, "*s"], low: Numeric | Float[Array, "..."], high: Numeric | Float[Array, "..."]
) -> Float[Array, "*s"]:
    """Projects onto a box.

    Args:
        x: Any shape.
        low: Lowest values; broadcasts to `x`, may be ``-inf``.
        high: Highest values, at least `low`; broadcasts to `x`, may be ``inf``.

    Returns:
        The nearest point of the box, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, a bound does not broadcast to `x`, or concrete bounds are
            NaN or cross.

    Note:
        ``optax.projections.projection_box`` with half precisions clipped in float32; a bound that `x`'s
        dtype does not hold is rounded. On a bound the derivative is shared equally with it. Traced bounds
        that cross give `high`.

    Example:
        >>> project_box(jnp.array([-1.0, 0.5, 3.0]), 0.0, 1.0).tolist()
        [0.0, 0.5, 1.0]
    """
    wide = checks.floating("x", x)
    bounds = [arguments.like(name, bound, wide) for name, bound in (("low", low), ("high", high))]
    if checks.concrete(low) and checks.concrete(high) and not np.all(np.asarray(low) <= np.asarray(high)):
        raise ValueError(f"low must not exceed high, nor either be NaN; got low={low} and high={high}.")
    clipped = optax.projections.projection_box(wide, *bounds)
    return clipped.astype(jnp.result_type(x))
