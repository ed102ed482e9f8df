r"""Exact transport on the line: sort, and match quantiles.

For every convex cost of x - y the monotone coupling is optimal:

    W_p^p(a, b) = int |F^-1(t) - G^-1(t)|^p dt = sum_k mass_k |x_(i_k) - y_(j_k)|^p.

The cumulative weights A_1 <= ... <= A_(n-1) and B_1 <= ... <= B_(m-1) of the sorted points cut the mass
into n + m - 1 cells. Behind a cut A_i the row goes from i to i + 1, behind a cut B_j the column from j to
j + 1: a staircase from (1, 1) to (n, m), which is the north-west corner rule. Cuts that coincide leave cells
of mass 0 and the staircase whole. So it is a basis of the linear program, and since costs of sorted points
are a Monge matrix, a dual feasible one: the derivatives of the cost in the weights are optimal dual
potentials, at ties as well.

A weight of 1e-5 is a difference of cumulative weights near 1; they are summed in twice the precision.

References:
    Peyré, Cuturi (2019), Computational optimal transport, remarks 2.28 and 2.30, section 3.4.2.
    Burkard, Klinz, Rudolf (1996), Perspectives of Monge properties in optimization, section 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiv.core import two_sum
from jaxdiv.core.types import Numeric
from jaxdiv.ot.measures import measures


@jax.custom_jvp
def _cumulative(a: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Cumulative sums and their rounding errors."""

    def add(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        high, error = two_sum(one[0], two[0])
        return two_sum(high, error + one[1] + two[1])

    return jax.lax.associative_scan(add, (a, jnp.zeros_like(a)))


@_cumulative.defjvp
def _cumulative_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    tangent = jnp.cumsum(tangents[0])
    return _cumulative(*primals), (tangent, jnp.zeros_like(tangent))


def _count_below(keys: tuple[Array, Array], queries: tuple[Array, Array]) -> Int[Array, " n"]:
    """How many of the sorted keys are less than each query, both of them sums with their rounding errors."""
    size = keys[0].shape[0]

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        key, error = keys[0][middle], keys[1][middle]
        less = (key < queries[0]) | ((key == queries[0]) & (error < queries[1]))
        less &= low < high
        return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

    low = jnp.zeros(queries[0].shape, jnp.int32)
    return jax.lax.fori_loop(0, size.bit_length(), halve, (low, low + size))[0]


def _staircase(
    a: Float[Array, " n"], b: Float[Array, " m"]
) -> tuple[Int[Array, " n+m-1"], Int[Array, " n+m-1"], Float[Array, " n+m-1"]]:
    """Rows, columns and masses of the cells, for the weights of sorted points."""
    n, m = a.shape[0], b.shape[0]
    a_sums, b_sums = _cumulative(a), _cumulative(b)
    before = _count_below(*jax.lax.stop_gradient((b_sums, a_sums)))
    # Rounding may let a sum fall where a weight is 0; counts must not. The last cell ends with row n.
    before = jnp.minimum(jax.lax.cummax(before), m - 1).at[-1].set(m - 1)
    ends_row = jnp.zeros(n + m - 1, bool).at[jnp.arange(n) + before].set(True)
    rows = jnp.cumsum(ends_row, dtype=jnp.int32) - ends_row
    columns = jnp.arange(n + m - 1, dtype=jnp.int32) - rows
    high, low = (jnp.where(ends_row, u[rows], v[columns]) for u, v in zip(a_sums, b_sums, strict=True))
    mass = jnp.diff(high, prepend=0.0) + jnp.diff(low, prepend=0.0)
    return rows, columns, mass - jax.lax.stop_gradient(jnp.minimum(mass, 0.0))


def _equal_weights(n: int, m: int, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """Rows, columns and masses of the cells that have mass when all weights are 1/n and 1/m."""
    # In units of 1 / (n m) the cuts are integers.
    cuts = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], cuts[:-1]])
    mass = (cuts - starts) / (n * m)
    return jnp.asarray(starts // m, jnp.int32), jnp.asarray(starts // n, jnp.int32), jnp.asarray(mass, dtype)


def monotone_cost(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"] | None,
    b: Float[Array, " m"] | None,
    p: Numeric,
) -> Float[Array, ""]:
    """The cost between two measures that `measures` has checked."""
    order_x, order_y = (jnp.argsort(jax.lax.stop_gradient(z)) for z in (x, y))
    if a is None or b is None:
        rows, columns, mass = _equal_weights(x.shape[0], y.shape[0], x.dtype)
    else:
        rows, columns, mass = _staircase(a[order_x], b[order_y])
    gap = x[order_x[rows]] - y[order_y[columns]]
    return jnp.sum(mass * _power(gap, p))


def _power(gap: Float[Array, " k"], p: Numeric) -> Float[Array, " k"]:
    if isinstance(p, int | float) and p == 2:
        return gap * gap
    gap = jnp.abs(gap)
    if isinstance(p, int | float) and p == 1:
        return gap
    # The power has no derivative in p at 0.
    positive = gap > 0
    return jnp.where(positive, jnp.where(positive, gap, 1.0) ** p, 0.0)


def univariate(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    p: Numeric = 2,
) -> Float[Array, ""]:
    """Exact transport cost ``W_p^p`` between weighted points on the line.

    Args:
        x: Points, [n].
        y: Points, [m].
        a: Nonnegative weights of x, [n]; 1/n by default. A point of weight 0 is absent and may hold anything.
        b: Weights of y, [m], of the same mass; 1/m by default.
        p: The power, at least 1.

    Returns:
        The cost in float32, or float64 where an input is float64; its p-th root is the Wasserstein distance.
        NaN where traced weights are negative or of different masses.

    Raises:
        ValueError: If points or weights are not floating or have the wrong shape, a concrete `p` is below 1
            or infinite, or concrete weights are negative, NaN or of different masses.

    Note:
        Time (n + m) log(n + m), memory n + m. The derivatives in a and b are optimal dual potentials, so they
        hold for changes that keep the masses equal. Where points of different masses change places the cost
        has a kink, and the derivative is one of its subgradients; that of ``|x - y|`` at 0 is 0.

    References:
        Peyré, Cuturi (2019), Computational optimal transport, remark 2.30.

    Example:
        >>> float(univariate(jnp.array([3.0, 0.0]), jnp.array([1.0, 5.0])))
        2.5
        >>> float(univariate(jnp.array([0.0, 1.0]), jnp.array([2.0]), jnp.array([0.25, 0.75]), p=1))
        1.25
    """
    return monotone_cost(*measures(x, y, a, b, rank=1, p=p), p)


def univariate_plan(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> tuple[Int[Array, " n+m-1"], Int[Array, " n+m-1"], Float[Array, " n+m-1"]]:
    """The monotone coupling of weighted points on the line, optimal for every convex cost of x - y.

    Args:
        x: Points, [n].
        y: Points, [m].
        a: Nonnegative weights of x, [n]; 1/n by default.
        b: Weights of y, [m], of the same mass; 1/m by default.

    Returns:
        Rows, columns and masses [n + m - 1] of the entries of the plan, in the order of the points on the
        line; ``jnp.zeros((n, m)).at[rows, columns].add(mass)`` is the matrix. Some masses may be 0.

    Raises:
        ValueError: As `univariate` does.

    Example:
        >>> rows, columns, mass = univariate_plan(jnp.array([3.0, 0.0]), jnp.array([1.0, 5.0]))
        >>> rows.tolist(), columns.tolist(), mass.tolist()
        ([1, 0, 0], [0, 0, 1], [0.5, 0.0, 0.5])
    """
    x, y, a, b = measures(x, y, a, b, rank=1)
    if a is None or b is None:
        a, b = (jnp.full(z.shape, 1.0 / z.shape[0], z.dtype) for z in (x, y))
    order_x, order_y = (jnp.argsort(jax.lax.stop_gradient(z)) for z in (x, y))
    rows, columns, mass = _staircase(a[order_x], b[order_y])
    return order_x[rows], order_y[columns], mass
