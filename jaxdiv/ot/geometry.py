"""The cost between two supports, seen through the few reductions that solvers need.

With a potential h on one side, everything that entropic transport asks of a cost matrix C [n, m] is

    softmin over columns    s_i = -epsilon log sum_j exp((h_j - C_ij) / epsilon)
    softmin over rows       s_j = -epsilon log sum_i exp((h_i - C_ij) / epsilon)
    a plan times a vector   sum_j exp((f_i + g_j - C_ij) / epsilon) v_j

where logarithms of weights are part of h, f and g. A geometry is a pytree with ``shape``, ``dtype``,
``softmin(h, epsilon, axis)``, ``apply(f, g, epsilon, v, axis)`` and ``cost_matrix()``. `CostMatrix` holds C.
`PointCloud` holds the points and fills blocks of rows one after another where n m numbers would be too many:
forward, backward and under vmap it then needs memory of one block.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cost, SqEuclidean, block

# Numbers in a cost matrix above which a point cloud is streamed, and numbers in one of its blocks.
DENSE_LIMIT = 2**26
BLOCK_LIMIT = 2**22


class Geometry(Protocol):
    """What solvers ask of a cost."""

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the costs, float32 or float64."""

    def softmin(self, h: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum exp((h - C) / epsilon)`` over the columns (axis=1) or the rows (axis=0)."""

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)`` times v [m, ...] (axis=1), or its transpose times v [n, ...]."""

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, all of it."""

    def mean_cost(self) -> Float[Array, ""]:
        """The mean over all pairs."""


def softmin(z: Float[Array, "n m"], epsilon: Numeric, axis: int) -> Array:
    """``-epsilon log sum exp(z / epsilon)`` with the shift by the maximum; +inf where nothing is finite."""
    top = jax.lax.stop_gradient(jnp.max(z, axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp((z - top) / epsilon), axis)
    return -jnp.squeeze(top, axis) - epsilon * jnp.log(total)


def _along(h: Array, axis: int) -> Array:
    return h[None, :] if axis == 1 else h[:, None]


@pytree_dataclass
class CostMatrix:
    """A cost matrix.

    Args:
        cost: C [n, m], floating.

    Raises:
        ValueError: If `cost` is not a floating matrix with at least one row and column.

    Example:
        >>> CostMatrix(jnp.ones((2, 3))).shape
        (2, 3)
    """

    cost: Float[Array, "n m"]

    def __post_init__(self) -> None:
        cost = checks.floating("cost", self.cost)
        checks.rank("cost", cost, 2)
        checks.not_empty("cost", cost)
        object.__setattr__(self, "cost", cost)

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""
        n, m = self.cost.shape
        return n, m

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the costs."""
        return self.cost.dtype

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C."""
        return self.cost

    def mean_cost(self) -> Float[Array, ""]:
        """The mean over all pairs."""
        return jnp.mean(self.cost)

    def softmin(self, h: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum exp((h - C) / epsilon)`` over an axis."""
        return softmin(_along(h, axis) - self.cost, epsilon, axis)

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v."""
        plan = jnp.exp((f[:, None] + g - self.cost) / epsilon)
        return _product(plan if axis == 1 else plan.T, v)


@pytree_dataclass
class PointCloud:
    """Two clouds of points and a cost between points.

    Args:
        x: Points [n, d].
        y: Points [m, d]; `x` itself by default.
        cost: One of `jaxdiv.ot.costs`, or any traceable ``cost(x_i, y_j) -> scalar``. A function that closes
            over traced values cannot be differentiated by them; make it a pytree.
        block: Rows whose costs are held at a time; 0 holds them all. By default all while they are at most
            2^26 numbers, else as many as make 2^22.

    Raises:
        ValueError: If the clouds are not floating [n, d] and [m, d] with points in them, or block < 0.

    Example:
        >>> PointCloud(jnp.ones((4, 2)), jnp.ones((3, 2))).cost_matrix().shape
        (4, 3)
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"] | None = None
    cost: Cost = SqEuclidean()
    block: int | None = static_field(default=None)

    def __post_init__(self) -> None:
        x = checks.floating("x", self.x)
        y = x if self.y is None else checks.floating("y", self.y)
        for name, points in (("x", x), ("y", y)):
            checks.rank(name, points, 2)
            checks.not_empty(name, points)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have points of one dimension; got {x.shape} and {y.shape}.")
        if self.block is not None and self.block < 0:
            raise ValueError(f"block must be at least 0; got {self.block}.")
        dtype = jnp.promote_types(x.dtype, y.dtype)
        object.__setattr__(self, "x", x.astype(dtype))
        object.__setattr__(self, "y", y.astype(dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""
        assert self.y is not None
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the costs."""
        return self.x.dtype

    @property
    def rows(self) -> int:
        """Rows in a block; n or more where the cost matrix is held whole."""
        n, m = self.shape
        if self.block is None:
            return n if n * m <= DENSE_LIMIT else max(1, BLOCK_LIMIT // m)
        return self.block or n

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, all of it."""
        assert self.y is not None
        return block(self.cost, self.x, self.y)

    def mean_cost(self) -> Float[Array, ""]:
        """The mean over all pairs."""
        n, m = self.shape
        total = self._map(lambda cost: jnp.sum(cost, axis=1))
        return jnp.sum(total) / (n * m)

    def softmin(self, h: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum exp((h - C) / epsilon)`` over an axis."""
        if axis == 1:
            return self._map(lambda cost: softmin(h - cost, epsilon, 1))
        if self.rows < self.shape[0]:
            return self._flipped().softmin(h, epsilon, 1)
        return softmin(h[:, None] - self.cost_matrix(), epsilon, 0)

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v."""
        if axis == 1:
            return self._map(lambda cost, f: _product(jnp.exp((f[:, None] + g - cost) / epsilon), v), f)
        if self.rows < self.shape[0]:
            return self._flipped().apply(g, f, epsilon, v, 1)
        plan = jnp.exp((f[:, None] + g - self.cost_matrix()) / epsilon)
        return _product(plan.T, v)

    def _flipped(self) -> "PointCloud":
        assert self.y is not None
        n, m = self.shape
        return PointCloud(self.y, self.x, _Flipped(self.cost), max(1, self.rows * m // n))

    def _map(self, fn: Callable[..., Array], *arrays: Array) -> Array:
        """Calls ``fn(costs of a block of rows, *rows of the arrays)`` block by block and joins the rows."""
        assert self.y is not None
        n, rows, y = self.shape[0], self.rows, self.y
        if rows >= n:
            return fn(self.cost_matrix(), *arrays)

        # Costs are filled again in the backward pass rather than kept.
        @partial(jax.checkpoint, prevent_cse=False)
        def one(x: Array, *arrays: Array) -> Array:
            return fn(block(self.cost, x, y), *arrays)

        whole = n // rows
        arrays = (self.x, *arrays)
        parts = [a[: whole * rows].reshape(whole, rows, *a.shape[1:]) for a in arrays]
        out = jax.lax.map(lambda xs: one(*xs), tuple(parts))
        out = out.reshape(whole * rows, *out.shape[2:])
        if whole * rows == n:
            return out
        return jnp.concatenate([out, one(*(a[whole * rows :] for a in arrays))])


@pytree_dataclass
class _Flipped:
    """A cost with its arguments exchanged."""

    cost: Any

    def __call__(self, y: Array, x: Array) -> Array:
        return self.cost(x, y)

    def pairwise(self, y: Array, x: Array) -> Array:
        return block(self.cost, x, y).T


def _product(plan: Float[Array, "n m"], v: Array) -> Array:
    flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
    out = jnp.matmul(plan, flat, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(plan.shape[0], *v.shape[1:])
