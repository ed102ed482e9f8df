"""jaxdiv's solvers and their peers under one signature, for the benchmark `experiments.bench.ot`.

Each is ``prepare(problem, threshold, steps) -> Prepared``: the solver with that threshold of its own and at
most that many steps, compiled where it is compiled. What is timed ends with the plan of a `Matrix`, and with
value and potentials of `Clouds`, whose gradient by the points comes with it where the problem says so.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import regot
from ott.geometry import geometry, pointcloud
from ott.solvers import linear
from ott.solvers.linear import acceleration

from experiments.bench.ot_problems import Clouds, Matrix
from jaxdiv import ot

Problem = Matrix | Clouds


class Prepared(NamedTuple):
    """A solver that is ready to be timed; `run` gives what `Problem.error` takes, and the steps taken."""

    run: Callable[[], tuple[Any, int]]
    compilation: float = 0.0


class Solver(NamedTuple):
    """A name for people, the first budget of steps to try, and the solver."""

    name: str
    prepare: Callable[[Any, float, int], Prepared]
    first: int = 10


def compiled(fn: Callable[..., Any], *inputs: np.ndarray) -> tuple[Callable[[], Any], float]:
    """A jitted function on arrays that JAX already holds, and the seconds it took to compile."""
    arrays = [jnp.asarray(z) for z in inputs]
    began = time.perf_counter()
    executable = jax.jit(fn).lower(*arrays).compile()
    seconds = time.perf_counter() - began
    return lambda: jax.block_until_ready(executable(*arrays)), seconds


def on_matrix(fn: Callable[..., Any], problem: Matrix) -> Prepared:
    """Prepares ``fn(cost, a, b) -> (plan, steps)``."""
    solve, seconds = compiled(fn, problem.cost, problem.a, problem.b)

    def run() -> tuple[np.ndarray, int]:
        plan, steps = solve()
        return np.asarray(plan), int(steps)

    return Prepared(run, seconds)


def newton(problem: Matrix, threshold: float, steps: int) -> Prepared:
    """`ot.SinkhornNewton`."""
    solver = ot.SinkhornNewton(tol=threshold, max_steps=steps)

    def solve(cost: Any, a: Any, b: Any) -> Any:
        out = ot.solve(ot.CostMatrix(cost), a, b, epsilon=problem.epsilon, solver=solver)
        return out.plan(), out.iterations

    return on_matrix(solve, problem)


def ott_matrix(**options: Any) -> Callable[[Matrix, float, int], Prepared]:
    """OTT-JAX's Sinkhorn on a cost matrix."""

    def prepare(problem: Matrix, threshold: float, steps: int) -> Prepared:
        def solve(cost: Any, a: Any, b: Any) -> Any:
            given = geometry.Geometry(cost, epsilon=problem.epsilon)
            out = linear.solve(given, a, b, threshold=threshold, max_iterations=steps, **options)
            return out.matrix, out.n_iters

        return on_matrix(solve, problem)

    return prepare


def regularized_ot(method: Callable[..., Any], **options: Any) -> Callable[[Matrix, float, int], Prepared]:
    """One of RegOT's solvers for the entropy, which stop by the 2-norm of the error."""

    def prepare(problem: Matrix, threshold: float, steps: int) -> Prepared:
        given = (np.asfortranarray(problem.cost), problem.a, problem.b, problem.epsilon)
        tol = threshold / np.sqrt(len(problem.a))

        def run() -> tuple[np.ndarray, int]:
            out = method(*given, tol=tol, max_iter=steps, **options)
            return out.plan, out.niter

        return Prepared(run)

    return prepare


def pot_sinkhorn(problem: Matrix, threshold: float, steps: int) -> Prepared:
    """POT's Sinkhorn in log space, which stops by the 2-norm and counts its steps from 0."""
    given = (problem.a, problem.b, problem.cost, problem.epsilon)
    options = {"stopThr": threshold / np.sqrt(len(problem.a)), "log": True, "warn": False}

    def run() -> tuple[np.ndarray, int]:
        plan, log = pot.bregman.sinkhorn_log(*given, numItermax=steps, **options)
        return plan, log["niter"] + 1

    return Prepared(run)


def pot_exact(problem: Matrix, threshold: float, steps: int) -> Prepared:
    """POT's network simplex, for the problem without entropy; its plan is exact or it has not ended."""

    def run() -> tuple[np.ndarray, int]:
        plan, log = pot.emd(problem.a, problem.b, problem.cost, numItermax=steps, log=True)
        return (plan, 0) if log["warning"] is None else (np.full_like(plan, np.nan), steps)

    return Prepared(run)


def on_clouds(fn: Callable[..., Any], problem: Clouds, weighted: bool) -> Prepared:
    """Prepares ``fn(x, y) -> (value, (f, g, steps))``, whose plan has the weights as factors if asked."""
    if problem.gradient:
        fn = jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)
    solve, seconds = compiled(jax.vmap(fn) if problem.lanes else fn, problem.x, problem.y)

    def run() -> tuple[tuple[np.ndarray, np.ndarray], int]:
        _, (f, g, steps) = solve()[0] if problem.gradient else solve()
        u, v = (np.asarray(h, np.float64) / problem.epsilon for h in (f, g))
        if weighted:
            u, v = u - np.log(u.shape[-1]), v - np.log(v.shape[-1])
        return (u, v), int(np.max(steps))

    return Prepared(run, seconds)


def sinkhorn(problem: Clouds, threshold: float, steps: int) -> Prepared:
    """`ot.Sinkhorn`."""
    solver = ot.Sinkhorn(tol=threshold, max_steps=steps)

    def solve(x: Any, y: Any) -> Any:
        out = ot.solve(ot.PointCloud(x, y), epsilon=problem.epsilon, solver=solver)
        return out.cost, (*out.raw, out.iterations)

    return on_clouds(solve, problem, weighted=True)


def ott_clouds(**options: Any) -> Callable[[Clouds, float, int], Prepared]:
    """OTT-JAX's Sinkhorn on points."""

    def prepare(problem: Clouds, threshold: float, steps: int) -> Prepared:
        def solve(x: Any, y: Any) -> Any:
            given = pointcloud.PointCloud(x, y, epsilon=problem.epsilon)
            out = linear.solve(given, threshold=threshold, max_iterations=steps, **options)
            return out.reg_ot_cost, jax.lax.stop_gradient((out.f, out.g, out.n_iters))

        return on_clouds(solve, problem, weighted=False)

    return prepare


def timed(prepared: Prepared) -> tuple[tuple[Any, int], float]:
    """What a run gives, and its seconds."""
    began = time.perf_counter()
    found = prepared.run()
    return found, time.perf_counter() - began


class Arrival(NamedTuple):
    """How a solver came to the tolerance, or how far it came."""

    prepared: Prepared
    outcome: str  # "arrived", "capped" or "stalled"
    threshold: float
    error: float
    steps: int
    curve: list[tuple[float, float]]


def approach(solver: Solver, problem: Problem, cap: float) -> Arrival:
    """Finds the threshold and the budget of steps with which a solver reaches the problem's tolerance."""
    threshold, budget, curve = problem.tol, solver.first, []
    while True:
        prepared = solver.prepare(problem, threshold, budget)
        (result, steps), seconds = timed(prepared)
        if seconds < 1:
            # The first run also warms up.
            (result, steps), seconds = timed(prepared)
        error = problem.error(result)
        curve.append((seconds, error))
        if error <= problem.tol:
            outcome = "arrived"
        elif seconds >= cap:
            outcome = "capped"
        elif steps >= budget:
            # Rather a little over the cap than a run that says nothing of it.
            budget = solver.first * math.ceil(budget / solver.first * min(3.0, 1.1 * cap / seconds))
            continue
        elif threshold > 1e-3 * problem.tol:
            # It stopped by a measure that is laxer than ours.
            threshold *= max(0.1, 0.8 * problem.tol / error)
            continue
        else:
            outcome = "stalled"
        return Arrival(prepared, outcome, threshold, error, steps, curve)


def take_turns(arrivals: dict[str, Arrival], repetitions: int) -> dict[str, list[float]]:
    """Times those that arrived, one after another and again; the runs that showed the way count if long."""
    times: dict[str, list[float]] = {}
    wanted = {}
    for name, arrival in arrivals.items():
        if arrival.outcome == "arrived":
            first = arrival.curve[-1][0]
            wanted[name] = 1 if first > 30 else 3 if first > 10 else repetitions
            times[name] = [first] if first > 10 else []
    for repetition in range(repetitions):
        for name in list(wanted)[:: 1 if repetition % 2 else -1]:
            if len(times[name]) < wanted[name]:
                times[name].append(timed(arrivals[name].prepared)[1])
    return times


OURS = {
    Matrix: Solver("jaxdiv SinkhornNewton", newton, first=2),
    Clouds: Solver("jaxdiv Sinkhorn", sinkhorn),
}
# RegOT by default factorizes; the density of 5 % beats SPLR's default of 1 % on the larger problems here.
# The momentum of OTT-JAX is Lehmann's, and waits for the rate to settle.
PEERS = {
    Matrix: (
        Solver("RegOT SSNS", regularized_ot(regot.sinkhorn_ssns), first=4),
        Solver("RegOT SPLR", regularized_ot(regot.sinkhorn_splr), first=8),
        Solver("RegOT SPLR, density 0.05", regularized_ot(regot.sinkhorn_splr, density=0.05), first=4),
        Solver("OTT-JAX log", ott_matrix()),
        Solver("OTT-JAX log, momentum", ott_matrix(momentum=acceleration.Momentum(start=300))),
        Solver("POT log", pot_sinkhorn),
        Solver("POT exact", pot_exact, first=10**5),
    ),
    Clouds: (
        Solver("OTT-JAX log", ott_clouds()),
        Solver("OTT-JAX kernel", ott_clouds(lse_mode=False)),
    ),
}
