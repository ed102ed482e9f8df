r"""Maximum mean discrepancy between two samples, squared.

    MMD^2(P, Q) = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

- the V-statistic takes all pairs: the discrepancy of the empirical measures, nonnegative;
- the U-statistic leaves out `i = j` within a sample: unbiased, negative about half the time when P = Q;
- the linear-time statistic averages `k(x, x') + k(y, y') - k(x, y') - k(x', y)` over disjoint pairs of
  consecutive points: unbiased, memory O(n), for streams.

References: Gretton et al. (2012), A kernel two-sample test, eqs. (3), (5) and lemma 14.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.divergences import pairwise
from jaxdiv.divergences.kernels import Kernel, gaussian_kernel


def mmd2(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b m d"],
    *,
    kernel: Kernel | None = None,
    unbiased: bool = False,
    x_weights: Float[Array, "*b n"] | None = None,
    y_weights: Float[Array, "*b m"] | None = None,
) -> Float[Array, "*b"]:
    """Squared maximum mean discrepancy, V-statistic or U-statistic.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        kernel: Any `(x, y) -> Gram matrix`; by default `gaussian_kernel` with the median distance of the
            pooled sample as bandwidth.
        unbiased: Whether to take the U-statistic; needs two points per sample.
        x_weights: Nonnegative weights, [*b, n], normalized here; 0 = absent. The U-statistic weighs a
            pair by the product and is unbiased for any weights that do not depend on the points.
        y_weights: Weights of `y`, [*b, m].

    Returns:
        MMD^2, [*b].

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, the two do not fit together, or
            `unbiased` meets a sample of one point.

    References:
        Gretton et al. (2012), A kernel two-sample test, eqs. (3) and (5).

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> float(mmd2(x, x))
        0.0
    """
    x, u = pairwise.sample("x", x, x_weights)
    y, v = pairwise.sample("y", y, y_weights)
    pairwise.same_space("x", x, "y", y)
    if kernel is None:
        bandwidth = pairwise.median_distance(x, y, x_weights=u, y_weights=v)
        kernel = partial(gaussian_kernel, bandwidth=bandwidth)
    within_x = pairwise.mean_pair(kernel(x, x), u, distinct=unbiased, name="x")
    within_y = pairwise.mean_pair(kernel(y, y), v, distinct=unbiased, name="y")
    return within_x + within_y - 2.0 * pairwise.mean_cross(kernel(x, y), u, v)


def linear_mmd2(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b n d"],
    *,
    kernel: Kernel,
    x_weights: Float[Array, "*b n"] | None = None,
    y_weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Squared maximum mean discrepancy in linear time and memory; unbiased.

    Args:
        x: Points, [*b, n, d], n at least 2; the last one is unused if n is odd.
        y: Points, [*b, n, d].
        kernel: Any `(x, y) -> Gram matrix`.
        x_weights: Nonnegative weights, [*b, n]; a term weighs the product of its four points' weights.
        y_weights: Weights of `y`, [*b, n].

    Returns:
        The estimate, [*b]; may be negative.

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, the shapes differ, or n < 2.

    References:
        Gretton et al. (2012), A kernel two-sample test, lemma 14.

    Example:
        >>> from jaxdiv.divergences import distance_kernel
        >>> x, y = jnp.array([[0.0], [0.0]]), jnp.array([[1.0], [1.0]])
        >>> float(linear_mmd2(x, y, kernel=distance_kernel))
        1.0
    """
    x, u = pairwise.sample("x", x, x_weights)
    y, v = pairwise.sample("y", y, y_weights)
    pairwise.same_space("x", x, "y", y)
    pairwise.same_examples("x", x, "y", y)
    half = x.shape[-2] // 2
    if half == 0:
        raise ValueError(f"x must hold at least 2 points; got shape {x.shape}.")

    def k(a: Array, b: Array) -> Array:
        # Each pair is a batch of its own, in front of *b so that options of shape [*b] stay aligned.
        a, b = (jnp.moveaxis(z, -2, 0)[..., None, :] for z in (a, b))
        return jnp.moveaxis(kernel(a, b)[..., 0, 0], 0, -1)

    first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    x1, x2, y1, y2 = x[..., first, :], x[..., second, :], y[..., first, :], y[..., second, :]
    weight = u[..., first] * u[..., second] * v[..., first] * v[..., second]
    terms = k(x1, x2) + k(y1, y2) - k(x1, y2) - k(x2, y1)
    return jnp.sum(weight * terms, axis=-1) / jnp.sum(weight, axis=-1)
