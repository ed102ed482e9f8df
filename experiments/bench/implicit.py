"""Hypergradients through `jaxdiv.implicit`: against jaxopt, against unrolling, and along an outer descent.

Ridge and logistic regression with a penalty for each feature, strong or weak. All ways get one optimality function,
a `stationarity`, and one inner solver; errors are those of the hypergradient that is returned, against a dense one
in float64. Ways take turns; seconds are those of the processor, so that other load does not count. Compilation is
timed apart.

- peers: jaxopt's ``custom_root`` and ours, both with their default linear solver and both with conjugate gradients;
  at their default tolerance, and at the loosest that reaches one error. The derivative alone, with the root as
  ``init``, and a whole step, where a warm-started descent comes before it.
- unrolled: derivatives through the steps of gradient descent against those of the equation at its last iterate.
- path: the adjoints along a descent on the penalties, each begun at the one before, against cold ones.

The target is to take 1/1.5 of jaxopt's time, and no more memory. Of the time, defaults reach it: jaxopt's does not
know that A is symmetric and works on the normal equations, with two products a step and a number of steps that grows
like the condition number; ours tries the symmetric method first. Conjugate gradients against conjugate gradients do
not: both libraries take the same steps of the same two passes over the data, and neither does anything else that
counts. There only the warm start helps, which jaxopt's derivatives do not have. Memory is the data's and a few vectors
of one number a feature, of which ours are up to five more with conjugate gradients and seven by default: the solution
and right-hand side beside the method's own, by which the residual is checked, and the state of two methods.

References:
    Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert (2022), Efficient and modular implicit
    differentiation, section 2.
"""

import dataclasses
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxopt import implicit_diff, linear_solve
from rich.table import Table

from experiments.bench import composition
from experiments.bench.implicit_problems import Problem, condition, descend, loss, problem, route
from experiments.report import terminal
from jaxdiv import implicit, linalg

Section = Literal["peers", "unrolled", "path"]
DTypes = Literal["float32", "float64"]
TARGET = 1.5
DEFAULT_TOL = 1e-5
# The error to reach, and the tolerances tried on the way to it, loosest first.
GOALS = {"float32": 1e-4, "float64": 1e-6}
LADDER = tuple(10 ** (-k / 2) for k in range(2, 25))


@dataclasses.dataclass(frozen=True)
class Config:
    """Time derivatives of solutions."""

    sections: tuple[Section, ...] = ("peers", "unrolled", "path")
    """What to run."""
    problems: tuple[Literal["ridge", "logistic"], ...] = ("ridge", "logistic")
    """Losses."""
    penalties: tuple[Literal["strong", "weak"], ...] = ("strong", "weak")
    """How well the inner problem is conditioned."""
    dtypes: tuple[DTypes, ...] = ("float32", "float64")
    """Precisions."""
    rows: int = 2000
    """Training examples; a quarter as many validate."""
    features: int = 1000
    """Features, and hyperparameters."""
    inner_steps: int = 20
    """Steps of descent before the derivative of a whole step."""
    unrolled_steps: tuple[int, ...] = (10, 100, 1000)
    """Steps of descent that are unrolled."""
    outer_steps: int = 20
    """Steps on the penalties, of at most 0.1 in the logarithm."""
    repetitions: int = 7
    """Timed runs of each way; medians are over these."""
    cap: float = 10.0
    """Seconds after which a run that misses the error to reach is a failure."""
    seed: int = 0
    """Draws the data."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the results; nothing is written by default."""


JAXOPT = {"default": linear_solve.solve_normal_cg, "cg": linear_solve.solve_cg}
OURS = {"default": "auto", "cg": "cg"}


def decorators(tol: Any) -> dict[str, Callable[..., Any]]:
    """What ties a solver to an optimality function, given the tolerance of its linear solves."""
    tie: dict[str, Callable[..., Any]] = {}
    for name, solve in JAXOPT.items():
        theirs = functools.partial(solve, tol=tol)
        tie[f"jaxopt, {name}"] = functools.partial(implicit_diff.custom_root, solve=theirs)
    for name, method in OURS.items():
        ours = functools.partial(linalg.solve, method=method, rtol=tol)
        tie[f"jaxdiv, {name}"] = functools.partial(implicit.custom_root, solve=ours)
    return tie


def hypergradient(case: Problem, name: str, steps: int) -> Callable[..., Any]:
    """``(theta, tol, init, train, valid) -> (value, gradient)`` of a way, by name."""
    inner, fit = descend(case, steps), loss(case.kind)

    def run(theta: Any, tol: Any, init: Any, train: Any, valid: Any) -> Any:
        solver = decorators(tol)[name](condition(case.kind))(inner)
        return jax.value_and_grad(lambda theta: fit(solver(init, theta, train), valid))(theta)

    return run


class Compiled(NamedTuple):
    """A compiled way."""

    call: Callable[..., Any]
    seconds: float
    temporary_bytes: int
    total_bytes: int


def compile_way(fun: Callable[..., Any], *args: Any) -> Compiled:
    began = time.process_time()
    compiled = jax.jit(fun).lower(*args).compile()
    seconds = time.process_time() - began
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(compiled, seconds, memory.temp_size_in_bytes, total)


def take_turns(calls: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """The median processor seconds of each call, all of which have run before."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions):
        for name in calls if repetition % 2 else reversed(calls):
            began = time.process_time()
            jax.block_until_ready(calls[name]())
            times[name].append(time.process_time() - began)
    return {name: statistics.median(runs) for name, runs in times.items()}


def distance(found: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def arrays(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def peers(case: Problem, dtype: str, config: Config) -> list[dict[str, Any]]:
    """One row for each way: the derivative alone, and with the descent before it."""
    _, y, expected = route(case, 1)[0]
    theta, *rest = arrays((case.theta, y, case.train, case.valid), dtype)
    tols = {tol: arrays(tol, dtype) for tol in (DEFAULT_TOL, *LADDER)}
    rows: list[dict[str, Any]] = []
    enough: dict[str, float | None] = {}
    for work, steps in (("derivative", 0), ("whole step", config.inner_steps)):
        ways = {
            name: compile_way(hypergradient(case, name, steps), theta, tols[DEFAULT_TOL], *rest)
            for name in decorators(DEFAULT_TOL)
        }

        def call(name: str, tol: float, ways: dict[str, Compiled] = ways) -> Any:
            return ways[name].call(theta, tols[tol], *rest)

        errors = {name: distance(call(name, DEFAULT_TOL)[1], expected) for name in ways}
        for name in ways if not enough else ():  # the linear solve is the same in both
            enough[name] = None
            for tol in LADDER:
                began = time.process_time()
                if distance(call(name, tol)[1], expected) <= GOALS[dtype]:
                    enough[name] = tol
                if enough[name] or time.process_time() - began > config.cap:
                    break
        seconds = take_turns(
            {name: functools.partial(call, name, DEFAULT_TOL) for name in ways}, config.repetitions
        )
        to_goal = take_turns(
            {name: functools.partial(call, name, tol) for name, tol in enough.items() if tol is not None},
            config.repetitions,
        )
        for name, way in ways.items():
            peer = name.replace("jaxdiv", "jaxopt")
            compared = peer != name
            rows.append(
                {
                    "problem": case.name,
                    "dtype": dtype,
                    "work": work,
                    "way": name,
                    "seconds": seconds[name],
                    "error": errors[name],
                    "ratio": seconds[peer] / seconds[name] if compared else None,
                    "seconds_to_goal": to_goal.get(name),
                    "tol_to_goal": enough[name],
                    "ratio_to_goal": to_goal[peer] / to_goal[name]
                    if compared and {peer, name} <= to_goal.keys()
                    else None,
                    "temporary_bytes": way.temporary_bytes,
                    "memory_ratio": way.total_bytes / ways[peer].total_bytes if compared else None,
                    "compilation_seconds": way.seconds,
                }
            )
    return rows


def unrolled(case: Problem, dtype: str, config: Config) -> list[dict[str, Any]]:
    """One row for each number of steps and way."""
    expected = route(case, 1)[0][2]
    args = arrays((case.theta, np.zeros_like(case.theta), case.train, case.valid), dtype)
    fit = loss(case.kind)
    rows = []
    for steps in config.unrolled_steps:
        inner = descend(case, steps)

        def gradient(solver: Callable[..., Any]) -> Callable[..., Any]:
            return jax.grad(lambda theta, init, train, valid: fit(solver(init, theta, train), valid))

        solvers = {"unrolled": inner, "implicit": implicit.custom_root(condition(case.kind))(inner)}
        ways = {name: compile_way(gradient(solver), *args) for name, solver in solvers.items()}
        calls = {name: functools.partial(way.call, *args) for name, way in ways.items()}
        errors = {name: distance(call(), expected) for name, call in calls.items()}
        seconds = take_turns(calls, config.repetitions)
        rows += [
            {
                "problem": case.name,
                "dtype": dtype,
                "way": name,
                "steps": steps,
                "seconds": seconds[name],
                "error": errors[name],
                "temporary_bytes": way.temporary_bytes,
                "compilation_seconds": way.seconds,
            }
            for name, way in ways.items()
        ]
    return rows


def path(case: Problem, dtype: str, config: Config) -> list[dict[str, Any]]:
    """One row for each way, over the whole descent on the penalties; roots are found off the clock."""
    train, valid = arrays((case.train, case.valid), dtype)
    thetas, roots, expected = zip(*route(case, config.outer_steps), strict=True)
    points = arrays(list(zip(roots, thetas, strict=True)), dtype)
    optimality, fit = condition(case.kind), loss(case.kind)

    def theirs(solve: Any) -> Callable[..., Any]:
        def run(y: Any, theta: Any, u: Any, train: Any, valid: Any) -> Any:
            bar = jax.grad(fit)(y, valid)
            return implicit_diff.root_vjp(optimality, y, (theta, train), bar, solve=solve)[0], u, 0

        return run

    def ours(solve: str) -> Callable[..., Any]:
        def run(y: Any, theta: Any, u: Any, train: Any, valid: Any) -> Any:
            bar = jax.grad(fit)(y, valid)
            (found, _), adjoint = implicit.root_vjp(
                optimality, y, (theta, train), bar, solve, init=u, return_adjoint=True
            )
            return found, adjoint.value, adjoint.info.steps

        return run

    zero = jnp.zeros_like(points[0][0])

    def follow(way: Compiled, warm: bool) -> list[Any]:
        u, found = zero, []
        for point in points:
            gradient, new, steps = way.call(*point, u, train, valid)
            u = new if warm else zero
            found.append((gradient, steps))
        return found

    ways: dict[str, tuple[Compiled, bool]] = {}
    for make, solvers, library in ((theirs, JAXOPT, "jaxopt"), (ours, OURS, "jaxdiv")):
        for name, solve in solvers.items():
            way = compile_way(make(solve), *points[0], zero, train, valid)
            ways[f"{library}, {name}"] = way, False
            if make is ours:
                ways[f"{library}, {name}, warm"] = way, True
    calls = {name: functools.partial(follow, *way) for name, way in ways.items()}
    results = {name: call() for name, call in calls.items()}
    seconds = take_turns(calls, config.repetitions)
    rows = []
    for name, found in results.items():
        peer = name.removesuffix(", warm").replace("jaxdiv", "jaxopt")
        rows.append(
            {
                "problem": case.name,
                "dtype": dtype,
                "way": name,
                "seconds": seconds[name],
                "steps": None if name == peer else sum(int(steps) for _, steps in found),
                "error": max(distance(g, e) for (g, _), e in zip(found, expected, strict=True)),
                "ratio": None if name == peer else seconds[peer] / seconds[name],
                "compilation_seconds": ways[name][0].seconds,
            }
        )
    return rows


SECTIONS = {"peers": peers, "unrolled": unrolled, "path": path}
# Heads of columns, with the entry of a row and how it is shown.
TIMES = {"ms": ("seconds", 1e3, ".1f"), "error": ("error", 1, ".1e")}
COLUMNS: dict[str, dict[str, tuple[str, float, str]]] = {
    "peers": {
        **TIMES,
        "ratio": ("ratio", 1, ".2f"),
        "ms to goal": ("seconds_to_goal", 1e3, ".1f"),
        "tol": ("tol_to_goal", 1, ".0e"),
        "ratio to goal": ("ratio_to_goal", 1, ".2f"),
        "kB": ("temporary_bytes", 1e-3, ".0f"),
        "memory": ("memory_ratio", 1, ".4f"),
    },
    "unrolled": {"steps": ("steps", 1, ".0f"), **TIMES, "MB": ("temporary_bytes", 1e-6, ".2f")},
    "path": {**TIMES, "steps": ("steps", 1, ".0f"), "ratio": ("ratio", 1, ".2f")},
}


def render(section: Section, rows: list[dict[str, Any]]) -> Table:
    """A table for people."""
    first = rows[0]
    caption = None
    if section == "peers":
        caption = (
            f"goal: an error of {GOALS[first['dtype']]:g}. ratio: jaxopt's seconds by jaxdiv's, target >= {TARGET}. "
            "Empty where it is not reached. kB: temporaries. memory: they, arguments and results, "
            "jaxdiv's by jaxopt's, target <= 1."
        )
    title = ", ".join(first[key] for key in ("problem", "dtype", "work") if key in first)
    view = Table(title=f"{section}: {title}", caption=caption)
    view.add_column("way", no_wrap=True)
    columns = COLUMNS[section] | {"s to compile": ("compilation_seconds", 1, ".1f")}
    for column in columns:
        view.add_column(column, justify="right")
    for row in rows:
        cells = [
            "" if row[key] is None else f"{unit * row[key]:{form}}" for key, unit, form in columns.values()
        ]
        view.add_row(row["way"], *cells)
    return view


def environment() -> dict[str, str]:
    """Versions and machine, on which the numbers depend."""
    shared = {name: value for name, value in composition.environment().items() if name != "in"}
    return shared | {"jaxopt": metadata.version("jaxopt")}


def write(config: Config, rows: list[dict[str, Any]]) -> None:
    """Writes what there is so far, where it was asked for."""
    if config.out is not None:
        try:
            config.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
        except OSError as error:
            raise OSError(f"cannot write --out {config.out}: {error}; name a writable file.") from error


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark and prints its tables."""
    for name in ("rows", "features", "outer_steps"):
        if getattr(config, name) < 4:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 4; got {getattr(config, name)}.")
    if config.repetitions < 7:
        raise ValueError(f"--repetitions must be at least 7; got {config.repetitions}.")
    console = terminal()
    results: list[dict[str, Any]] = []
    cases = [
        problem(kind, strength, config.rows, config.features, config.seed)
        for kind, strength in itertools.product(config.problems, config.penalties)
    ]
    for section, case, dtype in itertools.product(config.sections, cases, config.dtypes):
        with jax.enable_x64(dtype == "float64"):
            rows = SECTIONS[section](case, dtype, config)
        for work in dict.fromkeys(row.get("work") for row in rows):
            console.print(render(section, [row for row in rows if row.get("work") == work]))
        results += [{"section": section, **row} for row in rows]
        write(config, results)
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), highlight=False)
    return results


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
