r"""Proximal operator of the l1 norm: soft thresholding.

    argmin_z ½|z - x|² + Σ s_i |z_i| = sign(x) max(|x| - s, 0) = x - clip(x, -s, s)

The last form is Moreau's: x minus its projection onto the dual ball.

References:
    Donoho (1995), De-noising by soft-thresholding. Parikh, Boyd (2014), Proximal algorithms, section 6.5.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def soft_threshold(x: Float[Array, "*s"], scale: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The operator on arrays of one shape and dtype."""
    return x - jnp.clip(x, -scale, scale)


def prox_l1(x: Float[Array, "*s"], scale: Numeric | Float[Array, "..."] = 1.0) -> Float[Array, "*s"]:
    """Moves each entry towards 0 by `scale`, at most to 0.

    Args:
        x: Any shape.
        scale: s, not negative; broadcasts to `x`, so that entries may have strengths of their own. Where it
            is ``inf`` the result is 0.

    Returns:
        The minimizer, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, or `scale` is negative or does not broadcast to `x`.

    Note:
        At ``|x| = s`` the derivative is the mean of those of both sides. Half precisions are computed in
        float32.

    References:
        Donoho (1995), De-noising by soft-thresholding.

    Example:
        >>> prox_l1(jnp.array([2.0, -0.5, -3.0]), 1.0).tolist()
        [1.0, 0.0, -2.0]
    """
    wide = checks.floating("x", x)
    checks.in_range("scale", scale, 0.0)
    return soft_threshold(wide, arguments.like("scale", scale, wide)).astype(jnp.result_type(x))
