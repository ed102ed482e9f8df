r"""Positive definite kernels as functions of two samples that return the Gram matrix.

A kernel for `mmd2` is any callable `(x [*b, n, d], y [*b, m, d]) -> [*b, n, m]`; its options are bound with
`functools.partial`. The maximum mean discrepancy of the Gaussian, Laplacian and multiscale kernels and
of the distance kernel (on distributions with a mean) is 0 only between equal distributions; that of a
polynomial kernel compares moments up to its degree.

References: Gretton et al. (2012), A kernel two-sample test; Sejdinovic et al. (2013), Equivalence of
distance-based and RKHS-based statistics in hypothesis testing.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.distances import distances, squared_distances
from jaxdiv.core.types import Numeric
from jaxdiv.divergences import pairwise

Kernel: TypeAlias = Callable[[Float[Array, "*b n d"], Float[Array, "*b m d"]], Float[Array, "*b n m"]]


def _pair(x: Array, y: Array) -> tuple[Array, Array]:
    x, _ = pairwise.sample("x", x)
    y, _ = pairwise.sample("y", y)
    pairwise.same_space("x", x, "y", y)
    return x, y


def gaussian_kernel(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"], *, bandwidth: Numeric = 1.0
) -> Float[Array, "*b n m"]:
    """Gaussian kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        bandwidth: Length scale, a scalar or [*b].

    Returns:
        The Gram matrix, [*b, n, m].

    Raises:
        ValueError: If the samples do not fit together, or a concrete `bandwidth` is not positive.

    Example:
        >>> float(gaussian_kernel(jnp.array([[0.0]]), jnp.array([[0.0]]))[0, 0])
        1.0
    """
    x, y = _pair(x, y)
    checks.in_range("bandwidth", bandwidth, 0.0, open_low=True)
    return jnp.exp(pairwise.log_gaussian_gram(x, y, sigma=bandwidth))


def laplacian_kernel(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"], *, bandwidth: Numeric = 1.0
) -> Float[Array, "*b n m"]:
    """Laplacian kernel `exp(-|x - y| / bandwidth)` of the Euclidean distance.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        bandwidth: Length scale, a scalar or [*b].

    Returns:
        The Gram matrix, [*b, n, m]; its gradient at equal points is 0.

    Raises:
        ValueError: If the samples do not fit together, or a concrete `bandwidth` is not positive.

    Example:
        >>> round(float(laplacian_kernel(jnp.array([[0.0]]), jnp.array([[1.0]]))[0, 0]), 4)
        0.3679
    """
    x, y = _pair(x, y)
    checks.in_range("bandwidth", bandwidth, 0.0, open_low=True)
    return jnp.exp(-distances(x, y) / jnp.asarray(bandwidth, x.dtype)[..., None, None])


def multiscale_kernel(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"], *, bandwidths: Float[Array, " k"]
) -> Float[Array, "*b n m"]:
    """Mean of Gaussian kernels over several bandwidths.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        bandwidths: Length scales, [k].

    Returns:
        The Gram matrix, [*b, n, m].

    Raises:
        ValueError: If the samples do not fit together, `bandwidths` has no rank 1, or a concrete one is
            not positive.

    Example:
        >>> x = jnp.array([[0.0]])
        >>> float(multiscale_kernel(x, x, bandwidths=jnp.array([0.5, 1.0, 2.0]))[0, 0])
        1.0
    """
    x, y = _pair(x, y)
    checks.in_range("bandwidths", bandwidths, 0.0, open_low=True)
    scales = jnp.asarray(bandwidths, x.dtype)
    checks.rank("bandwidths", scales, 1)
    checks.not_empty("bandwidths", scales)
    squared = squared_distances(x, y)

    def add(total: Array, scale: Array) -> tuple[Array, None]:
        return total + jnp.exp(-0.5 * squared / jnp.square(scale)), None

    # One Gram matrix is alive at a time.
    total, _ = jax.lax.scan(add, jnp.zeros_like(squared), scales)
    return total / scales.size


def distance_kernel(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"], *, exponent: Numeric = 1.0
) -> Float[Array, "*b n m"]:
    """Negative distance `-|x - y|^exponent / 2`, conditionally positive definite.

    Its maximum mean discrepancy is half the energy distance of the same exponent.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        exponent: In (0, 2).

    Returns:
        The Gram matrix, [*b, n, m]; its gradient at equal points is 0.

    Raises:
        ValueError: If the samples do not fit together, or a concrete `exponent` leaves (0, 2).

    Example:
        >>> float(distance_kernel(jnp.array([[0.0]]), jnp.array([[3.0]]))[0, 0])
        -1.5
    """
    x, y = _pair(x, y)
    return -0.5 * pairwise.power_distances(x, y, exponent=exponent)


def polynomial_kernel(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b m d"],
    *,
    degree: int = 3,
    scale: Numeric | None = None,
    offset: Numeric = 1.0,
) -> Float[Array, "*b n m"]:
    """Polynomial kernel `(scale <x, y> + offset)^degree`.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        degree: At least 1, static; 3 is that of the kernel inception distance.
        scale: Positive; `1 / d` by default.
        offset: Nonnegative.

    Returns:
        The Gram matrix, [*b, n, m].

    Raises:
        ValueError: If the samples do not fit together, or an option is out of its range.

    Example:
        >>> float(polynomial_kernel(jnp.array([[1.0]]), jnp.array([[1.0]]))[0, 0])
        8.0
    """
    x, y = _pair(x, y)
    if degree < 1:
        raise ValueError(f"degree must be at least 1; got {degree}.")
    scale = 1.0 / x.shape[-1] if scale is None else scale
    checks.in_range("scale", scale, 0.0, open_low=True)
    checks.in_range("offset", offset, 0.0)
    inner = jnp.matmul(x, jnp.swapaxes(y, -1, -2), precision=jax.lax.Precision.HIGHEST)
    return jax.lax.integer_pow(jnp.asarray(scale, x.dtype) * inner + jnp.asarray(offset, x.dtype), degree)
