r"""One call for every discrete transport problem.

    min_P  <C, P> + R(P) + D_1(P1 | a) + D_2(P^T 1 | b)

With the entropy, ``R = epsilon KL(P | a b^T)`` and ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)``. The
entropy form ``<C, P> + epsilon sum P (log P - 1)`` of other libraries has the same plan for exact marginals;
`Transport.entropy_cost` is that value.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiv.core import RUNNING, Progress, Status, checks, pytree_dataclass, run
from jaxdiv.core.types import Numeric
from jaxdiv.ot.default import by_default, newest_last
from jaxdiv.ot.dual import Dual
from jaxdiv.ot.geometry import CostMatrix, Geometry, max_cost, mean_cost, std_cost
from jaxdiv.ot.marginals import Exact, Marginal
from jaxdiv.ot.newton import SinkhornNewton
from jaxdiv.ot.partial import Partial
from jaxdiv.ot.problem import Problem
from jaxdiv.ot.regularizers import Entropy
from jaxdiv.ot.semi_dual import SemiDual
from jaxdiv.ot.sinkhorn import Sinkhorn
from jaxdiv.ot.smooth_problem import SmoothProblem
from jaxdiv.ot.transport import Transport

_SCALES = {"mean": mean_cost, "std": std_cost, "max": max_cost}
# The default epsilon, as a fraction of the mean cost.
EPSILON = 0.05


@pytree_dataclass
class Implicit:
    """Derivatives of the optimum, by its optimality conditions; nothing of the iterations is kept."""


@pytree_dataclass
class Unroll:
    """Derivatives of the iterations of `Sinkhorn` in log space, as far as they went.

    Reverse mode keeps the potentials of each of the solver's `max_steps` steps.
    """


def solve(
    geometry: Geometry,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Numeric | None = None,
    relative_epsilon: str | None = None,
    regularizer: Any = None,
    marginals: Sequence[Marginal] = (Exact(), Exact()),
    solver: Any = None,
    adjoint: Implicit | Unroll = Implicit(),
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    history: int = 0,
    progress: Progress | None = None,
) -> Transport:
    """Solves a transport problem.

    Args:
        geometry: The cost, such as `CostMatrix`, `PointCloud` or `Grid`.
        a: Weights of the rows [n], nonnegative; 1/n by default. Weight 0 takes no part (padding).
        b: Weights of the columns [m], alike.
        epsilon: Short for ``regularizer=Entropy(epsilon)``; 0.05 times the mean absolute cost by default.
        relative_epsilon: ``"mean"``, ``"std"`` or ``"max"`` (of the absolute costs): `epsilon`, 0.05 by
            default, is in units of that. The unit counts as a constant in derivatives.
        regularizer: `Entropy`, `Quadratic`, `TopK` or `GroupLasso`.
        marginals: How far the row and the column masses may leave a and b. Penalties are for the entropy.
        solver: A `core.Solver` for the regularizer. By default `SemiDual` or `Dual`, and for the entropy
            `Sinkhorn` with a tolerance of 1e-4, which hands over to `SinkhornNewton` where its rate after
            50 steps says that this is quicker and the cost matrix is held.
        adjoint: `Implicit()` or `Unroll()`.
        init: Potentials (f, g) to start from; zeros by default. Without derivatives.
        history: How many of the last errors to keep.
        progress: Called on the host with steps and error, such as `core.progress_bar` gives; not by `Unroll`.

    Returns:
        A `Transport`. It is never CONVERGED with an error above the solver's tolerance.

    Raises:
        ValueError: If shapes, dtypes or options do not fit, or concrete weights are negative, not finite,
            all zero, or of unequal mass between exact marginals. Traced ones end with status INFEASIBLE.

    Example:
        >>> from jaxdiv import ot
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.1], [1.2]])
        >>> out = solve(ot.PointCloud(x, y), epsilon=1e-2)
        >>> bool(jnp.allclose(out.plan(), jnp.eye(2) / 2, atol=1e-3))
        True
    """
    if regularizer is not None and epsilon is not None:
        raise ValueError("epsilon is short for regularizer=Entropy(epsilon); give one of them.")
    if regularizer is not None and relative_epsilon is not None:
        raise ValueError("relative_epsilon scales epsilon; it takes no regularizer.")
    if not hasattr(geometry, "map_rows"):
        raise ValueError(
            f"geometry must be one of ot, such as ot.CostMatrix(C); got {type(geometry).__name__}."
        )
    n, m = geometry.shape
    rows, columns = _marginals(marginals, n, m)
    a, b = (None if w is None else checks.floating(name, w) for name, w in (("a", a), ("b", b)))
    coarse = max(float(jnp.finfo(w.dtype).eps) for w in (geometry, a, b) if w is not None)
    a, b = _weights("a", a, n, geometry.dtype), _weights("b", b, m, geometry.dtype)
    feasible = _feasible(a, b, rows, columns, coarse)
    if regularizer is None:
        regularizer = Entropy(_epsilon(geometry, a, b, epsilon, relative_epsilon))

    problem: Any
    if isinstance(regularizer, Entropy):
        strength = jnp.asarray(regularizer.epsilon, a.dtype)
        problem = Problem(geometry, a, b, strength, rows, columns)
        feasible = feasible & (strength > 0)
    else:
        if not (rows.exact and columns.exact):
            raise ValueError(f"marginals must be Exact for {type(regularizer).__name__}; use the entropy.")
        problem = SmoothProblem(geometry, a, b, regularizer)
        if solver is None:
            solver = SemiDual() if hasattr(regularizer, "scaled_conjugate") else Dual()
    _fits(solver, problem)
    if not isinstance(adjoint, Implicit | Unroll):
        raise ValueError(f"adjoint must be ot.Implicit() or ot.Unroll(); got {adjoint!r}.")
    potentials, unrolled = _start(init, a, b), isinstance(adjoint, Unroll)
    if unrolled:
        if not isinstance(solver, Sinkhorn) or solver.mode != "log":
            raise ValueError("adjoint=Unroll() needs solver=Sinkhorn(mode='log', max_steps=...).")
        found = _unrolled(solver, potentials, problem, history)
    else:
        stopped = jax.lax.stop_gradient((problem, solver, potentials))
        found = _found(*stopped, history=history, progress=progress)
    value, dual, status, steps, error, errors = found
    if isinstance(problem, Problem):
        # Below the rounding of the potentials epsilon is not resolved, and neither is the error.
        largest = jnp.maximum(jnp.max(jnp.abs(value[0])), jnp.max(jnp.abs(value[1])))
        blind = (status == Status.CONVERGED) & ~(problem.epsilon > jnp.finfo(a.dtype).eps * largest)
        status = jnp.where(blind, Status.STALLED, status)
    status = jnp.where(feasible, status, Status.INFEASIBLE).astype(jnp.int32)
    return Transport(problem, value, dual, status, steps, error, errors, not unrolled)


@partial(jax.jit, static_argnames=("history", "progress"))
def _found(
    problem: Any, solver: Any, potentials: tuple[Array, Array], *, history: int, progress: Progress | None
) -> tuple[Any, ...]:
    """Potentials, dual value, status, steps, error and history."""
    problem = problem.dense()
    if solver is not None:
        options = {"max_steps": solver.max_steps, "history": history, "progress": progress}
        out = run(solver, potentials, problem, **options)
        mass = out.state.mass if isinstance(problem, Problem) else None
        errors = newest_last(out.history, out.steps)
        value = problem.extended(*out.value) if isinstance(solver, SinkhornNewton) else out.value
        return _report(problem, value, mass, out.status, out.steps, out.error, errors)
    return _report(problem, *by_default(problem, potentials, history, progress))


def _report(problem: Any, value: Any, mass: Any, *found: Array) -> tuple[Any, ...]:
    f, g = value
    dual = problem.dual(f, g) if mass is None else problem.value(f, g, mass)
    return (value, dual, *found)


def _unrolled(
    solver: Sinkhorn, potentials: tuple[Array, Array], problem: Problem, history: int
) -> tuple[Any, ...]:
    """Sinkhorn's steps as a scan that reverse mode can follow."""
    problem = problem.dense()

    @partial(jax.checkpoint, prevent_cse=False)
    def advance(state: Any) -> Any:
        return solver.step(state, problem)

    def step(state: Any, _: None) -> tuple[Any, Array]:
        state = jax.lax.cond(state.status == RUNNING, advance, lambda state: state, state)
        return state, state.error

    state, errors = jax.lax.scan(step, solver.init(potentials, problem), length=solver.max_steps)
    status = jnp.where(state.status == RUNNING, Status.MAX_STEPS, state.status)
    status = jnp.where(jnp.isfinite(state.error), status, Status.NONFINITE)
    before = jnp.full((history,), jnp.inf, errors.dtype)
    errors = jnp.where(jnp.arange(errors.size) < state.steps, errors, jnp.inf)
    errors = jnp.concatenate([before, newest_last(errors, state.steps)])[solver.max_steps :]
    return _report(problem, state.value, state.mass, status, state.steps, state.error, errors)


def _marginals(marginals: Sequence[Marginal], n: int, m: int) -> tuple[Marginal, Marginal]:
    if not isinstance(marginals, tuple | list) or len(marginals) != 2:
        raise ValueError(f"marginals must be a pair, such as (ot.KL(1.0), ot.Exact()); got {marginals!r}.")
    for marginal, size in zip(marginals, (n, m), strict=True):
        if isinstance(marginal, type) or not hasattr(marginal, "update"):
            raise ValueError(f"marginals must be objects such as ot.KL(1.0); got {marginal!r}.")
        for name, shapes in (("rho", ((), (size,))), ("mass", ((),))):
            if jnp.shape(getattr(marginal, name, 1.0)) not in shapes:
                raise ValueError(
                    f"{name} of {type(marginal).__name__} must have shape {' or '.join(map(str, shapes))}; got "
                    f"{jnp.shape(getattr(marginal, name))}."
                )
    return marginals[0], marginals[1]


def _weights(name: str, weights: Any, size: int, dtype: Any) -> Float[Array, " n"]:
    if weights is None:
        return jnp.full((size,), 1.0 / size, dtype)
    if weights.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},) to fit the geometry; got {weights.shape}.")
    if checks.concrete(weights) and weights.is_fully_addressable:
        values = np.asarray(weights)
        if not np.all(np.isfinite(values)) or np.any(values < 0) or not np.any(values > 0):
            raise ValueError(
                f"{name} must be finite, nonnegative and not all zero; got values from {values.min():g} to "
                f"{values.max():g}."
            )
    return weights.astype(dtype)


def _feasible(a: Array, b: Array, row: Marginal, column: Marginal, coarse: float) -> Bool[Array, ""]:
    """Whether weights and marginals admit a plan; raises where that is known to be false."""
    fine = jnp.array(True)
    for weights in (a, b):
        fine = fine & jnp.all(weights >= 0) & jnp.all(jnp.isfinite(weights)) & jnp.any(weights > 0)
    total_a, total_b = jnp.sum(a), jnp.sum(b)
    slack = 0.1 * coarse**0.5 * jnp.maximum(total_a, total_b)
    if row.exact and column.exact:
        equal = jnp.abs(total_a - total_b) <= slack
        if checks.concrete(equal) and not equal:
            raise ValueError(
                f"a and b must have equal mass; got {float(total_a):.9g} and {float(total_b):.9g}; normalize "
                "them, or relax a marginal, e.g. marginals=(ot.KL(1.0), ot.Exact())."
            )
        fine = fine & equal
    if isinstance(row, Partial) and isinstance(column, Partial):
        raise ValueError("Partial fixes the mass on both sides; make the other marginal AtMost().")
    for marginal in (row, column):
        fine = fine & jnp.all(getattr(marginal, "rho", 1.0) > 0)
        if isinstance(marginal, Partial):
            possible = marginal.mass <= jnp.minimum(total_a, total_b) + slack
            if checks.concrete(possible) and not possible:
                raise ValueError(
                    f"mass must be at most what a and b hold; got {float(marginal.mass):g} of "
                    f"{float(total_a):g} and {float(total_b):g}."
                )
            fine = fine & possible & (marginal.mass > 0)
    return fine


def _start(init: Any, a: Array, b: Array) -> tuple[Array, Array]:
    if init is None:
        return jnp.zeros_like(a), jnp.zeros_like(b)
    f, g = (checks.floating("init", h) for h in init)
    if f.shape != a.shape or g.shape != b.shape:
        raise ValueError(
            f"init must be potentials of shapes {a.shape} and {b.shape}; got {f.shape}, {g.shape}."
        )
    return f.astype(a.dtype), g.astype(b.dtype)


def _epsilon(
    geometry: Geometry, a: Array, b: Array, epsilon: Numeric | None, relative: str | None
) -> Numeric:
    if epsilon is not None and jnp.ndim(epsilon) != 0:
        raise ValueError(
            f"epsilon must be a scalar; got shape {jnp.shape(epsilon)}; jax.vmap over solve for several."
        )
    if epsilon is not None and relative is None:
        return epsilon
    scale = checks.lookup("relative_epsilon", relative or "mean", _SCALES)
    unit = jax.lax.stop_gradient(_scale(geometry, a, b, scale))
    # Costs that are all zero leave any epsilon.
    return (EPSILON if epsilon is None else epsilon) * jnp.where(unit > 0, unit, 1.0)


@partial(jax.jit, static_argnums=3)
def _scale(geometry: Geometry, a: Array, b: Array, scale: Any) -> Float[Array, ""]:
    return scale(geometry, a, b)


def _fits(solver: Any, problem: Any) -> None:
    """Raises where a solver cannot treat the problem at all."""
    entropic = isinstance(problem, Problem)
    wrong = (SemiDual, Dual) if entropic else (Sinkhorn, SinkhornNewton)
    if solver is not None and (isinstance(solver, wrong) or not hasattr(solver, "step")):
        right = "Sinkhorn or SinkhornNewton" if entropic else "SemiDual or Dual"
        raise ValueError(f"solver must be a core.Solver for the regularizer, {right}; got {solver!r}.")
    if isinstance(solver, SinkhornNewton):
        if not isinstance(jax.eval_shape(lambda: problem.geometry.dense()), CostMatrix):
            raise ValueError("SinkhornNewton holds the cost matrix; use Sinkhorn for a streamed geometry.")
        for name, marginal in (("row", problem.row), ("column", problem.column)):
            if not marginal.smooth:
                raise ValueError(
                    f"SinkhornNewton needs smooth penalties; the {name} marginal is {type(marginal).__name__}; "
                    "use Sinkhorn."
                )
