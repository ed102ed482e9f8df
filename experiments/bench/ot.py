"""jaxdiv.ot against POT, OTT-JAX and RegOT: seconds until the same error, measured here on what they return.

A solver gets growing budgets of steps until the marginals of its plan are within tolerance, by our measure
and not by its own, or a run has taken longer than the cap; then its ratio is a lower bound. Those that arrive
take turns being timed, in one process and on the threads it may use (``taskset`` gives it fewer). Compilation
is timed apart. The figure shows error against seconds over the budgets.

- small-epsilon: float64, costs U[0, 1], epsilon 1/1200, error 1e-8.
- images: two images as distributions on the pixels, alike.
- easy: float32, point clouds in ten dimensions, epsilon 0.05 of the mean cost, error 1e-3; with gradients by
  the points, and in a batch whose lanes are unequally hard.
- memory: what a process needs more while it solves, and differentiates, a problem whose costs it cannot hold.

References:
    Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying (2024), Accelerating Sinkhorn algorithm
    with sparse Newton iterations, section 5, for the first two problems.
"""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.table import Table

from experiments.bench import ot_peers, ot_problems
from experiments.report import terminal

Section = Literal["small-epsilon", "images", "easy", "memory"]
# Ratios to reach: against RegOT at up to 500 points and at more, against plain Sinkhorn, on images, against OTT's
# default on easy problems, and there in batches and with gradients.
REGOT, PLAIN, IMAGES, EASY, MAPPED = (
    {"few": 5.0, "many": 8.0},
    100.0,
    {"squared L2": 3.0, "L1": 5.0},
    3.0,
    2.0,
)
# Bytes of extra memory to stay under.
MEMORY_TARGET = 600e6


@dataclasses.dataclass(frozen=True)
class Config:
    """Time optimal transport against other libraries."""

    sections: tuple[Section, ...] = ("small-epsilon", "images", "easy", "memory")
    """What to run."""
    sizes: tuple[int, ...] = (500, 900, 2000, 5000)
    """Sizes of the problems with small epsilon."""
    weights: Literal["random", "uniform"] = "random"
    """Weights of those problems; uniform ones make the assignment problem."""
    clouds: tuple[int, ...] = (1000, 4000, 10000)
    """Points in a cloud, forward only."""
    gradients: tuple[int, ...] = (1000, 4000)
    """Points in a cloud, with the gradient by the points."""
    batches: tuple[int, ...] = (256, 1000)
    """Points in each cloud of a batch."""
    lanes: int = 64
    """Problems in a batch."""
    memory_points: int = 20000
    """Points in each cloud of the memory problem, in 64 dimensions."""
    memory_steps: int = 10
    """Steps there."""
    repetitions: int = 5
    """Timed runs of each solver; 3 where one takes over 10 s, and 1 over 30 s."""
    cap: float = 120.0
    """Seconds after which a run that has not arrived counts as a lower bound."""
    seed: int = 0
    """Draws the problems."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the results; nothing is written by default."""
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Image file for error against seconds; none by default."""


def compare(section: Section, problem: ot_peers.Problem, config: Config) -> list[dict[str, Any]]:
    """One row for each solver of a problem, jaxdiv's first."""
    ours = ot_peers.OURS[type(problem)]
    solvers = (ours, *ot_peers.PEERS[type(problem)])
    arrivals = {solver.name: ot_peers.approach(solver, problem, config.cap) for solver in solvers}
    times = ot_peers.take_turns(arrivals, config.repetitions)
    rows: list[dict[str, Any]] = []
    for name, arrival in arrivals.items():
        runs = times.get(name, [])
        seconds = statistics.median(runs) if runs else arrival.curve[-1][0]
        rows.append(
            {
                "section": section,
                "problem": problem.name,
                "solver": name,
                "tol": problem.tol,
                "outcome": arrival.outcome,
                "seconds": seconds,
                "runs": len(runs),
                "error": arrival.error,
                "steps": arrival.steps,
                "threshold": arrival.threshold,
                "compilation_seconds": arrival.prepared.compilation,
                "curve": arrival.curve,
                "ratio": seconds / rows[0]["seconds"] if rows and times.get(ours.name) else None,
                "target": target(problem, name) if rows else None,
            }
        )
    return rows


def target(problem: ot_peers.Problem, solver: str) -> float | None:
    """The ratio to reach; none against the exact solution, which is other work."""
    images = next((ratio for norm, ratio in IMAGES.items() if problem.name.endswith(norm)), None)
    if solver == "POT exact":
        return None
    if images is not None:
        return images
    if isinstance(problem, ot_problems.Clouds):
        return MAPPED if problem.lanes or problem.gradient else EASY
    if solver.startswith("RegOT"):
        return REGOT["few" if problem.cost.shape[0] <= 500 else "many"]
    return PLAIN if solver in ("POT log", "OTT-JAX log") else 1.0


def problems(section: Section, config: Config) -> Iterator[ot_peers.Problem]:
    """The problems of a section, made one at a time."""
    seed = config.seed
    if section == "small-epsilon":
        yield from (ot_problems.random_costs(n, config.weights, seed) for n in config.sizes)
    elif section == "images":
        yield from (ot_problems.images(norm, seed) for norm in IMAGES)
    elif section == "easy":
        yield from (ot_problems.clouds(n, seed) for n in config.clouds)
        yield from (ot_problems.clouds(n, seed, gradient=True) for n in config.gradients)
        yield from (ot_problems.clouds(n, seed, lanes=config.lanes) for n in config.batches)


def comparisons(section: Section, config: Config) -> Iterator[list[dict[str, Any]]]:
    """The rows of each of a section's problems, as they are done."""
    if section == "memory":
        yield [memory_row(config)]
    for problem in problems(section, config):
        yield compare(section, problem, config)


def memory_row(config: Config) -> dict[str, Any]:
    """What a gradient of a streamed problem needs beside what its process held before."""
    n = config.memory_points
    # A process of its own, so that nothing else counts. OTT-JAX 0.6's streaming does not run on jax 0.10.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        extra, seconds = pool.submit(extra_memory, n, config.memory_steps, config.seed).result()
    return {
        "section": "memory",
        "problem": f"n = {n}, d = 64, gradient, {config.memory_steps} steps",
        "solver": ot_peers.OURS[ot_problems.Clouds].name,
        "seconds": seconds,
        "extra_bytes": extra,
        "matrix_bytes": 4 * n * n,
        "target_bytes": MEMORY_TARGET,
    }


def extra_memory(n: int, steps: int, seed: int) -> tuple[int, float]:
    """Bytes by which the peak of this process exceeds what it held once all was compiled; Linux only."""
    problem = ot_problems.clouds(n, seed, dimension=64, gradient=True)
    prepared = ot_peers.sinkhorn(problem, problem.tol, steps)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    _, seconds = ot_peers.timed(prepared)
    return _resident("VmHWM") - before, seconds


def _resident(entry: str) -> int:
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {entry}; the memory section needs Linux.")
    return 1024 * int(found[1])


def render(rows: list[dict[str, Any]]) -> Table:
    """A problem's table for people."""
    memory = rows[0]["section"] == "memory"
    view = Table(
        title=f"{rows[0]['section']}: {rows[0]['problem']}",
        caption=None if memory else "ratio: the peer's seconds by jaxdiv's; >= where it was cut",
    )
    view.add_column("solver", no_wrap=True)
    columns = ("seconds", "error", "steps", "runs", "s to compile", "ratio", "target")
    for column in ("seconds", "MB more", "target", "MB of the matrix") if memory else columns:
        view.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(row["solver"], *(memory_cells if memory else cells)(row))
    return view


def cells(row: dict[str, Any]) -> list[str]:
    stalled, bound = row["outcome"] == "stalled", "" if row["outcome"] == "arrived" else ">= "
    ratio = "" if row["ratio"] is None else f"{bound}{row['ratio']:.2f}"
    return [
        "stalled" if stalled else f"{bound}{row['seconds']:.3g}",
        f"{row['error']:.1e}",
        str(row["steps"]),
        str(row["runs"] or "cut"),
        f"{row['compilation_seconds']:.1f}",
        "fails" if stalled and ratio else ratio,
        "" if row["target"] is None else f">= {row['target']:g}",
    ]


def memory_cells(row: dict[str, Any]) -> list[str]:
    megabytes = [f"{row[f'{name}_bytes'] / 1e6:.0f}" for name in ("extra", "target", "matrix")]
    return [f"{row['seconds']:.1f}", megabytes[0], f"<= {megabytes[1]}", megabytes[2]]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Error against seconds over the budgets, one panel for each problem."""
    names = list(dict.fromkeys((row["section"], row["problem"]) for row in rows))
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.5 * lines), layout="constrained")
    panels = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for panel, (section, problem) in zip(panels, names, strict=False):
        for row in (row for row in rows if (row["section"], row["problem"]) == (section, problem)):
            seconds, errors = zip(*row["curve"], strict=True)
            # Iterates on the way may be no plans at all; an exact solution has no error.
            errors = np.clip(errors, 1e-2 * row["tol"], 10)
            width = 2.5 if row["solver"].startswith("jaxdiv") else 1
            panel.plot(seconds, errors, "o-", ms=3, lw=width, label=row["solver"])
            panel.axhline(row["tol"], color="gray", lw=0.5)
        panel.set(xscale="log", yscale="log", title=problem, xlabel="seconds", ylabel="L1 error")
        panel.legend(fontsize=6)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return figure


def environment() -> dict[str, str]:
    """Versions and machine, on which the numbers depend."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        **{
            name: metadata.version(name)
            for name in ("jaxdiv", "jax", "jaxlib", "ott-jax", "POT", "regot", "numpy")
        },
        "on": device.platform if device.platform == "cpu" else f"{device.platform} ({device.device_kind})",
        "host": f"{platform.machine()} with {cores} cores for this process",
    }


def write(config: Config, rows: list[dict[str, Any]]) -> None:
    """Writes what there is so far, where it was asked for."""
    timed = [row for row in rows if "curve" in row]
    try:
        if config.out is not None:
            config.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
        if config.figure is not None and timed:
            draw(timed).savefig(config.figure)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot write results: {error}; name writable files for --out and --figure."
        ) from error


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark and prints its tables."""
    if config.repetitions < 5:
        raise ValueError(f"--repetitions must be at least 5; got {config.repetitions}.")
    if not config.cap > 0:
        raise ValueError(f"--cap must be positive; got {config.cap}.")
    console = terminal(110)
    rows: list[dict[str, Any]] = []
    for section in config.sections:
        # The other libraries' matrices are float64.
        doubles = section in ("small-epsilon", "images")
        with jax.enable_x64(True) if doubles else contextlib.nullcontext():
            for found in comparisons(section, config):
                console.print(render(found))
                rows += found
                write(config, rows)
    console.print(", ".join(f"{name} {text}" for name, text in environment().items()), highlight=False)
    return rows


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
