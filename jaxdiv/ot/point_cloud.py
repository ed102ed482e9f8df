"""Two clouds of points as a geometry: its cost matrix whole, or streamed in blocks of rows.

Streamed, a reduction over columns visits block after block of rows, and one over rows does so for the clouds
exchanged. Forward, backward and under vmap it holds one block: costs are computed again in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cost, SqEuclidean, as_pytree, block
from jaxdiv.ot.geometry import CostMatrix, capped_exp, finite, product, softmin, unchecked

# Numbers in a cost matrix above which a point cloud is streamed, and numbers in one of its blocks.
DENSE_LIMIT = 2**27
BLOCK_LIMIT = 2**21


@pytree_dataclass
class PointCloud:
    """Two clouds of points and a cost between points.

    Args:
        x: Points [n, d], floating.
        y: Points [m, d]; `x` itself by default.
        cost: One of `jaxdiv.ot.costs`, or any traceable ``cost(x_i, y_j) -> scalar``. A function that closes
            over traced values cannot be differentiated by them; make it a pytree.
        block: Rows whose costs are held at a time; 0 holds all. By default all while they are at most 2^27
            numbers, else as many as make 2^21, less for costs taken pair by pair.

    Raises:
        ValueError: If the clouds are not floating [n, d] and [m, d] with points in them, if a concrete
            coordinate is not finite, or if block < 0.

    Note:
        Streamed, forward, backward and under vmap, it needs the memory of one block beside the points: the
        costs are computed again wherever they are asked for.

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
            finite(name, points)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have points of one dimension; got {x.shape} and {y.shape}.")
        if self.block is not None and self.block < 0:
            raise ValueError(f"block must be at least 0; got {self.block}.")
        dtype = jnp.promote_types(x.dtype, y.dtype)
        object.__setattr__(self, "x", x.astype(dtype))
        object.__setattr__(self, "y", y.astype(dtype))
        object.__setattr__(self, "cost", as_pytree(self.cost))

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""
        assert self.y is not None
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> Any:
        """The dtype of the costs."""
        return self.x.dtype

    @property
    def rows(self) -> int:
        """Rows in a block; n or more where the cost matrix is held whole."""
        n, m = self.shape
        if self.block is None:
            # A cost taken pair by pair works on d numbers for each.
            wide = 1 if _by_blocks(self.cost) else max(1, self.x.shape[1] // 4)
            return n if n * m <= DENSE_LIMIT else max(1, BLOCK_LIMIT // (m * wide))
        return self.block or n

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, all of it."""
        assert self.y is not None
        return block(self.cost, self.x, self.y)

    def dense(self) -> "CostMatrix | PointCloud":
        """The cost matrix, unless it is to be streamed."""
        return self if self.rows < self.shape[0] else unchecked(self.cost_matrix())

    def transpose(self) -> "PointCloud":
        """The clouds exchanged."""
        n, m = self.shape
        rows = 0 if self.rows >= n else max(1, self.rows * m // n)
        assert self.y is not None
        cost = self.cost.cost if isinstance(self.cost, Flipped) else Flipped(self.cost)
        flipped = object.__new__(PointCloud)
        for name, value in (("x", self.y), ("y", self.x), ("cost", cost), ("block", rows)):
            object.__setattr__(flipped, name, value)
        return flipped

    def softmin(self, h: Array, weights: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum weights exp((h - C) / epsilon)`` over an axis."""
        if self.rows >= self.shape[0]:
            return softmin(h, weights, self.cost_matrix(), epsilon, axis)
        if axis == 0:
            return self.transpose().softmin(h, weights, epsilon, 1)
        return self.map_rows(lambda cost: softmin(h, weights, cost, epsilon, 1))

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v."""
        if axis == 0:
            return self.transpose().apply(g, f, epsilon, v, 1)
        return self.map_rows(lambda cost, f: product(capped_exp((f[:, None] + g - cost) / epsilon), v), f)

    def map_rows(self, fn: Callable[..., PyTree], *arrays: Array) -> PyTree:
        """Joins the rows of ``fn(costs [r, m] of r rows, *rows of the arrays)``, one block after another."""
        assert self.y is not None
        n, rows, y = self.shape[0], self.rows, self.y
        if rows >= n:
            return fn(self.cost_matrix(), *arrays)

        # Costs are computed again in the backward pass rather than kept.
        @partial(jax.checkpoint, prevent_cse=False)
        def one(x: Array, *arrays: Array) -> PyTree:
            return fn(block(self.cost, x, y), *arrays)

        whole = n - n % rows
        arrays = (self.x, *arrays)
        blocks = [a[:whole].reshape(whole // rows, rows, *a.shape[1:]) for a in arrays]
        out = jax.lax.map(lambda block: one(*block), tuple(blocks))
        out = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), out)
        if whole == n:
            return out
        rest = one(*(a[whole:] for a in arrays))
        return jax.tree.map(lambda most, last: jnp.concatenate([most, last]), out, rest)


def _by_blocks(cost: Any) -> bool:
    """Whether a cost fills blocks by itself."""
    return _by_blocks(cost.cost) if isinstance(cost, Flipped) else hasattr(cost, "pairwise")


@pytree_dataclass
class Flipped:
    """A cost with its arguments exchanged."""

    cost: Any

    def __call__(self, y: Array, x: Array) -> Array:
        """``cost(x, y)``."""
        return self.cost(x, y)

    def pairwise(self, y: Array, x: Array) -> Array:
        """The block of costs between two clouds."""
        return block(self.cost, x, y).T
