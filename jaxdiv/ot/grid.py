r"""Transport between measures on grids: reductions axis by axis, and never a cost matrix.

Points of a grid are tuples of coordinates, and an additive cost is a sum over the axes,

    C_ij = sum_k C_k[i_k, j_k],      i = (i_1, ..., i_d),  j = (j_1, ..., j_d)  in row-major order,

so that the kernel is a product and its sums nest:

    sum_j exp(z_j - C_ij) w_j = sum_{j_d} exp(-C_d) ... sum_{j_1} exp(z_j - C_1) w_j.

Each sum over one axis of n numbers costs N n for N points, against N^2 for all of C. For w >= 0 they are
taken in logarithms. For w of any sign, and in derivatives, the inner sums are pairs (t, s) that stand for
exp(t) s, where t is the largest exponent: no range of exponents is too wide, and the next axis takes t and s
for its z and w.

References:
    Solomon, de Goes, Peyré, Cuturi, Butscher, Nguyen, Du, Guibas (2015), Convolutional Wasserstein distances.
    Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport problems.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import any_lane, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cost, SqEuclidean, as_pytree
from jaxdiv.ot.geometry import CostMatrix, capped_exp, finite, product
from jaxdiv.ot.point_cloud import BLOCK_LIMIT, Flipped

# Numbers that the reduction of one axis may hold at a time.
_HELD = 2**24


@pytree_dataclass
class Grid:
    """Two grids and a cost that adds up over their axes.

    Args:
        x: The coordinates of the grid along each axis, a tuple of arrays [n_k]. Weights and potentials of its
            ``n_1 ... n_d`` points are flat, in row-major order: ``image.ravel()``.
        y: The axes of the other grid, as many; `x` itself by default.
        cost: The cost along an axis, of two points [1], or a tuple of them, one for each axis. `SqEuclidean`
            adds up to itself; `Euclidean` adds up to the sum of absolute differences.
        dense_limit: Numbers up to which `dense` forms the cost matrix, which is quicker while it is small.

    Raises:
        ValueError: If the axes are no tuples of floating, finite, non-empty vectors, or not as many of x as
            of y or of costs.

    Note:
        N points take the time of N (n_1 + ... + n_d) exponentials for a reduction, forward and backward, and
        the memory of a few vectors [N]. What asks for whole rows of C (`map_rows`) takes N^2.

    References:
        Solomon et al. (2015), Convolutional Wasserstein distances.

    Example:
        >>> axis = jnp.linspace(0.0, 1.0, 4)
        >>> geometry = Grid((axis, axis))
        >>> geometry.shape
        (16, 16)
        >>> float(geometry.cost_matrix()[0, -1])
        2.0
    """

    x: tuple[Float[Array, " n_k"], ...]
    y: tuple[Float[Array, " m_k"], ...] | None = None
    cost: Cost | tuple[Cost, ...] = SqEuclidean()
    dense_limit: int = static_field(default=2**20)

    def __post_init__(self) -> None:
        x = _axes("x", self.x)
        y = x if self.y is None else _axes("y", self.y)
        if len(x) != len(y):
            raise ValueError(f"x and y must have as many axes; got {len(x)} and {len(y)}.")
        costs = self.cost if isinstance(self.cost, tuple) else (self.cost,) * len(x)
        if len(costs) != len(x):
            raise ValueError(f"cost must be one or one for each of the {len(x)} axes; got {len(costs)}.")
        checks.in_range("dense_limit", self.dense_limit, 0)
        dtype = jnp.result_type(*x, *y)
        object.__setattr__(self, "x", tuple(axis.astype(dtype) for axis in x))
        object.__setattr__(self, "y", tuple(axis.astype(dtype) for axis in y))
        object.__setattr__(self, "cost", tuple(map(as_pytree, costs)))

    @property
    def shape(self) -> tuple[int, int]:
        """n, m: the points of either grid."""
        assert self.y is not None
        return math.prod(axis.shape[0] for axis in self.x), math.prod(axis.shape[0] for axis in self.y)

    @property
    def dtype(self) -> Any:
        """The dtype of the costs."""
        return self.x[0].dtype

    def axis_costs(self) -> tuple[Float[Array, "n_k m_k"], ...]:
        """The cost matrix C_k of each axis."""
        assert self.y is not None
        assert isinstance(self.cost, tuple)
        # Pair by pair: few numbers, and no cancellation of large norms.
        return tuple(
            jax.vmap(lambda p, cost=cost, v=v: jax.vmap(lambda q: cost(p, q))(v[:, None]))(u[:, None])
            for cost, u, v in zip(self.cost, self.x, self.y, strict=True)
        )

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, all of it."""
        return self.map_rows(lambda cost: cost)

    def dense(self) -> "CostMatrix | Grid":
        """The cost matrix where it is small, else itself."""
        n, m = self.shape
        return CostMatrix(self.cost_matrix()) if n * m <= self.dense_limit else self

    def transpose(self) -> "Grid":
        """The grids exchanged."""
        assert isinstance(self.cost, tuple)
        costs = tuple(cost.cost if isinstance(cost, Flipped) else Flipped(cost) for cost in self.cost)
        flipped = object.__new__(Grid)
        for name, value in (("x", self.y), ("y", self.x), ("cost", costs), ("dense_limit", self.dense_limit)):
            object.__setattr__(flipped, name, value)
        return flipped

    def softmin(self, h: Array, weights: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum weights exp((h - C) / epsilon)`` over an axis; +inf where nothing has weight."""
        return -epsilon * _log_sum(self._exponents(epsilon, axis), h / epsilon, weights)

    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v of any sign."""
        own, other = (f, g) if axis == 1 else (g, f)
        columns = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        out = _scaled_sum(self._exponents(epsilon, axis), own / epsilon, other / epsilon, columns)
        return out.reshape(-1, *v.shape[1:])

    def apply_costs(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``C * exp((f + g - C) / epsilon)``, entry by entry, or its transpose, times v."""
        own, other = (f, g) if axis == 1 else (g, f)
        columns = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        costs = self._exponents(epsilon, axis)

        def scaled(t: Array) -> Array:
            costs_t = tuple(cost * t for cost in costs)
            return -epsilon * _scaled_sum(costs_t, own / epsilon, other / epsilon, columns)

        one = jnp.ones((), self.dtype)
        return jax.jvp(scaled, (one,), (one,))[1].reshape(-1, *v.shape[1:])

    def mean_cost(self, a: Float[Array, " n"], b: Float[Array, " m"]) -> Float[Array, ""]:
        """The mean absolute cost over the pairs of two weighted measures."""
        costs = self.axis_costs()

        def by_axes() -> Array:
            masses = zip(_axis_masses(a, costs, 0), _axis_masses(b, costs, 1), costs, strict=True)
            return jnp.sum(jnp.stack([u @ product(cost, v) for u, v, cost in masses]))

        def by_rows() -> Array:
            return jnp.vdot(a, self.map_rows(lambda cost: product(jnp.abs(cost), b)))

        # Absolute values add up as well where no cost is negative.
        positive = jnp.all(jnp.stack([jnp.min(cost) for cost in costs]) >= 0)
        return jax.lax.cond(any_lane(~positive), by_rows, by_axes) / (jnp.sum(a) * jnp.sum(b))

    def map_rows(self, fn: Callable[..., PyTree], *arrays: Array) -> PyTree:
        """Joins ``fn(costs [r, m] of r rows, *rows of the arrays)`` over all rows, block by block."""
        n, m = self.shape
        costs = self.axis_costs()
        sizes = tuple(cost.shape[0] for cost in costs)

        # Costs are computed again in the backward pass rather than kept.
        @partial(jax.checkpoint, prevent_cse=False)
        def one(index: Array, *row: Array) -> PyTree:
            total = jnp.zeros((1,), self.dtype)
            for cost, i in zip(costs, jnp.unravel_index(index, sizes), strict=True):
                total = (total[:, None] + cost[i]).ravel()
            return jax.tree.map(lambda leaf: leaf[0], fn(total[None], *(array[None] for array in row)))

        rows = max(1, BLOCK_LIMIT // m)
        return jax.lax.map(lambda row: one(*row), (jnp.arange(n), *arrays), batch_size=min(rows, n))

    def _exponents(self, epsilon: Numeric, axis: int) -> tuple[Array, ...]:
        """The costs of each axis in units of epsilon, the axis to sum behind."""
        return tuple((cost if axis == 1 else cost.T) / epsilon for cost in self.axis_costs())


@jax.custom_jvp
def _log_sum(costs: tuple[Array, ...], z: Array, w: Array) -> Array:
    """``log sum_j exp(z_j - C_ij) w_j`` for w >= 0."""
    lowest = jnp.finfo(z.dtype).min / 4
    present = w > 0
    # Numbers so low stand for -inf and stay what they are; the loops need no guards against NaN.
    z = jnp.where(present, z + jnp.log(jnp.where(present, w, 1.0)), lowest)

    def log_sum(cost: Array, z: Array) -> Array:
        top = jnp.max(z - cost, axis=1)
        return top + jnp.log(jnp.sum(jnp.exp(z - cost - top[:, None]), axis=1))

    for cost in costs:
        z = _over_lines(partial(log_sum, cost), cost.shape, z)
    return jnp.where(z > lowest / 2, z, -jnp.inf)


@partial(_log_sum.defjvp, symbolic_zeros=True)
def _log_sum_jvp(primals: Any, tangents: Any) -> Any:
    costs, z, w = primals
    dcosts, dz, dw = tangents
    out = _log_sum(costs, z, w)
    own, present = jnp.where(jnp.isfinite(out), -out, 0.0), w > 0
    v = w * _instantiated(dz, z) + _instantiated(dw, w)
    tangent = _scaled_sum(costs, own, z, v[:, None], present)[:, 0]
    if not all(isinstance(dcost, SymbolicZero) for dcost in dcosts):
        dcosts = tuple(map(_instantiated, dcosts, costs))

        def mass(costs: tuple[Array, ...]) -> Array:
            return _scaled_sum(costs, own, z, w[:, None], present)[:, 0]

        tangent = tangent + jax.jvp(mass, (costs,), (dcosts,))[1]
    return out, tangent


def _instantiated(tangent: Any, primal: Array) -> Array:
    return jnp.zeros_like(primal) if isinstance(tangent, SymbolicZero) else tangent


def _scaled_sum(
    costs: tuple[Array, ...], own: Array, z: Array, v: Float[Array, "m k"], present: Array | None = None
) -> Float[Array, "n k"]:
    """``sum_j exp(own_i + z_j - C_ij) v_j``, linear in v.

    The largest exponent among those `present` is the unit; others may be above it, and are capped.
    """

    def line(cost: Array, z: Array, present: Array, v: Array) -> tuple[Array, Array, Array]:
        # Where nothing is present, any unit will do.
        some = jnp.any(present)
        top = jax.lax.stop_gradient(jnp.max(jnp.where(present | ~some, z, -jnp.inf) - cost, axis=1))
        return top, jnp.broadcast_to(some, top.shape), product(capped_exp(z - cost - top[:, None]), v)

    present = jnp.ones(z.shape, bool) if present is None else present
    for cost in costs:
        z, present, v = _over_lines(partial(line, cost), cost.shape, z, present, v)
    return jnp.exp(own + z)[:, None] * v


def _axis_masses(weights: Array, costs: tuple[Array, ...], side: int) -> list[Array]:
    """The mass at each coordinate of each axis."""
    sizes = tuple(cost.shape[side] for cost in costs)
    grid = weights.reshape(sizes)
    return [jnp.sum(grid, axis=tuple(j for j in range(len(sizes)) if j != k)) for k in range(len(sizes))]


def _over_lines(fn: Callable[..., PyTree], shape: tuple[int, ...], *arrays: Array) -> PyTree:
    """Maps fn over the lines along the axis at the front of the flat grid, which comes back as the last."""
    n, m = shape
    lines = tuple(a.reshape(m, -1, *a.shape[1:]).swapaxes(0, 1) for a in arrays)
    if n * m * lines[0].shape[0] <= _HELD:
        out = jax.vmap(fn)(*lines)
    else:
        one = jax.checkpoint(fn, prevent_cse=False)
        out = jax.lax.map(lambda line: one(*line), lines, batch_size=max(1, _HELD // (n * m)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)


def _axes(name: str, axes: Any) -> tuple[Float[Array, " n_k"], ...]:
    if not isinstance(axes, Sequence) or not axes:
        raise ValueError(
            f"{name} must be a tuple of the coordinates along each axis; got {type(axes).__name__}."
        )
    axes = tuple(checks.floating(name, axis) for axis in axes)
    for k, axis in enumerate(axes):
        checks.rank(f"{name}[{k}]", axis, 1)
        checks.not_empty(f"{name}[{k}]", axis)
        finite(f"{name}[{k}]", axis)
    return axes
