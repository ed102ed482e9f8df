"""One training step means the same on one device and sharded over eight.

The virtual devices need a process of their own: this file, run as a script, is that process.
"""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdiv import bilevel, losses, objectives, oracles, sampling, train
from jaxdiv.testing import bilevel as quadratics

DEVICES = 8


def test_eight_devices_agree_with_one():
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr[-4000:]}"
    assert done.stdout.count(" agrees ") == len(CASES)


def pieces(dtype, *first):
    """Objective (links to come first may be given), parameters and batch."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 5)), "b": np.zeros(5), "v": rng.normal(size=(5, 3))}
    batch = {"inputs": rng.normal(size=(16, 4)), "weights": rng.uniform(0.5, 1.5, 16)}
    params, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, batch))
    batch["targets"] = jnp.asarray(rng.integers(0, 3, 16), jnp.int32)
    batch["index"] = jnp.asarray(rng.permutation(24)[:16], jnp.int32)

    def model(params, state, inputs, key):
        hidden = jnp.tanh(inputs @ params["w"] + params["b"])
        return hidden @ params["v"], {"mean": 0.9 * state["mean"] + 0.1 * hidden.mean(0)}

    objective = objectives.chain(
        *first,
        objectives.forward(model, model_state={"mean": jnp.zeros(5, dtype)}),
        objectives.ps_kd(24, alpha=0.5, dtype=dtype),
        objectives.loss(losses.cross_entropy, name="ce"),
        objectives.mean(),
    )
    return objective, params, batch


def placed(state, batch):
    """The state on every device, the batch in eighths."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    for leaf in jax.tree.leaves(batch):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {leaf.shape[0] // DEVICES}
    return state, batch


def compare(name, single, sharded, tolerance):
    """Compares two training states leaf by leaf, without their keys."""
    for (path, one), (_, many) in zip(
        *(jax.tree.leaves_with_path(state._replace(key=())) for state in (single, sharded)), strict=True
    ):
        assert one.dtype == many.dtype, f"{name}: {jax.tree_util.keystr(path)} changed its dtype"
        np.testing.assert_allclose(
            many, one, rtol=tolerance, atol=tolerance, err_msg=f"{name}: {jax.tree_util.keystr(path)}"
        )


def check_step(name, oracle, tx, dtype, steps, tolerance, *first):
    """Steps of `make_step`, one by one."""
    objective, params, batch = pieces(dtype, *first)
    init, step = train.make_step(objective, oracle, tx)
    start = jax.jit(init)(params, batch, jax.random.key(0))
    states = []
    for state, data in ((start, batch), placed(start, batch)):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        compiled = jax.jit(step, out_shardings=(shardings, None)).lower(state, data).compile()
        for _ in range(steps):
            # Undisciplined dispatch on many virtual devices over few cores deadlocks.
            state, metrics = jax.block_until_ready(compiled(state, data))
        assert np.isfinite(metrics["value"])
        states.append(state)
    assert "all-reduce" in compiled.as_text(), f"{name}: the step was not partitioned"
    for leaf in jax.tree.leaves(state.params):
        assert len(leaf.sharding.device_set) == DEVICES
    assert np.abs(states[1].params["w"] - params["w"]).max() > 1e-3, f"{name}: nothing moved"
    compare(name, *states, tolerance)


def check_fit(name):
    """`train.fit` from a replicated state, on data sharded over their rows."""
    objective, params, batch = pieces(jnp.float64)
    init, step = train.make_step(objective, oracles.plain(), optax.sgd(0.1))
    start = jax.jit(init)(params, batch, jax.random.key(0))
    states = []
    for state, data in ((start, batch), placed(start, batch)):
        fit = train.fit(step, state, data, steps=2, chunk=2, sampler=sampling.shuffle(8), progress=False)
        states.append(fit.state)
    assert len(states[1].params["w"].sharding.device_set) == DEVICES
    compare(name, *states, 1e-10)


def check_mixup(name):
    mixup = objectives.mixup(0.4, num_classes=3)
    check_step(name, oracles.plain(), optax.adam(0.05), jnp.float64, 3, 1e-10, mixup)


def check_sam(name):
    oracle = oracles.sam(oracles.plain(), rho=0.1)
    check_step(name, oracle, optax.sgd(0.1, momentum=0.9), jnp.float64, 3, 1e-10)


def check_bilevel(name):
    """Single-loop and implicit bilevel steps on sharded data of both losses."""
    case = quadratics.quadratic(noise=0.1)
    for build in (
        lambda: bilevel.soba(case.problem, optax.sgd(0.1), optax.adam(0.05)),
        lambda: bilevel.make_step(
            case.problem, bilevel.implicit_gradient(rtol=1e-13), optax.sgd(0.1), optax.sgd(0.1), inner_steps=2
        ),
    ):
        init, step = build()
        start = init(case.outer, case.inner, case.data, jax.random.key(0))
        states = []
        for state, data in ((start, jax.tree.map(jnp.asarray, case.data)), placed(start, case.data)):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
            compiled = jax.jit(step, out_shardings=(shardings, None)).lower(state, data).compile()
            for _ in range(2):
                state, info = jax.block_until_ready(compiled(state, data))
            assert info.status == 0
            states.append(state)
        assert "all-reduce" in compiled.as_text(), f"{name}: the step was not partitioned"
        compare(name, *states, 1e-10)


def check_float32(name):
    check_step(name, oracles.plain(), optax.sgd(0.1), jnp.float32, 1, 1e-5)


CASES = {
    "mixup": check_mixup,
    "sam": check_sam,
    "float32": check_float32,
    "fit": check_fit,
    "bilevel": check_bilevel,
}


def main():
    failed = 0
    for name, check in CASES.items():
        began = time.perf_counter()
        try:
            with jax.enable_x64(name != "float32"):
                check(name)
            print(f"{name} agrees after {time.perf_counter() - began:.1f} s", flush=True)
        except Exception:
            failed += 1
            print(f"{name} FAILED\n{traceback.format_exc()}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
