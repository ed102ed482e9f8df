"""Samples, powers of distances and Gaussian Gram matrices shared by the two-sample divergences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.distances import distances, squared_distances
from jaxdiv.core.numerics import logsumexp
from jaxdiv.core.types import Numeric


def sample(
    name: str, x: Float[Array, "*b n d"], weights: Float[Array, "*b n"] | None = None
) -> tuple[Float[Array, "*b n d"], Float[Array, "*b n"]]:
    """Checks a sample and returns it with weights that sum to 1.

    Points of weight 0 are replaced by zeros, so that padding may hold anything, NaN included.

    Args:
        name: The argument's name, for messages.
        x: Points, [*b, n, d].
        weights: Nonnegative weights, [*b, n]; equal by default. A point of weight 0 is absent.

    Returns:
        The points in float32 or float64, and the normalized weights.

    Raises:
        ValueError: If `x` is not floating, has rank below 2 or no point, or `weights` does not have
            the leading shape of `x`.
    """
    x = checks.floating(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must be [..., n, d]; got shape {x.shape}; add the missing axis.")
    checks.not_empty(name, x)
    if weights is None:
        return x, jnp.full(x.shape[:-1], 1.0 / x.shape[-2], x.dtype)
    weights = jnp.asarray(weights).astype(x.dtype)
    if weights.shape != x.shape[:-1]:
        raise ValueError(
            f"the weights of {name} must have shape {x.shape[:-1]}; got {weights.shape}; give one per point."
        )
    x = jnp.where(weights[..., None] > 0, x, 0.0)
    return x, weights / jnp.sum(weights, axis=-1, keepdims=True)


def same_space(name_x: str, x: Array, name_y: str, y: Array) -> None:
    """Raises ValueError unless two samples share their batch axes and their dimension."""
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{name_x} and {name_y} must share their batch axes and dimension; "
            f"got shapes {x.shape} and {y.shape}."
        )


def same_examples(name_x: str, x: Array, name_y: str, y: Array) -> None:
    """Raises ValueError unless two arrays hold the same number of examples in the same batch axes."""
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f"{name_x} and {name_y} must hold the same examples; got shapes {x.shape} and {y.shape}."
        )


def power_distances(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"] | None = None, *, exponent: Numeric
) -> Float[Array, "*b n m"]:
    """Returns `|x_i - y_j|^exponent`, exponent in (0, 2), with gradient 0 between equal points."""
    checks.in_range("exponent", exponent, 0.0, 2.0, open_low=True, open_high=True)
    if isinstance(exponent, int | float) and exponent == 1:
        return distances(x, y)
    squared = squared_distances(x, y)
    positive = squared > 0
    return jnp.where(positive, jnp.where(positive, squared, 1.0) ** (0.5 * exponent), 0.0)


def log_gaussian_gram(
    x: Float[Array, "*b n d"], y: Float[Array, "*b m d"] | None = None, *, sigma: Numeric
) -> Float[Array, "*b n m"]:
    """Returns `-|x_i - y_j|^2 / (2 sigma^2)`; `sigma` is a scalar or has the batch axes of `x`."""
    checks.in_range("sigma", sigma, 0.0, open_low=True)
    scale = jnp.asarray(sigma, x.dtype)[..., None, None]
    return -0.5 * squared_distances(x, y) / jnp.square(scale)


def mean_cross(
    values: Float[Array, "*b n m"], u: Float[Array, "*b n"], v: Float[Array, "*b m"]
) -> Float[Array, "*b"]:
    """Returns `sum_ij u_i v_j values_ij`, row by row so that float32 sums stay short."""
    rows = jnp.einsum("...ij,...j->...i", values, v, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(u * rows, axis=-1)


def mean_pair(
    values: Float[Array, "*b n n"], u: Float[Array, "*b n"], *, distinct: bool, name: str
) -> Float[Array, "*b"]:
    """Returns the mean of `values` over all pairs, or over the pairs of two different points.

    Raises:
        ValueError: If `distinct` and there is only one point.
    """
    if not distinct:
        return mean_cross(values, u, u)
    n = values.shape[-1]
    if n < 2:
        raise ValueError(f"{name} must hold at least 2 points for an unbiased estimate; got {n}.")
    off_diagonal = jnp.where(jnp.eye(n, dtype=bool), 0.0, values)
    return mean_cross(off_diagonal, u, u) / jnp.sum(u * (1.0 - u), axis=-1)


def log_mean(
    log_values: Float[Array, "*b n m"], u: Float[Array, "*b n"], v: Float[Array, "*b m"]
) -> Float[Array, "*b"]:
    """Returns `log sum_ij u_i v_j exp(log_values_ij)`, row by row so that float32 sums stay short."""
    return logsumexp(logsumexp(log_values, -1, weights=v[..., None, :]), -1, weights=u)


def median_distance(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b m d"] | None = None,
    *,
    x_weights: Float[Array, "*b n"] | None = None,
    y_weights: Float[Array, "*b m"] | None = None,
) -> Float[Array, "*b"]:
    """The median heuristic: the median distance between two different points of the pooled sample.

    Args:
        x: Points, [*b, n, d].
        y: More points, [*b, m, d], pooled with `x`.
        x_weights: Weights of `x`, [*b, n]; points of weight 0 are left out, other weights count once.
        y_weights: Weights of `y`, [*b, m].

    Returns:
        The median, [*b]; the mean distance where more than half the points coincide, 1 where all do.
        A constant to differentiation, as a bandwidth should be.

    Raises:
        ValueError: If a sample is not floating, has the wrong rank, or the two do not fit together.

    References:
        Gretton et al. (2012), A kernel two-sample test, section 8.

    Example:
        >>> float(median_distance(jnp.array([[0.0], [1.0], [5.0]])))
        4.0
    """
    points, weights = sample("x", x, x_weights)
    if y is not None:
        more, more_weights = sample("y", y, y_weights)
        same_space("x", points, "y", more)
        points = jnp.concatenate([points, more], axis=-2)
        weights = jnp.concatenate([weights, more_weights], axis=-1)
    points, weights = jax.lax.stop_gradient((points, weights))
    if points.shape[-2] == 1:
        return jnp.ones(points.shape[:-2], points.dtype)
    i, j = jnp.triu_indices(points.shape[-2], k=1)
    present = (weights[..., i] > 0) & (weights[..., j] > 0)
    pairs = distances(points)[..., i, j]
    count = jnp.sum(present, axis=-1, keepdims=True)
    mean = jnp.sum(jnp.where(present, pairs, 0.0), axis=-1) / jnp.maximum(count[..., 0], 1)
    # Absent pairs go to the end, so that the middle is counted among the present ones.
    ordered = jnp.sort(jnp.where(present, pairs, jnp.inf), axis=-1)
    middle = jnp.maximum(jnp.concatenate([count - 1, count], axis=-1) // 2, 0)
    median = jnp.mean(jnp.take_along_axis(ordered, middle, axis=-1, mode="clip"), axis=-1)
    return jnp.where(mean == 0, 1.0, jnp.where(median == 0, mean, median))
