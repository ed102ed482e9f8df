r"""Sorting, ranking, selecting and quantiles as transport to increasing targets.

Values x, squashed into [0, 1] to z, are transported to targets y_1 < ... < y_m at the cost (z - y)^2. Without
regularization the plan P is monotone: the targets get the values in increasing order. With the entropy P is
smooth in x, and so are

    sort      s_j = sum_i P_ij x_i / sum_i P_ij,     m targets of mass 1/m
    rank      r_i = sum_j P_ij t_j / sum_j P_ij,     t from 0 to n - 1
    top k     p_i = P_i2 / (P_i1 + P_i2),            two targets of masses 1 - k/n and k/n
    quantile  sum_i P_i2 x_i / sum_i P_i2,           three targets of masses q - w/2, w, 1 - q - w/2

The ratios are means of x, or of t, whatever has become of the marginals. As exp(2 z y / epsilon) is totally
positive, they increase along the targets and with x: s is increasing, and r and p order the points as x does.
They tend to the sorted values, the ranks, the k largest and the quantiles as epsilon tends to 0, and to their
means as it tends to infinity.

References:
    Cuturi, Teboul, Vert (2019), Differentiable ranking and sorting using optimal transport, definitions 1-3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks, safe_sqrt
from jaxdiv.core.types import Numeric
from jaxdiv.ot.newton import SinkhornNewton
from jaxdiv.ot.point_cloud import PointCloud
from jaxdiv.ot.solve import solve
from jaxdiv.ot.transport import Transport
from jaxdiv.ot.univariate import monotone_cost

# Targets up to which Newton's method is the default: its linear systems are as large.
_NEWTON = 256


def standardize(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The logistic function of the standardized values; 1/2 where all are equal."""
    centered = x - jnp.mean(x)
    scale = safe_sqrt(jnp.mean(centered**2))
    return jax.nn.sigmoid(centered / jnp.where(scale > 0, scale, 1.0))


def soft_sort(
    x: Float[Array, "*lanes n"],
    *,
    epsilon: Numeric = 1e-2,
    num_targets: int | None = None,
    axis: int = -1,
    squash: Callable[[Array], Array] = standardize,
    solver: Any = None,
) -> Float[Array, "*lanes m"]:
    """Values in increasing order, each a mean of all.

    Args:
        x: Values, sorted along `axis`.
        epsilon: Strength of the entropy, positive, for squashed values between 0 and 1.
        num_targets: How many sorted values to return, m; n by default. Each stands for n/m values.
        axis: The axis to sort.
        squash: An increasing function of the values [n] into [0, 1]; by default the logistic function of the
            standardized values, which makes all results equivariant to increasing affine functions of x.
        solver: A solver for `solve`; by default `SinkhornNewton` up to 256 targets, then that of `solve`.

    Returns:
        Increasing values between the least and the largest of x, float32 or, for float64 input, float64.

    Raises:
        ValueError: If x is not floating or empty, or an option is out of its range.

    Note:
        Derivatives are those of the optimum. The error of the solve shifts the weights of the means, no more.

    References:
        Cuturi, Teboul, Vert (2019), Differentiable ranking and sorting using optimal transport, definition 2.

    Example:
        >>> x = jnp.array([3.0, 1.0, 2.0])
        >>> soft_sort(x, epsilon=1e-3).round(2).tolist()
        [1.0, 2.0, 3.0]
    """

    def one(x: Float[Array, " n"]) -> Float[Array, " m"]:
        m = x.shape[0] if num_targets is None else num_targets
        out = _transport(x, jnp.full((m,), 1.0 / m, x.dtype), epsilon, squash, solver)
        return _means(out, x, axis=0)

    if num_targets is not None:
        checks.in_range("num_targets", num_targets, 1)
    return _along(one, x, axis)


def soft_rank(
    x: Float[Array, "*lanes n"],
    *,
    epsilon: Numeric = 1e-2,
    num_targets: int | None = None,
    axis: int = -1,
    squash: Callable[[Array], Array] = standardize,
    solver: Any = None,
) -> Float[Array, "*lanes n"]:
    """The rank of each value among all, from 0 for the least to n - 1.

    Args:
        x: Values, ranked along `axis`.
        epsilon: As in `soft_sort`.
        num_targets: How many targets stand for the ranks from 0 to n - 1; n by default. Fewer cost less.
        axis: The axis to rank.
        squash: As in `soft_sort`.
        solver: As in `soft_sort`.

    Returns:
        Ranks between 0 and n - 1, in the order of x and shaped like it, float32 or float64. Equal values
        have equal ranks.

    Raises:
        ValueError: As `soft_sort` does.

    References:
        Cuturi, Teboul, Vert (2019), Differentiable ranking and sorting using optimal transport, definition 1.

    Example:
        >>> soft_rank(jnp.array([3.0, 1.0, 2.0]), epsilon=1e-3).round(2).tolist()
        [2.0, 0.0, 1.0]
    """

    def one(x: Float[Array, " n"]) -> Float[Array, " n"]:
        n = x.shape[0]
        m = n if num_targets is None else num_targets
        out = _transport(x, jnp.full((m,), 1.0 / m, x.dtype), epsilon, squash, solver)
        return _means(out, jnp.linspace(0.0, n - 1.0, m, dtype=x.dtype), axis=1)

    if num_targets is not None:
        checks.in_range("num_targets", num_targets, 2)
    return _along(one, x, axis)


def soft_top_k(
    x: Float[Array, "*lanes n"],
    k: Numeric,
    *,
    epsilon: Numeric = 1e-2,
    axis: int = -1,
    squash: Callable[[Array], Array] = standardize,
    solver: Any = None,
) -> Float[Array, "*lanes n"]:
    """A mask of the k largest values: entries between 0 and 1 that sum to k.

    Args:
        x: Values, selected along `axis`.
        k: How many to select, from 0 to n; may be fractional.
        epsilon: As in `soft_sort`.
        axis: The axis to select along.
        squash: As in `soft_sort`.
        solver: As in `soft_sort`.

    Returns:
        The mask, in the order of x and shaped like it, float32 or float64.

    Raises:
        ValueError: As `soft_sort` does, and if a concrete k is below 0 or above n.

    References:
        Cuturi, Teboul, Vert (2019), Differentiable ranking and sorting using optimal transport, section 4.

    Example:
        >>> soft_top_k(jnp.array([3.0, 1.0, 2.0]), 2, epsilon=1e-2).round(2).tolist()
        [1.0, 0.0, 1.0]
    """

    def one(x: Float[Array, " n"]) -> Float[Array, " n"]:
        checks.in_range("k", k, 0, x.shape[0])
        share = jnp.asarray(k, x.dtype) / x.shape[0]
        out = _transport(x, jnp.stack([1.0 - share, share]), epsilon, squash, solver)
        return _means(out, jnp.arange(2, dtype=x.dtype), axis=1)

    return _along(one, x, axis)


def soft_quantile(
    x: Float[Array, "*lanes n"],
    q: Numeric | Float[Array, " m"],
    *,
    epsilon: Numeric = 1e-2,
    width: Numeric | None = None,
    axis: int = -1,
    squash: Callable[[Array], Array] = standardize,
    solver: Any = None,
) -> Float[Array, "*lanes m"]:
    """Quantiles, each a mean of the values around it.

    Args:
        x: Values along `axis`.
        q: Levels between 0 and 1, in any order.
        epsilon: As in `soft_sort`.
        width: The share of the values that a quantile is the mean of, between 0 and 1; 1/n by default.
            Windows that would reach beyond the least or the largest value stop there.
        axis: The axis of the values; in the result that of the levels, or none for a scalar q.
        squash: As in `soft_sort`.
        solver: As in `soft_sort`.

    Returns:
        The quantiles, float32 or float64, increasing in q. In the limit of a small epsilon those of
        ``jnp.sort(x)`` taken at ``n q - 1/2`` with linear interpolation (Hazen's definition).

    Raises:
        ValueError: As `soft_sort` does, and if concrete levels or a concrete width are out of range.

    References:
        Cuturi, Teboul, Vert (2019), Differentiable ranking and sorting using optimal transport, section 3.

    Example:
        >>> x = jnp.array([3.0, 1.0, 2.0, 7.0, 5.0])
        >>> soft_quantile(x, jnp.array([0.5, 0.9]), epsilon=1e-3).round(1).tolist()
        [3.0, 7.0]
    """
    checks.rank("q", jnp.asarray(q), 0, 1)
    checks.in_range("q", q, 0.0, 1.0)
    if width is not None:
        checks.in_range("width", width, 0.0, 1.0, open_low=True)

    def one(x: Float[Array, " n"]) -> Float[Array, " m"]:
        share = jnp.asarray(1.0 / x.shape[0] if width is None else width, x.dtype)

        def at(q: Float[Array, ""]) -> Float[Array, ""]:
            below = jnp.clip(q - share / 2, 0.0, 1.0 - share)
            # The masses sum to 1 to the last bit.
            b = jnp.stack([below, share, jnp.maximum(1.0 - below - share, 0.0)])
            return _means(_transport(x, b, epsilon, squash, solver), x, axis=0)[1]

        levels = jnp.asarray(q, x.dtype)
        return jax.vmap(at)(levels.ravel()).reshape(levels.shape)

    return _along(one, x, axis)


def _transport(
    x: Float[Array, " n"],
    b: Float[Array, " m"],
    epsilon: Numeric,
    squash: Callable[[Array], Array],
    solver: Any,
) -> Transport:
    """The transport of the squashed values to targets of masses b, from the potentials without entropy."""
    checks.in_range("epsilon", epsilon, 0.0, open_low=True)
    z, y = squash(x), jnp.linspace(0.0, 1.0, b.shape[0], dtype=x.dtype)
    a = jnp.full(x.shape, 1.0 / x.shape[0], x.dtype)
    if solver is None and b.shape[0] <= _NEWTON:
        # From good potentials, without the larger epsilons at which a plan nearly without entropy is lost.
        solver = SinkhornNewton(tol=float(np.finfo(x.dtype).eps) ** 0.75, factor=None)
    init = jax.grad(monotone_cost, (2, 3))(*jax.lax.stop_gradient((z, y, a, b)), 2)
    return solve(PointCloud(z[:, None], y[:, None]), a, b, epsilon=epsilon, solver=solver, init=init)


def _means(out: Transport, values: Float[Array, " n"], axis: int) -> Float[Array, " m"]:
    """Means of the values under the plan, along an axis."""
    center = jax.lax.stop_gradient(jnp.mean(values))
    moved = out.apply(jnp.stack([values - center, jnp.ones_like(values)], axis=1), axis=axis)
    mass = moved[:, 1]
    return center + moved[:, 0] / jnp.where(mass > 0, mass, 1.0)


def _along(fn: Callable[[Array], Array], x: Array, axis: int) -> Array:
    """Maps a function of one vector over all others, whose axis gets what it returns."""
    x = checks.floating("x", x)
    checks.not_empty("x", x)
    (axis,) = checks.axes("x", x, axis)
    if x.ndim == 1:
        return fn(x)
    lanes = jnp.moveaxis(x, axis, -1)
    out = jax.vmap(fn)(lanes.reshape(-1, lanes.shape[-1]))
    out = out.reshape(*lanes.shape[:-1], *out.shape[1:])
    return jnp.moveaxis(out, -1, axis) if out.ndim == x.ndim else out
