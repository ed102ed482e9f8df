r"""A cost whose rows are spread over the devices of a mesh.

Device k holds the rows I_k of C, or the points x_i with i in I_k, and all of y, g and b. Then

    sum over columns    s_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)      on the device of row i
    sum over rows       s_j = -t_j - epsilon log sum_k Z_kj exp((t_kj - t_j) / epsilon)
                        Z_kj = sum_{i in I_k} a_i exp((f_i - C_ij - t_kj) / epsilon)

where t_kj is the largest exponent on device k and t_j the largest of all: a step of Sinkhorn's algorithm
sends 2 m numbers through all-reduces, and neither C nor x leaves its device. A streamed cloud streams its
blocks on each device. What is as long as the rows (a, f, masses, the gradient in x) is sharded like them.

One program for any number of devices and processes; with several processes call
``jax.distributed.initialize()`` first and let every process run all of it:

    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from jaxdiv import ot

    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    x, y = np.random.default_rng(0).normal(size=(2, 2**20, 8)).astype(np.float32)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    y = jax.device_put(y, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def transport(x, y):
        return ot.solve(ot.Sharded(ot.PointCloud(x, y), mesh, "rows"), epsilon=0.1)

    out = transport(x, y)                                     # out.f is sharded like x, out.g on every device
    gradient = jax.jit(jax.grad(lambda x: transport(x, y).cost))(x)                       # sharded like x
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot.geometry import CostMatrix, Geometry, capped_exp, shifted_softmin
from jaxdiv.ot.point_cloud import PointCloud


@pytree_dataclass
class Sharded:
    """A `CostMatrix` or `PointCloud` with its rows split over an axis of a mesh.

    Args:
        geometry: The cost [n, m]; what `solve` makes of it does not depend on the mesh.
        mesh: Devices.
        axis: Name of the mesh axis to split over. Along the other axes all devices do the same.

    Raises:
        ValueError: If the geometry is another one, the mesh has no such axis, or its size does not divide n.

    Note:
        Softmins are taken in log space: `Sinkhorn` is the solver, in every mode but ``"kernel"``, and
        `SinkhornNewton`, which holds the matrix, raises. Regularizers other than the entropy and `transpose`
        work along columns, for which x (or the cost matrix) is exchanged between devices and m must be
        divisible as well. A cloud's `block` counts rows on one device. Every device has all of y, so that a
        cloud against itself is gathered once.

        Methods of the result that ask for the cost (`marginals`, `apply`, `plan`, ...) belong under jit like
        `solve`: outside, each may compile again.

    Example:
        >>> mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> geometry = Sharded(CostMatrix(jnp.ones((4, 3))), mesh, "rows")
        >>> geometry.softmin(jnp.zeros(4), jnp.full(4, 0.25), 0.1, axis=0)
        Array([1., 1., 1.], dtype=float32)
    """

    geometry: CostMatrix | PointCloud
    mesh: Mesh = static_field()
    axis: str = static_field()

    def __post_init__(self) -> None:
        if not isinstance(self.geometry, CostMatrix | PointCloud):
            raise ValueError(
                f"geometry must be a CostMatrix or a PointCloud, whose rows can be split; got "
                f"{type(self.geometry).__name__}."
            )
        if self.axis not in self.mesh.axis_names:
            raise ValueError(f"axis must be one of the mesh's, {self.mesh.axis_names}; got {self.axis!r}.")
        if any(kind != AxisType.Auto for kind in self.mesh.axis_types):
            raise ValueError(
                f"mesh must have Auto axes; got {self.mesh.axis_types}; pass "
                "axis_types=(AxisType.Auto, ...) to jax.make_mesh."
            )
        n, size = self.geometry.shape[0], self.mesh.shape[self.axis]
        if n % size:
            raise ValueError(
                f"geometry must have rows in a multiple of the {size} devices along {self.axis!r}; got {n}; "
                f"add {-n % size} rows and give them weight 0."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """n, m."""
        return self.geometry.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the costs."""
        return self.geometry.dtype

    @partial(jax.jit, static_argnames="axis")
    def softmin(self, h: Array, weights: Array, epsilon: Numeric, axis: int) -> Array:
        """``-epsilon log sum weights exp((h - C) / epsilon)`` over an axis."""
        split, whole = PartitionSpec(self.axis), PartitionSpec()
        if axis == 0:
            return self._on_devices(self._over_rows, (split, split, whole), whole, h, weights, epsilon)

        def over_columns(local: Geometry, h: Array, weights: Array, epsilon: Numeric) -> Array:
            return local.softmin(h, weights, epsilon, 1)

        return self._on_devices(over_columns, (whole, whole, whole), split, h, weights, epsilon)

    def _over_rows(self, local: Geometry, h: Array, weights: Array, epsilon: Numeric) -> Array:
        """The softmin over the rows of all devices, from what one of them has."""
        sums = local.transpose().map_rows(lambda cost: _exponential_sums(h, weights, cost, epsilon))
        largest, shift, total = sums
        top = jax.lax.pmax(largest, self.axis)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        total = jax.lax.psum(total * capped_exp((shift - top) / epsilon), self.axis)
        return shifted_softmin(top, total, epsilon)

    @partial(jax.jit, static_argnames="axis")
    def apply(self, f: Array, g: Array, epsilon: Numeric, v: Array, axis: int) -> Array:
        """``exp((f + g - C) / epsilon)``, or its transpose, times v."""
        split, whole = PartitionSpec(self.axis), PartitionSpec()

        def product(local: Geometry, f: Array, g: Array, epsilon: Numeric, v: Array) -> Array:
            out = local.apply(f, g, epsilon, v, axis)
            return out if axis == 1 else jax.lax.psum(out, self.axis)

        inner, outer = (whole, split) if axis == 1 else (split, whole)
        return self._on_devices(product, (split, whole, whole, inner), outer, f, g, epsilon, v)

    def map_rows(self, fn: Callable[..., PyTree], *arrays: Array) -> PyTree:
        """Joins the rows of ``fn(costs [r, m] of r rows, *rows of the arrays)``, each on its device."""
        (rows, *rest), structure = jax.tree.flatten(self.geometry)
        size, split = self.mesh.shape[self.axis], NamedSharding(self.mesh, PartitionSpec(self.axis))

        def local(rows: Array, *arrays: Array) -> PyTree:
            return jax.tree.unflatten(structure, [rows, *rest]).map_rows(fn, *arrays)

        def per_device(x: Array) -> Array:
            x = jax.lax.with_sharding_constraint(x, split)
            return jax.lax.with_sharding_constraint(x.reshape(size, x.shape[0] // size, *x.shape[1:]), split)

        def joined(x: Array) -> Array:
            return jax.lax.with_sharding_constraint(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), split)

        # The devices are lanes of a vmap, because fn closes over values of the program around it, such as
        # potentials, that cannot be differentiated inside shard_map.
        @jax.jit
        def mapped(*arrays: Array) -> PyTree:
            return jax.tree.map(joined, jax.vmap(local)(*map(per_device, arrays)))

        return mapped(rows, *arrays)

    def transpose(self) -> "Sharded":
        """The transposed costs, their rows (the columns of this) split over the same axis."""
        return Sharded(self.geometry.transpose(), self.mesh, self.axis)

    def dense(self) -> "Sharded":
        """The cost matrix, each device holding its rows, or itself where they are to be streamed."""
        if isinstance(self.geometry, CostMatrix):
            return self
        (x, *rest), structure = jax.tree.flatten(self.geometry)
        own = jax.ShapeDtypeStruct((x.shape[0] // self.mesh.shape[self.axis], x.shape[1]), x.dtype)
        local = jax.tree.unflatten(structure, [own, *rest])
        if local.rows < local.shape[0]:
            return self
        return Sharded(CostMatrix(self.cost_matrix()), self.mesh, self.axis)

    def cost_matrix(self) -> Float[Array, "n m"]:
        """C, its rows on their devices."""
        return self.map_rows(lambda cost: cost)

    def _on_devices(
        self, fn: Callable[..., PyTree], specs: tuple[PartitionSpec, ...], out: PartitionSpec, *args: Any
    ) -> PyTree:
        """``fn(geometry of a device's rows, *args)`` on each device."""
        leaves, structure = jax.tree.flatten(self.geometry)

        def local(leaves: list[Array], *args: Array) -> PyTree:
            return fn(jax.tree.unflatten(structure, leaves), *args)

        # The first leaf, `cost` or `x`, is the one with rows; the others belong to all of them.
        parts = [PartitionSpec(self.axis), *[PartitionSpec()] * (len(leaves) - 1)]
        # Unchecked, because the check rejects costs with loops whose carries begin as constants.
        mapped = jax.shard_map(
            local, mesh=self.mesh, in_specs=(parts, *specs), out_specs=out, check_vma=False
        )
        return mapped(leaves, *args)


def _exponential_sums(
    h: Array, weights: Array, cost: Float[Array, "m n"], epsilon: Numeric
) -> tuple[Array, Array, Array]:
    """Of each row of costs the largest h - C that has weight, a shift, and the sum of weighted exponentials.

    Where nothing has weight the largest is -inf. The sum, shifted by the largest of all, is then 0 with the
    right derivative, as a device with weights of 0 alone needs.
    """
    shown = jax.lax.stop_gradient(h - cost)
    largest = jnp.max(jnp.where(weights > 0, shown, -jnp.inf), axis=1)
    shift = jnp.where(jnp.isfinite(largest), largest, jnp.max(shown, axis=1))
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    exponent = (h - cost - shift[:, None]) / epsilon
    return largest, shift, jnp.sum(weights * capped_exp(exponent), axis=1)
