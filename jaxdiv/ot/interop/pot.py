r"""The calls of Python Optimal Transport (POT) for exact marginals.

POT's entropy ``reg sum P log P`` gives the same plan as ``reg KL(P | a b^T)``. Its scalings, with
``P = diag(u) K diag(v)`` and ``K = exp(-M / reg)``, are ``u = a exp(f / reg)`` and ``v = b exp(g / reg)``.

References:
    Flamary et al. (2021), POT: Python optimal transport.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv.core.types import Numeric
from jaxdiv.ot.interop.pot_call import call, log_weights, solved
from jaxdiv.ot.marginals import Exact


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: Numeric,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
) -> Any:
    """``ot.sinkhorn`` of POT.

    Args:
        a: Weights [n]; uniform if empty.
        b: Weights [m], or [m, k] for k problems at once; uniform if empty.
        M: Costs [n, m].
        reg: Strength of the entropy.
        method: POT's name of an algorithm: how softmins are computed.
        numItermax: Most steps.
        stopThr: The L1 error of the marginals to stop at, though not below the dtype's reach.
        verbose: Shows progress.
        log: Whether to return a dict as well: ``err`` (the last error), ``niter``, ``u``, ``v``, ``log_u``, ``log_v``.
        warn: Whether to warn when it did not converge.
        warmstart: ``(log u, log v)`` to start from.

    Returns:
        The plan, or for k problems ``<M, P>`` of each. NumPy arrays in their own precision if all of a, b and M
        are NumPy or lists; if one is a JAX array, JAX arrays, differentiable.

    Raises:
        ValueError: As `solve` does, and for an unknown method.

    Example:
        >>> sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1).round(4)
        array([[0.3655, 0.1345],
               [0.1345, 0.3655]])
    """
    options = {"numItermax": numItermax, "stopThr": stopThr, "verbose": verbose, "warn": warn}
    return call(_balanced, a, b, M, reg, method=method, log=log, warmstart=warmstart, loss=False, **options)


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: Numeric,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
) -> Any:
    """``ot.sinkhorn2`` of POT: ``<M, P>`` for the plan of `sinkhorn`, which see.

    Example:
        >>> float(sinkhorn2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1).round(6))
        0.268941
    """
    options = {"numItermax": numItermax, "stopThr": stopThr, "verbose": verbose, "warn": warn}
    return call(_balanced, a, b, M, reg, method=method, log=log, warmstart=warmstart, loss=True, **options)


def _balanced(
    a: Array, b: Array, M: Array, reg: Numeric, *, loss: bool, log: bool, warmstart: Any, **options: Any
) -> Any:
    log_a, log_b = log_weights(a), log_weights(b)
    start = None if warmstart is None else tuple(jnp.asarray(h) for h in warmstart)

    def one(b: Array, log_b: Array, start: Any) -> tuple[Array, Array, dict[str, Array]]:
        init = None if start is None else (reg * (start[0] - log_a), reg * (start[1] - log_b))
        out = solved(M, a, b, reg, (Exact(), Exact()), init, **options)
        plan, log_u, log_v = out.plan(), out.f / reg + log_a, out.g / reg + log_b
        # Where a weight is 0 its scaling is as well.
        log_u, log_v = jnp.where(a > 0, log_u, -jnp.inf), jnp.where(b > 0, log_v, -jnp.inf)
        found = {"err": out.error, "niter": out.iterations, "log_u": log_u, "log_v": log_v}
        return plan, jnp.sum(M * plan), found | {"u": jnp.exp(log_u), "v": jnp.exp(log_v)}

    if b.ndim == 1:
        plan, cost, found = one(b, log_b, start)
        result = cost if loss else plan
    else:
        axes = {"err": 0, "niter": 0, "log_u": 1, "log_v": 1, "u": 1, "v": 1}

        def cost_of(b: Array, log_b: Array, start: Any) -> tuple[Array, dict[str, Array]]:
            return one(b, log_b, start)[1:]

        result, found = jax.vmap(cost_of, in_axes=1, out_axes=(0, axes))(b, log_b, start)
    return (result, found | {"err": [found["err"]]}) if log else result
