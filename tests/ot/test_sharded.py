"""Transport with its rows on many devices is transport on one.

Virtual devices, and processes that talk to each other, need processes of their own: `sharded_process.py`.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxdiv import ot

COMMAND = [sys.executable, "-W", "error", str(Path(__file__).with_name("sharded_process.py"))]
ROOT = Path(__file__).parents[2]


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def test_eight_devices_agree_with_one():
    done = subprocess.run(
        COMMAND, env=environment(8), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr[-4000:]}"
    assert done.stdout.count(" agrees ") >= 11


def test_two_processes_agree_with_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [tmp_path / f"{number}.txt" for number in range(2)]
    processes = []
    try:
        for number, file in enumerate(files):
            with file.open("w") as out:
                command = [*COMMAND, str(number), str(port)]
                processes.append(
                    subprocess.Popen(
                        command, env=environment(2), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
                    )
                )
        until = time.monotonic() + 120
        # Where one has failed, the other would wait for it.
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            assert time.monotonic() < until, "no answer within 120 s"
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    output = "\n".join(file.read_text()[-4000:] for file in files)
    assert [process.returncode for process in processes] == [0, 0], output
    assert output.count(" agrees") == 2, output


@pytest.mark.parametrize(
    ("shape", "kind", "axis", "message"),
    [
        ((6, 3), AxisType.Auto, "rows", "add 2 rows and give them weight 0"),
        ((4, 3), AxisType.Auto, "data", "axis must be one of"),
        ((4, 3), AxisType.Explicit, "rows", "AxisType.Auto"),
    ],
)
def test_meshes_that_do_not_fit_raise(shape, kind, axis, message):
    mesh = AbstractMesh((4,), ("rows",), axis_types=(kind,))
    with pytest.raises(ValueError, match=message):
        ot.Sharded(ot.CostMatrix(jnp.ones(shape)), mesh, axis)


def test_a_geometry_without_rows_to_split_raises():
    with pytest.raises(ValueError, match="geometry must be a CostMatrix or a PointCloud"):
        ot.Sharded(jnp.ones((4, 3)), one_device(), "rows")


@pytest.mark.parametrize(
    ("solver", "message"),
    [(ot.SinkhornNewton(), "SinkhornNewton holds"), (ot.Sinkhorn(mode="kernel"), "mode must be 'log'")],
)
def test_solvers_that_hold_the_matrix_are_kept_off(solver, message):
    geometry = ot.Sharded(ot.CostMatrix(jnp.ones((4, 3))), one_device(), "rows")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: ot.solve(geometry, epsilon=1.0, solver=solver))


def test_a_cloud_is_held_where_each_device_may_hold_its_rows():
    held, streamed = (
        ot.Sharded(ot.PointCloud(jnp.ones((4, 2)), block=block), one_device(), "rows") for block in (None, 3)
    )
    dense = jax.eval_shape(lambda: held.dense())
    assert isinstance(dense, ot.Sharded)
    assert isinstance(dense.geometry, ot.CostMatrix)
    assert streamed.dense() is streamed


def one_device():
    return jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
