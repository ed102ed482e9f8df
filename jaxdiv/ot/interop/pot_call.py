r"""What the calls of POT share: their arrays, their algorithms and their warnings."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiv.core import Status, checks, progress_bar
from jaxdiv.core.types import Numeric
from jaxdiv.ot.geometry import CostMatrix
from jaxdiv.ot.marginals import Marginal
from jaxdiv.ot.sinkhorn import Sinkhorn, reach
from jaxdiv.ot.solve import solve
from jaxdiv.ot.transport import Transport

# POT's names of algorithms, and ours for the same problem.
METHODS: dict[str, dict[str, Any]] = {
    "sinkhorn": {"mode": "auto"},
    "sinkhorn_log": {"mode": "log"},
    "sinkhorn_stabilized": {"mode": "auto"},
    "sinkhorn_epsilon_scaling": {"mode": "log", "anneal": 20},
    "sinkhorn_translation_invariant": {"mode": "auto"},
}


def call(fn: Callable[..., Any], a: Any, b: Any, M: Any, reg: Numeric, **options: Any) -> Any:
    """Calls with JAX arrays; with NumPy's in their own precision if there is no other."""
    if any(isinstance(array, jax.Array) for array in (a, b, M, reg)):
        a, b, M = (jnp.asarray(array) for array in (a, b, M))
        return fn(*_filled(a, b, M), reg, **options)
    M = np.asarray(M)
    dtype = np.result_type(M.dtype, np.float32) if np.issubdtype(M.dtype, np.floating) else np.float64
    with jax.enable_x64(True):
        a, b, M = (jnp.asarray(np.asarray(array, dtype)) for array in (a, b, M))
        return jax.tree.map(np.asarray, fn(*_filled(a, b, M), reg, **options))


def _filled(a: Array, b: Array, M: Array) -> tuple[Array, Array, Array]:
    checks.rank("M", M, 2)
    n, m = M.shape
    a = jnp.full((n,), 1.0 / n, M.dtype) if a.shape[0] == 0 else a
    b = jnp.full((m,), 1.0 / m, M.dtype) if b.shape[0] == 0 else b
    return a, b, M


def solved(
    cost: Array, a: Array, b: Array, reg: Numeric, marginals: tuple[Marginal, Marginal], init: Any, *,
    method: str, numItermax: int, stopThr: float, verbose: bool, warn: bool = True,
) -> Transport:  # fmt: skip
    """Solves a problem by POT's options, and warns as POT does."""
    chosen = checks.lookup("method", method.lower(), METHODS)
    tol = jnp.maximum(stopThr, 4 * reach(cost.dtype, a.size + b.size) * jnp.sum(a)).astype(cost.dtype)
    solver = Sinkhorn(tol=tol, max_steps=numItermax, **chosen)
    bar = progress_bar("sinkhorn", numItermax) if verbose else contextlib.nullcontext()
    with bar as progress:
        out = solve(
            CostMatrix(cost),
            a,
            b,
            epsilon=reg,
            marginals=marginals,
            solver=solver,
            init=init,
            progress=progress,
        )
    if warn and checks.concrete(out.status) and int(out.status) != Status.CONVERGED:
        message = f"Sinkhorn ended {Status(int(out.status)).name} with error {float(out.error):.3g}"
        warnings.warn(f"{message}; raise numItermax or reg, or use jaxdiv.ot.SinkhornNewton.", stacklevel=4)
    return out


def log_weights(weights: Array) -> Array:
    """Logarithms; 0 where there is no weight, and so no mass that they could count for."""
    return jnp.log(jnp.where(weights > 0, weights, 1.0))
