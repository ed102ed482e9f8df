r"""Proximal operator of the elastic net.

    argmin_z ½|z - x|² + s (|z|_1 + ridge/2 |z|²) = prox_{s |·|_1}(x) / (1 + s ridge)

References:
    Zou, Hastie (2005), Regularization and variable selection via the elastic net.
    Parikh, Boyd (2014), Proximal algorithms, section 6.5.3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.convex.prox_l1 import soft_threshold
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def prox_elastic_net(
    x: Float[Array, "*s"],
    scale: Numeric | Float[Array, "..."] = 1.0,
    *,
    ridge: Numeric | Float[Array, "..."] = 1.0,
) -> Float[Array, "*s"]:
    """Soft thresholding, then shrinking.

    Args:
        x: Any shape.
        scale: s, not negative, of the whole penalty, as the step of a proximal gradient method multiplies it;
            broadcasts to `x`.
        ridge: Strength of the squares beside the absolute values, not negative; broadcasts to `x`.

    Returns:
        The minimizer, in the dtype of `x`.

    Raises:
        ValueError: If `x` is not floating point, or an option is negative, infinite or does not broadcast to
            `x`.

    Note:
        At ``|x| = s`` the derivative is the mean of those of both sides.

    References:
        Zou, Hastie (2005), Regularization and variable selection via the elastic net.

    Example:
        >>> prox_elastic_net(jnp.array([2.0, -0.5, -3.0]), 1.0, ridge=3.0).tolist()
        [0.25, 0.0, -0.5]
    """
    wide = checks.floating("x", x)
    for name, option in (("scale", scale), ("ridge", ridge)):
        checks.in_range(name, option, 0.0, open_high=True)
    s, weight = arguments.like("scale", scale, wide), arguments.like("ridge", ridge, wide)
    return (soft_threshold(wide, s) / (1.0 + s * weight)).astype(jnp.result_type(x))
