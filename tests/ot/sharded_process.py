"""What `test_sharded.py` runs in processes of their own: all cases on the devices of one process, or, given a
number and a port, one of two processes that share a mesh.
"""

import sys
import time
import traceback
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdiv import ot
from jaxdiv.ot.smooth_problem import SmoothProblem

N, M, D = 32, 16, 3
SPLIT, WHOLE = PartitionSpec("rows"), PartitionSpec()
EXACT, RELAXED = (ot.Exact(), ot.Exact()), (ot.KL(1.0), ot.Exact())


def data(dtype):
    """Points and weights; of eight devices the first and half of the second have no weight at all."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 1.5, N), rng.uniform(0.5, 1.5, M)
    a[:6], b[3] = 0.0, 0.0
    x, y = rng.normal(size=(N, D)), rng.normal(size=(M, D))
    return tuple(value.astype(dtype) for value in (x, y, a / a.sum(), b / b.sum()))


def all_devices():
    return jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))


def placed(mesh, *arrays):
    """x, y, a and b on a mesh."""
    specs = (SPLIT, WHOLE, SPLIT, WHOLE)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


def on(mesh, make):
    return lambda x, y: ot.Sharded(make(x, y), mesh, "rows")


def matrix(x, y):
    return ot.CostMatrix(jnp.sum((x[:, None] - y) ** 2, axis=-1))


def streamed(x, y):
    return ot.PointCloud(x, y, block=2)


def answers(make, marginals, tol, of):
    """Everything a solve gives, and the derivatives of what `of` makes of it."""

    def value(x, y, a, b):
        solver = ot.Sinkhorn(tol=tol, mode="log")
        out = ot.solve(make(x, y), a, b, epsilon=2.0, marginals=marginals, solver=solver)
        return of(out), out

    def compute(x, y, a, b):
        (_, out), gradients = jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True)(x, y, a, b)
        found = {
            "cost": out.cost,
            "linear cost": out.linear_cost,
            "row sums": out.marginals()[0],
            "f": out.f,
            "g": out.g,
            "status": out.status,
        }
        return found | dict(zip("xyab", gradients, strict=True))

    return jax.jit(compute)


def cost(out):
    return out.cost


def potentials(out):
    return jnp.sum(jnp.sin(3 * out.f)) + jnp.sum(jnp.sin(2 * out.g))


@cache
def on_one_device(marginals, dtype, tol, of):
    return jax.device_get(answers(matrix, marginals, tol, of)(*data(dtype)))


def check_solve(make, marginals, dtype, of=cost):
    tol, tolerance = (1e-13, 1e-10) if dtype == np.float64 else (1e-6, 1e-5)
    one, mesh = on_one_device(marginals, dtype, tol, of), all_devices()
    inputs = placed(mesh, *data(dtype))
    compiled = answers(on(mesh, make), marginals, tol, of).lower(*inputs).compile()
    # Undisciplined dispatch on many virtual devices over few cores deadlocks.
    many = jax.block_until_ready(compiled(*inputs))
    assert one["status"] == many["status"] == 0
    for name, expected in one.items():
        scale = max(1.0, np.max(np.abs(expected)))
        np.testing.assert_allclose(many[name], expected, rtol=0, atol=tolerance * scale, err_msg=name)
        assert many[name].dtype == expected.dtype, name
    for name in ("f", "row sums", "x", "a"):
        assert many[name].sharding.is_equivalent_to(NamedSharding(mesh, SPLIT), many[name].ndim), name
        assert {shard.data.shape[0] for shard in many[name].addressable_shards} == {N // mesh.size}
    for name in ("cost", "linear cost", "g", "y", "b"):
        assert many[name].sharding.is_fully_replicated, name
    # Nothing as long as all rows stands in the program of a device: no cost matrix, no points, no potential;
    # nor do all costs of its own rows where they are streamed.
    text = compiled.as_text()
    assert "all-reduce" in text
    own = N // mesh.size
    shapes = [(N, M), (M, N), (N, D), (D, N), (N,), *([(own, M), (M, own)] if make is streamed else [])]
    for shape in [str(list(shape)).replace(" ", "") for shape in shapes]:
        assert shape not in text, f"{shape} was formed"
    assert "all-gather" not in text
    assert "all-to-all" not in text


def reductions(wrap):
    """What a geometry is asked for, and its derivatives, for several y at once."""

    def value(x, y, a, b, epsilon):
        geometry = wrap(streamed(x, y))
        f, g = jnp.sin(3 * a), jnp.cos(3 * b)

        def block(cost, f):
            return jnp.sum(jnp.exp((f[:, None] + g - cost) / epsilon) * b, axis=1), cost

        def ranked(cost, g):
            # Sorted, so that a row of the transposed costs must be whole.
            return jnp.sort(cost * a - f, axis=1) @ jnp.arange(1.0, N + 1) + g

        parts = (
            geometry.softmin(g, b, epsilon, 1),
            geometry.softmin(f, a, epsilon, 0),
            geometry.apply(f, g, epsilon, jnp.stack([b, g], axis=1), 1),
            geometry.apply(f, g, epsilon, a, 0),
            geometry.map_rows(block, f),
            geometry.transpose().map_rows(ranked, g),
        )
        smooth = SmoothProblem(*jax.lax.stop_gradient((geometry, a, b)), ot.Quadratic(0.5))
        parts = (*parts, geometry.cost_matrix(), smooth.evaluate_semi(jax.lax.stop_gradient(f)))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(parts)), parts

    graded = jax.value_and_grad(value, argnums=(0, 1, 2, 3, 4), has_aux=True)
    return jax.jit(jax.vmap(graded, (None, 0, None, None, None)))


def check_reductions():
    x, y, a, b = data(np.float64)
    values, mesh = (x, np.stack([y, 1.5 * y]), a, b), all_devices()
    one = reductions(lambda geometry: geometry)(*values, 0.7)
    many = reductions(lambda geometry: ot.Sharded(geometry, mesh, "rows"))(*placed(mesh, *values), 0.7)
    chex.assert_trees_all_close(jax.block_until_ready(many), one, rtol=1e-10, atol=1e-10)


def check_lanes():
    """Problems spread over a second axis of the mesh."""
    x, y, a, b = data(np.float64)
    ys = jnp.stack([y, 1.5 * y])
    mesh = jax.make_mesh((2, jax.device_count() // 2), ("lanes", "rows"), axis_types=(AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, PartitionSpec("lanes"))

    def solved(make, y):
        out = ot.solve(make(x, y), a, b, epsilon=2.0, solver=ot.Sinkhorn(1e-12, mode="log"))
        return out.f, out.g

    one = jax.jit(jax.vmap(lambda y: solved(matrix, y)))(ys)
    many = jax.jit(jax.vmap(lambda y: solved(on(mesh, ot.PointCloud), y), spmd_axis_name="lanes"))
    f, g = jax.block_until_ready(many(jax.device_put(ys, spread)))
    chex.assert_trees_all_close((f, g), one, rtol=1e-10, atol=1e-10)
    assert f.sharding.spec == PartitionSpec("lanes", "rows")


CASES = {
    "matrix": lambda: check_solve(matrix, EXACT, np.float64),
    "matrix, KL": lambda: check_solve(matrix, RELAXED, np.float64),
    "cloud": lambda: check_solve(streamed, EXACT, np.float64),
    "cloud, KL": lambda: check_solve(streamed, RELAXED, np.float64),
    "matrix in float32": lambda: check_solve(matrix, EXACT, np.float32),
    "matrix, KL in float32": lambda: check_solve(matrix, RELAXED, np.float32),
    "cloud in float32": lambda: check_solve(streamed, EXACT, np.float32),
    "cloud, KL in float32": lambda: check_solve(streamed, RELAXED, np.float32),
    "derivatives of potentials": lambda: check_solve(matrix, EXACT, np.float64, potentials),
    "reductions": check_reductions,
    "lanes": check_lanes,
}


def all_cases():
    failed = 0
    for name, check in CASES.items():
        began = time.process_time()
        try:
            with jax.enable_x64("float32" not in name):
                check()
            print(f"{name} agrees after {time.process_time() - began:.1f} s of processor time", flush=True)
        except Exception:
            failed += 1
            print(f"{name} FAILED\n{traceback.format_exc()}", flush=True)
    sys.exit(failed)


def one_of_two(number, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
    assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 2, 4)
    with jax.enable_x64(True):
        one, mesh = on_one_device(EXACT, np.float64, 1e-13, cost), all_devices()
        inputs = placed(mesh, *data(np.float64))
        many = jax.block_until_ready(answers(on(mesh, streamed), EXACT, 1e-13, cost)(*inputs))
        for name, expected in one.items():
            for shard in many[name].addressable_shards:
                np.testing.assert_allclose(
                    shard.data, expected[shard.index], rtol=1e-10, atol=1e-10, err_msg=name
                )
        for array in (inputs[0], many["f"], many["x"]):
            assert not array.is_fully_addressable
            assert {shard.data.shape[0] for shard in array.addressable_shards} == {N // 4}
    print(f"process {number} agrees", flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_of_two(int(sys.argv[1]), sys.argv[2])
    else:
        all_cases()
