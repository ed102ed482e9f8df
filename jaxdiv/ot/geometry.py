"""The cost between two supports, seen through the few reductions that solvers need.

With potentials h on one side and weights w there, everything that entropic transport asks of a cost matrix C
[n, m] is

    softmin over columns    s_i = -epsilon log sum_j w_j exp((h_j - C_ij) / epsilon)
    softmin over rows       s_j = -epsilon log sum_i w_i exp((h_i - C_ij) / epsilon)
    a kernel times a vector sum_j exp((f_i + g_j - C_ij) / epsilon) v_j

and what other regularizers ask are functions of whole rows or columns. `CostMatrix` holds C, `jaxdiv.ot.PointCloud`
the points and `jaxdiv.ot.Grid` the axes of a grid. A geometry of one's own is any pytree with the methods of
`Geometry`.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks, pytree_dataclass
from jaxdiv.core.types import Numeric


class Geometry(Protocol):
    """What solvers ask of a cost; `axis` is the axis of C that is summed."""

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""

    @property
    def dtype(self) -> Any:
        """The dtype of the costs, float32 or float64."""

    def softmin(self, h: Array, weights: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum weights exp((h - C) / epsilon)`` over the columns (axis=1) or rows (axis=0)."""

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)`` times v [m, ...] (axis=1), or its transpose times v [n, ...]."""

    def map_rows(self, fn: Callable[..., PyTree], *arrays: Array) -> PyTree:
        """Joins the rows of ``fn(costs [r, m] of r rows, *rows of the arrays)`` over all rows."""

    def transpose(self) -> "Geometry":
        """The geometry of the transposed costs."""

    def dense(self) -> "Geometry":
        """A `CostMatrix` where n m numbers may be held, else itself."""

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, all of it."""


@runtime_checkable
class Separable(Protocol):
    """A geometry that sums its costs without visiting all pairs."""

    def mean_cost(self, a: Array, b: Array) -> Float[Array, ""]:
        """The mean absolute cost over the pairs of two weighted measures."""

    def apply_costs(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``C exp((f + g - C) / epsilon)``, or its transpose, times v."""


def softmin(h: Array, weights: Array, cost: Float[Array, "n m"], epsilon: Numeric, axis: int) -> Array:
    """``-epsilon log sum weights exp((h - C) / epsilon)``; +inf where nothing has weight.

    The shift is the largest term that has weight; one without may stand above it, and is capped. The
    derivative with respect to a weight of 0 is therefore right as well.
    """
    shown = jnp.where(weights > 0, h, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(along(shown, axis) - cost, axis))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    exponent = (along(h, axis) - cost - jnp.expand_dims(top, axis)) / epsilon
    terms = capped_exp(exponent)
    # A product: XLA sums a fused exponential over rows ten times slower.
    total = jnp.matmul(
        *((terms, weights) if axis == 1 else (weights, terms)), precision=jax.lax.Precision.HIGHEST
    )
    return shifted_softmin(top, total, epsilon)


def shifted_softmin(top: Array, total: Array, epsilon: Numeric) -> Array:
    """``-epsilon log(exp(top / epsilon) total)``, +inf without derivative where the total is 0."""
    some = total > 0
    return -top - epsilon * jnp.where(some, jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)


def capped_exp(x: Array) -> Array:
    """``exp(x)``, at most the root of the largest number: finite where points without weight meet."""
    return jnp.exp(jnp.minimum(x, jnp.log(jnp.finfo(x.dtype).max) / 2))


def along(h: Array, axis: int) -> Array:
    """A vector shaped to stand along an axis of the cost matrix."""
    return h[None, :] if axis == 1 else h[:, None]


def product(matrix: Float[Array, "n m"], v: Array) -> Array:
    """A matrix times v [m, ...] at the highest precision."""
    flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
    out = jnp.matmul(matrix, flat, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(matrix.shape[0], *v.shape[1:])


def mean_cost(geometry: Geometry, a: Array, b: Array) -> Float[Array, ""]:
    """The mean absolute cost over the pairs of two weighted measures."""
    if isinstance(geometry, Separable):
        return geometry.mean_cost(a, b)
    rows = geometry.map_rows(lambda cost: product(jnp.abs(cost), b))
    return jnp.vdot(a, rows) / (jnp.sum(a) * jnp.sum(b))


def std_cost(geometry: Geometry, a: Array, b: Array) -> Float[Array, ""]:
    """The standard deviation over the pairs of two weighted measures."""
    total = jnp.sum(a) * jnp.sum(b)
    mean = jnp.vdot(a, geometry.map_rows(lambda cost: product(cost, b))) / total
    rows = geometry.map_rows(lambda cost: product((cost - mean) ** 2, b))
    return jnp.sqrt(jnp.vdot(a, rows) / total)


def max_cost(geometry: Geometry, a: Array, b: Array) -> Float[Array, ""]:
    """The largest absolute cost between points of weight."""
    rows = geometry.map_rows(lambda cost: jnp.max(jnp.where(b > 0, jnp.abs(cost), 0.0), axis=1))
    return jnp.max(jnp.where(a > 0, rows, 0.0))


def excess_cost(geometry: Geometry) -> Float[Array, ""]:
    """The mean cost above the least of its row: a scale that shifts of rows do not change."""
    return jnp.mean(geometry.map_rows(lambda cost: jnp.mean(cost, axis=1) - jnp.min(cost, axis=1)))


@pytree_dataclass
class CostMatrix:
    """A cost matrix.

    Args:
        cost: C [n, m], floating; half precisions are raised to float32.

    Raises:
        ValueError: If `cost` is not a floating matrix with at least one row and column, or a concrete entry
            is not finite.

    Example:
        >>> CostMatrix(jnp.ones((2, 3))).shape
        (2, 3)
    """

    cost: Float[Array, "n m"]

    def __post_init__(self) -> None:
        cost = checks.floating("cost", self.cost)
        checks.rank("cost", cost, 2)
        checks.not_empty("cost", cost)
        finite("cost", cost)
        object.__setattr__(self, "cost", cost)

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""
        n, m = self.cost.shape
        return n, m

    @property
    def dtype(self) -> Any:
        """The dtype of the costs."""
        return self.cost.dtype

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C."""
        return self.cost

    def dense(self) -> "CostMatrix":
        """Itself."""
        return self

    def transpose(self) -> "CostMatrix":
        """The transposed costs."""
        return unchecked(self.cost.T)

    def softmin(self, h: Array, weights: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum weights exp((h - C) / epsilon)`` over an axis."""
        return softmin(h, weights, self.cost, epsilon, axis)

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v."""
        kernel = capped_exp((f[:, None] + g - self.cost) / epsilon)
        return product(kernel if axis == 1 else kernel.T, v)

    def map_rows(self, fn: Callable[..., PyTree], *arrays: Array) -> PyTree:
        """``fn(C, *arrays)``."""
        return fn(self.cost, *arrays)


def unchecked(cost: Float[Array, "n m"]) -> CostMatrix:
    """A cost matrix whose entries are not looked at."""
    structure = jax.tree.structure(CostMatrix(jnp.zeros((1, 1))))
    return jax.tree.unflatten(structure, [cost])


def finite(name: str, x: Array) -> None:
    """Raises ValueError where a concrete entry is not finite; closed-over arrays are concrete under jit too."""
    if not checks.concrete(x):
        return
    with jax.ensure_compile_time_eval():
        fine = bool(jnp.all(jnp.isfinite(x)))
    if not fine:
        bad = np.argwhere(~np.isfinite(np.asarray(x)))[0]
        raise ValueError(
            f"{name} must be finite; got {x[tuple(bad)]} at {bad.tolist()}; give weight 0 to what must not "
            "take part, or a large finite cost to what must not be matched."
        )
