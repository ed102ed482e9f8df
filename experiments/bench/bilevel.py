"""Every bilevel algorithm on the four standard problems: error against seconds and against oracle calls.

Each algorithm runs with every pair of learning rates of a small grid for a part of the budget; the pair with the least
validation loss goes on, with new seeds, until it has made the calls it may: gradients and products with second
derivatives, each weighed by the share of the data that it looks at. Along the way, off the clock, the hyperobjective
is evaluated with the inner problem solved to the end. An algorithm's error is what it is above the best value that
any of them reached. Compilation is timed apart; runs that diverge are counted.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, section 5, for the problems and the way of comparing.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.bench.bilevel_problems import CASES, Case
from jaxdiv import bilevel

Make = Callable[[Case, Any, Any, Any], bilevel.Algorithm]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare bilevel algorithms."""

    problems: tuple[str, ...] = tuple(CASES)
    """Which of the standard problems."""
    algorithms: tuple[str, ...] = ()
    """Which algorithms; all by default."""
    passes: float = 300.0
    """Oracle calls of a run, in passes over the data of one loss."""
    seeds: int = 3
    """Runs of the tuned algorithm."""
    points: int = 12
    """Where the hyperobjective is evaluated along a run."""
    inner_rates: tuple[float, ...] = (0.3, 1.0)
    """Inner learning rates tried, over the curvature of the inner problem."""
    outer_rates: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Outer learning rates tried, over a rate that suits the problem."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the results; nothing is written by default."""
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Image file of the curves; none by default."""


def two_loops(estimator: Callable[[Any], bilevel.Estimator], inner_steps: int = 10) -> Make:
    """An estimator, given the inner learning rate, in a two-loop algorithm."""

    def make(case: Case, inner_rate: Any, outer_rate: Any, sampler: Any) -> bilevel.Algorithm:
        return bilevel.make_step(
            case.problem,
            estimator(inner_rate),
            optax.sgd(inner_rate),
            optax.sgd(outer_rate),
            inner_steps=inner_steps,
            sampler=sampler,
        )

    return make


def named(algorithm: Callable[..., bilevel.Algorithm], **options: Any) -> Make:
    """An algorithm of `jaxdiv.bilevel`; options that are functions take the inner learning rate."""

    def make(case: Case, inner_rate: Any, outer_rate: Any, sampler: Any) -> bilevel.Algorithm:
        chosen = {name: v(inner_rate) if callable(v) else v for name, v in options.items()}
        txs = optax.sgd(inner_rate), optax.sgd(outer_rate)
        return algorithm(case.problem, *txs, sampler=sampler, **chosen)

    return make


def by_blocks(case: Case, inner_rate: Any, outer_rate: Any, sampler: Any) -> bilevel.Algorithm:
    """SABA draws blocks of its own."""
    txs = optax.sgd(inner_rate), optax.sgd(outer_rate)
    return bilevel.saba(case.problem, *txs, inner_size=case.batch, outer_size=case.batch)


def normalized(case: Case, inner_rate: Any, outer_rate: Any, sampler: Any) -> bilevel.Algorithm:
    """BO-REP, whose outer rate is a length: a hundredth of the rate on the gradient."""
    txs = optax.sgd(inner_rate), optax.sgd(0.01 * outer_rate)
    return bilevel.bo_rep(case.problem, *txs, adjoint_tx=optax.sgd(inner_rate), sampler=sampler)


def joint(algorithm: Callable[..., bilevel.Algorithm], **options: Any) -> Make:
    """An algorithm whose outer transform moves both variables."""

    def make(case: Case, inner_rate: Any, outer_rate: Any, sampler: Any) -> bilevel.Algorithm:
        return algorithm(
            case.problem, optax.sgd(inner_rate), optax.sgd(inner_rate * outer_rate / case.outer_rate),
            sampler=sampler, **options,
        )  # fmt: skip

    return make


PERIOD = 16
"""Steps between two full passes of the methods that make them, as many as a pass has minibatches."""
step_size = {"step_size": lambda rate: rate}
ALGORITHMS: dict[str, Make] = {
    "implicit CG": two_loops(lambda rate: bilevel.implicit_gradient(max_steps=10)),
    "implicit MINRES": two_loops(lambda rate: bilevel.implicit_gradient(method="minres", max_steps=10)),
    "Neumann": two_loops(lambda rate: bilevel.neumann(terms=10, step_size=rate)),
    "Nystrom": two_loops(lambda rate: bilevel.nystrom(rank=10)),
    "T1-T2": two_loops(bilevel.t1_t2),
    "unrolled": two_loops(lambda rate: bilevel.unrolled()),
    "truncated": two_loops(lambda rate: bilevel.unrolled(truncate=3)),
    "one step": two_loops(lambda rate: bilevel.one_step()),
    "finite difference": two_loops(bilevel.finite_difference, inner_steps=1),
    "first order": two_loops(lambda rate: bilevel.first_order()),
    "PZOBO": two_loops(lambda rate: bilevel.pzobo()),
    "zeroth order": two_loops(lambda rate: bilevel.zeroth_order()),
    "BSA": named(bilevel.bsa, **step_size),
    "TTSA": named(bilevel.ttsa, **step_size),
    "stocBiO": named(bilevel.stocbio, **step_size),
    "AmIGO": named(bilevel.amigo),
    "SOBA": named(bilevel.soba),
    "MA-SOBA": named(bilevel.ma_soba),
    "FSLA": named(bilevel.fsla),
    "SABA": by_blocks,
    "SRBA": named(bilevel.srba, period=PERIOD),
    "MRBO": named(bilevel.mrbo, **step_size),
    "SUSTAIN": named(bilevel.sustain, **step_size),
    "VRBO": named(bilevel.vrbo, period=PERIOD, **step_size),
    "F2SA": named(bilevel.f2sa),
    "F3SA": named(bilevel.f3sa),
    "PBGD": joint(bilevel.pbgd),
    "BOME": joint(bilevel.bome),
    "MEHA": joint(bilevel.meha),
    "BO-REP": normalized,
}


def run(make: Make, case: Case, config: Config) -> dict[str, Any]:
    """Tunes an algorithm on a problem and runs it."""
    sampler = bilevel.minibatches(inner=case.batch, outer=case.batch)
    share = case.batch / bilevel_size(case)

    def algorithm(rates: Any) -> bilevel.Algorithm:
        return make(case, rates[0] / case.curvature, rates[1] * case.outer_rate, sampler)

    @jax.jit
    def start(rates: Any, key: Any) -> Any:
        return algorithm(rates).init(case.outer, case.inner, case.data, key)

    @jax.jit
    def advance(rates: Any, state: Any, passes: Any) -> tuple[Any, Any]:
        """Steps until they have made that many calls."""
        step = algorithm(rates).step

        def body(carry: Any) -> Any:
            state, made = carry
            state, info = step(state, case.data)
            return state, made + share * (info.metrics["gradients"] + info.metrics["products"])

        return jax.lax.while_loop(lambda carry: carry[1] < passes, body, (state, jnp.float32(0.0)))

    began = time.perf_counter()
    first = jnp.float32([config.inner_rates[0], config.outer_rates[0]])
    jax.block_until_ready(advance(first, start(first, jax.random.key(0)), 0.0))
    compilation = time.perf_counter() - began

    def value(state: Any) -> float:
        found = float(case.value(state.outer))
        return found if np.isfinite(found) else np.inf

    trials = {}
    for inner_rate in config.inner_rates:
        for outer_rate in config.outer_rates:
            rates = jnp.float32([inner_rate, outer_rate])
            state, _ = advance(rates, start(rates, jax.random.key(0)), config.passes / 3)
            trials[inner_rate, outer_rate] = value(state)
    best = min(trials, key=lambda pair: trials[pair])
    rates = jnp.float32(best)

    curves, diverged = [], 0
    for seed in range(1, config.seeds + 1):
        state = start(rates, jax.random.key(seed))
        curve, seconds, passes = [(0.0, 0.0, value(state))], 0.0, 0.0
        for point in range(1, config.points + 1):
            # A step that overshoots makes the next stretch shorter.
            stretch = config.passes * point / config.points - passes
            began = time.perf_counter()
            state, made = jax.block_until_ready(advance(rates, state, stretch))
            seconds += time.perf_counter() - began
            passes += float(made)
            curve.append((passes, seconds, value(state)))
        diverged += not np.isfinite(curve[-1][2])
        curves.append(curve)
    error = None if case.test_error is None else float(case.test_error(state.inner))
    return {
        "rates": best,
        "curves": curves,
        "compilation_seconds": compilation,
        "diverged": diverged,
        "test_error": error,
    }


def bilevel_size(case: Case) -> int:
    """Examples of the inner loss."""
    return len(jax.tree.leaves(case.data.inner)[0])


def rank(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a problem's table, best final value first."""
    least = min(point[2] for entry in results.values() for curve in entry["curves"] for point in curve)
    rows = []
    for name, entry in results.items():
        last = [curve[-1] for curve in entry["curves"]]
        calls, seconds, final = (float(np.median([point[i] for point in last])) for i in range(3))
        rows.append(
            {
                "algorithm": name,
                "value": final,
                "above_best": final - least,
                "seconds": seconds,
                "passes": calls,
                "compilation_seconds": entry["compilation_seconds"],
                "diverged": entry["diverged"],
                "test_error": entry["test_error"],
                "rates": entry["rates"],
            }
        )
    return sorted(rows, key=lambda row: row["value"])


def render(problem: str, rows: list[dict[str, Any]]) -> Table:
    """A problem's table for people."""
    view = Table(title=problem)
    view.add_column("algorithm", no_wrap=True)
    for column in ("value", "above best", "passes", "s", "s to compile", "test error", "rates"):
        view.add_column(column, justify="right")
    for row in rows:
        test = "" if row["test_error"] is None else f"{row['test_error']:.3f}"
        view.add_row(
            row["algorithm"] + (f" ({row['diverged']} diverged)" if row["diverged"] else ""),
            f"{row['value']:.5f}",
            f"{row['above_best']:.1e}",
            f"{row['passes']:.0f}",
            f"{row['seconds']:.2f}",
            f"{row['compilation_seconds']:.1f}",
            test,
            ", ".join(f"{rate:g}" for rate in row["rates"]),
        )
    return view


def ranking(tables: dict[str, list[dict[str, Any]]]) -> Table:
    """Ranks on each problem and their mean."""
    names = [row["algorithm"] for row in next(iter(tables.values()))]
    places = {
        name: [
            next(i for i, row in enumerate(rows, 1) if row["algorithm"] == name) for rows in tables.values()
        ]
        for name in names
    }
    view = Table(title="rank by final value, and the mean rank")
    view.add_column("algorithm", no_wrap=True)
    for problem in tables:
        view.add_column(problem, justify="right")
    view.add_column("mean", justify="right")
    for name in sorted(names, key=lambda name: np.mean(places[name])):
        view.add_row(name, *map(str, places[name]), f"{np.mean(places[name]):.1f}")
    return view


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Value above the best against passes and against seconds, for each problem."""
    figure = Figure(figsize=(4 * len(results), 7), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    styles = ("-", "--", ":")
    for column, (problem, entries) in enumerate(results.items()):
        least = min(point[2] for entry in entries.values() for curve in entry["curves"] for point in curve)
        for i, (name, entry) in enumerate(entries.items()):
            middle = np.median(np.array(entry["curves"], float), 0)
            for row, x in enumerate((0, 1)):
                axes[row, column].semilogy(
                    middle[1:, x],
                    np.maximum(middle[1:, 2] - least, 1e-9),
                    color=f"C{i % 10}",
                    linestyle=styles[i // 10 % 3],
                    label=name,
                )
        first = next(iter(entries.values()))["curves"][0][0][2]
        for row in range(2):
            # What diverges leaves the picture.
            axes[row, column].set_ylim(top=2 * (first - least))
        axes[0, column].set(title=problem, xlabel="passes over the data")
        axes[1, column].set(xlabel="seconds")
    for row in range(2):
        axes[row, 0].set_ylabel("hyperobjective above the best")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=120)


def main(config: Config) -> dict[str, Any]:
    """Runs the comparison and returns what it writes."""
    chosen = config.algorithms or tuple(ALGORITHMS)
    for kind, names, known in (("problems", config.problems, CASES), ("algorithms", chosen, ALGORITHMS)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SystemExit(
                f"error: --{kind} must name some of {', '.join(known)}; got {', '.join(unknown)}."
            )
    console = Console(width=140)
    results: dict[str, dict[str, Any]] = {}
    tables = {}
    for problem in config.problems:
        case = CASES[problem](0)
        results[problem] = {
            name: run(ALGORITHMS[name], case, config) for name in track(chosen, description=problem)
        }
        tables[problem] = rank(results[problem])
        console.print(render(problem, tables[problem]))
    console.print(ranking(tables))
    everything = {"config": dataclasses.asdict(config), "tables": tables, "curves": results}
    if config.out is not None:
        config.out.write_text(json.dumps(everything, indent=1, default=str))
    if config.figure is not None:
        plot(results, config.figure)
    return everything


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
