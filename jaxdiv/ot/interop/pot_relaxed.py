r"""The calls of Python Optimal Transport (POT) for marginals that need not be met.

POT regularizes relative to a measure c: ``<M, P> + reg KL(P | c)``, with c of ones for its entropy. As

    reg KL(P | c) = reg KL(P | a b^T) + <reg log(a b^T / c), P> + a constant of P,

these are problems with the cost ``M + reg log(a b^T / c)``. With ``K = exp(-M / reg)`` and the potentials (f, g),
POT's scalings are ``u = exp(f / reg)`` and ``v = exp(g / reg)``, where ``P = diag(u) (K * c) diag(v)``.

References:
    Flamary et al. (2021), POT: Python optimal transport.
    Chizat, Peyré, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport.
    Benamou, Carlier, Cuturi, Nenna, Peyré (2015), Iterative Bregman projections, section 5.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv.core import checks, xlogy
from jaxdiv.core.types import Numeric
from jaxdiv.ot.interop.pot_call import call, log_weights, solved
from jaxdiv.ot.marginals import KL, Exact, Marginal
from jaxdiv.ot.partial import AtMost, Partial


def sinkhorn_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: Numeric,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
) -> Any:
    """``ot.unbalanced.sinkhorn_unbalanced`` of POT.

    Args:
        a: Weights [n]; uniform if empty.
        b: Weights [m]; uniform if empty.
        M: Costs [n, m].
        reg: Strength of the entropy.
        reg_m: Price of leaving the marginals, or a pair of them; infinity is exact.
        method: As in `sinkhorn`.
        reg_type: ``"kl"`` relative to c, or ``"entropy"`` relative to ones.
        c: Positive reference [n, m] of the regularization; ``a b^T`` by default.
        warmstart: ``(log u, log v)`` to start from.
        numItermax: Most steps.
        stopThr: The L1 norm of the derivative of the dual to stop at.
        verbose: Shows progress.
        log: Whether to return a dict as well: ``err``, ``logu``, ``logv``, ``cost`` (``<M, P>``) and
            ``total_cost``, which as in POT counts divergences without their terms of mass.

    Returns:
        The plan, as `sinkhorn` does.

    Raises:
        ValueError: As `solve` does, and for an unknown method or reg_type.

    Example:
        >>> sinkhorn_unbalanced([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1, 1).round(4)
        array([[0.3221, 0.1185],
               [0.1185, 0.3221]])
    """
    checks.one_of("reg_type", reg_type.lower(), ("kl", "entropy"))
    options = {"numItermax": numItermax, "stopThr": stopThr, "verbose": verbose, "method": method}
    return call(
        _unbalanced,
        a,
        b,
        M,
        reg,
        reg_m=reg_m,
        reg_type=reg_type.lower(),
        c=c,
        warmstart=warmstart,
        log=log,
        **options,
    )


def sinkhorn_unbalanced2(
    a: Any,
    b: Any,
    M: Any,
    reg: Numeric,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    returnCost: str = "linear",
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
) -> Any:
    """``ot.unbalanced.sinkhorn_unbalanced2`` of POT: a cost of the plan of `sinkhorn_unbalanced`, which see.

    Args:
        a: Weights [n]; uniform if empty.
        b: Weights [m]; uniform if empty.
        M: Costs [n, m].
        reg: Strength of the entropy.
        reg_m: Price of leaving the marginals, or a pair of them.
        method: As in `sinkhorn`.
        reg_type: ``"kl"`` or ``"entropy"``.
        c: Reference of the regularization.
        warmstart: ``(log u, log v)`` to start from.
        returnCost: ``"linear"`` for ``<M, P>`` or ``"total"`` for the whole objective.
        numItermax: Most steps.
        stopThr: The L1 norm of the derivative of the dual to stop at.
        verbose: Shows progress.
        log: Whether to return the dict of `sinkhorn_unbalanced` as well.
    """
    name = checks.lookup("returnCost", returnCost, {"linear": "cost", "total": "total_cost"})
    _, found = sinkhorn_unbalanced(
        a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, log=True
    )
    return (found[name], found) if log else found[name]


def entropic_partial_wasserstein(
    a: Any,
    b: Any,
    M: Any,
    reg: Numeric,
    m: Numeric | None = None,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-100,
    verbose: bool = False,
    log: bool = False,
) -> Any:
    """``ot.partial.entropic_partial_wasserstein`` of POT: the mass m is moved, the rest stays.

    Args:
        a: Weights [n]; uniform if empty.
        b: Weights [m]; uniform if empty.
        M: Costs [n, m].
        reg: Strength of the entropy.
        m: Mass to move; the lesser of both masses by default.
        method: As in `sinkhorn`.
        numItermax: Most steps.
        stopThr: The L1 norm of the derivative of the dual to stop at, though not below the dtype's reach.
        verbose: Shows progress.
        log: Whether to return a dict as well: ``err`` and ``partial_w_dist`` (``<M, P>``).

    Returns:
        The plan, as `sinkhorn` does.

    Raises:
        ValueError: As `solve` does, and for an unknown method.

    Example:
        >>> entropic_partial_wasserstein([0.1, 0.2], [0.1, 0.1], [[0.0, 1.0], [2.0, 3.0]], 1, 0.1).round(2)
        array([[0.06, 0.02],
               [0.01, 0.  ]])
    """
    options = {"numItermax": numItermax, "stopThr": stopThr, "verbose": verbose, "method": method}
    return call(_partial, a, b, M, reg, m=m, log=log, **options)


def _unbalanced(
    a: Array,
    b: Array,
    M: Array,
    reg: Numeric,
    *,
    reg_m: Any,
    reg_type: str,
    c: Any,
    warmstart: Any,
    log: bool,
    **options: Any,
) -> Any:
    pair = isinstance(reg_m, tuple | list) or jnp.ndim(reg_m) == 1
    rows, columns = (reg_m[0], reg_m[-1]) if pair else (reg_m, reg_m)
    if reg_type == "entropy":
        c = jnp.ones_like(M)
    cost = (
        M
        if c is None
        else M + reg * (log_weights(a)[:, None] + log_weights(b) - jnp.log(jnp.asarray(c, M.dtype)))
    )
    init = None if warmstart is None else tuple(reg * jnp.asarray(h) for h in warmstart)
    out = solved(cost, a, b, reg, (_penalty(rows), _penalty(columns)), init, **options)
    plan = out.plan()
    if not log:
        return plan
    linear = jnp.sum(M * plan)
    total = linear + reg * _kl(plan, a[:, None] * b if c is None else c)
    for rho, mass, weights in ((rows, jnp.sum(plan, 1), a), (columns, jnp.sum(plan, 0), b)):
        total = total + (0.0 if isinstance(_penalty(rho), Exact) else rho * _kl(mass, weights))
    found = {"err": [out.error], "logu": out.f / reg, "logv": out.g / reg}
    return plan, found | {"cost": linear, "total_cost": total}


def _partial(
    a: Array, b: Array, M: Array, reg: Numeric, *, m: Numeric | None, log: bool, **options: Any
) -> Any:
    mass = jnp.minimum(jnp.sum(a), jnp.sum(b)) if m is None else m
    cost = M + reg * (log_weights(a)[:, None] + log_weights(b))
    out = solved(cost, a, b, reg, (Partial(mass), AtMost()), None, **options)
    plan = out.plan()
    return (plan, {"err": [out.error], "partial_w_dist": jnp.sum(M * plan)}) if log else plan


def _penalty(rho: Any) -> Marginal:
    return Exact() if checks.concrete(rho) and float(rho) == float("inf") else KL(rho)


def _kl(p: Array, q: Array) -> Array:
    """``sum p log(p / q)``."""
    return jnp.sum(xlogy(p, p / jnp.where(q > 0, q, 1.0)))
