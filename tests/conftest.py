"""One strict session for the whole suite: single-threaded XLA, float32 unless a test says otherwise."""

import gc
import os
from importlib import metadata

# Workers of pytest-xdist share the cores, so each runs XLA on one thread. Tests compile far more than they
# compute, so LLVM does not optimize, and XLA takes its older, quicker emitters where it still has them. Set
# before jax is imported.
_FLAGS = ["--xla_cpu_multi_thread_eigen=false", "--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_given = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*_given, *(flag for flag in _FLAGS if flag not in _given)])
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tracing makes garbage beside a large heap that lives for the session.
gc.set_threshold(400_000, 50, 100)

from pathlib import Path  # noqa: E402

import chex  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _count_traces_afresh():
    """chex counts traces by a function's name, across tests."""
    chex.clear_trace_counter()


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
    """Linux gives a process some 65,000 memory maps, and every compiled program keeps several."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
