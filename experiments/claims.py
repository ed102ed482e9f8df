"""Executable claims: what a paper's script gives back, and the command that measures all of them.

A script ``experiments/<area>/<slug>.py`` holds a frozen `Config`, a ``run(config) -> Claim``, a small
``SMOKE`` config for the tests, and a ``main``. The first paragraph of its docstring is the claim in words.
Each claim is measured twice, as it stands and with the method switched off (``control=True``), and

    works      it holds, and its control does not (or it is an identity, marked `exact`)
    negative   it does not hold, or its control holds as well
    failed     one of the two raised an error or was killed

Every run is one record in ``results.json``. A record whose key (slug, config, versions and the script's
text) is unchanged is not measured again, so a killed run goes on where it was.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import signal
import sys
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import claims_table
from experiments.claims_workers import Task, as_json, execute, versions, write

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a script measured.

    Attributes:
        measured: Named numbers, or lists of them with one entry per seed.
        holds: Whether the inequality of the claim is true of them.
        figure: A matplotlib figure, or None.
    """

    measured: Mapping[str, float | Sequence[float]]
    holds: bool
    figure: Any = None


@dataclasses.dataclass(frozen=True)
class Config:
    """What all claims have in common; scripts add their own sizes."""

    exact: ClassVar[bool] = False
    """Whether the claim is an identity, which needs no control."""
    seeds: int = 3
    """Number of seeds."""
    control: bool = False
    """Measure the same with the method switched off."""


def show(claim: Claim) -> None:
    """Prints what a script measured."""
    console = Console(highlight=False)
    for name, value in claim.measured.items():
        console.print(f"{name}: {claims_table.number(value)}", markup=False)
    console.print("holds" if claim.holds else "does not hold", style="bold")


def load(script: str) -> ModuleType:
    """Imports the script that a row of the catalogue names by its path."""
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def claims(
    slugs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SLUG ...]")]] = (),
    *,
    jobs: int = 2,
    seeds: int | None = None,
    fresh: bool = False,
    out: Path = ROOT / "experiments",
    catalogue: Path = ROOT / "papers.toml",
) -> int:
    """Measure the papers' claims and their controls; write RESULTS.md and results.json.

    What was measured before and has not changed since is kept. A claim that does not hold is a result; one
    that fails with an error is reported, the others go on, and the exit status is 1.

    Args:
        slugs: Claims to measure, by the papers' id; all that the catalogue has by default.
        jobs: Processes at a time; 0 measures in this one.
        seeds: Seeds per claim instead of each script's own number.
        fresh: Measure again even what is unchanged.
        out: Folder of RESULTS.md and results.json. Logs and figures go to its runs/, by default to the
            checkout's runs/claims/.
        catalogue: The catalogue of papers.

    Returns:
        The exit status.
    """
    console = Console(stderr=True, highlight=False)
    papers = {paper["id"]: paper for paper in tomllib.loads(catalogue.read_text())["paper"]}
    known = [slug for slug, paper in papers.items() if paper["claim"]]
    unknown = sorted(set(slugs) - set(known))
    if unknown:
        console.print(f"no claim named {', '.join(unknown)}; known are {', '.join(known)}.", markup=False)
        return 2
    if jobs < 0 or (seeds is not None and seeds < 1):
        console.print(f"jobs must be at least 0 and seeds at least 1; got {jobs} and {seeds}.")
        return 2
    chosen = slugs or tuple(known)
    store = out / "results.json"
    results: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    scratch = ROOT / "runs" / "claims" if out == ROOT / "experiments" else out / "runs"

    tasks = []
    for slug in chosen:
        row = results.setdefault(slug, {})
        try:
            own = _tasks(papers[slug], seeds)
            row["exact"] = own[0].config.exact
            tasks += own
        except Exception as error:
            traceback.print_exc()
            row["claim"] = {"error": f"{type(error).__name__}: {error}"}
    waiting = [task for task in tasks if fresh or not _finished(results, task)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, _terminate_gracefully():
        bar = progress.add_task("claims", total=len(tasks), completed=len(tasks) - len(waiting))
        for task, record in execute(waiting, jobs, scratch):
            results[task.slug][task.role] = record
            _save(store, results)
            progress.console.print(f"{task.slug} {task.role}: {_outcome(record)}", markup=False)
            progress.advance(bar)
    for row in results.values():
        row["verdict"] = claims_table.verdict(row)
    _save(store, results)
    write(out / "RESULTS.md", claims_table.markdown(papers, results))
    console.print(f"results in {out / 'RESULTS.md'}")
    return int(any(results[slug]["verdict"] == "failed" for slug in chosen))


def _tasks(paper: Mapping[str, Any], seeds: int | None) -> list[Task]:
    module = load(paper["claim"])
    config = module.Config() if seeds is None else module.Config(seeds=seeds)
    configs = {"claim": config}
    if not config.exact:
        configs["control"] = dataclasses.replace(config, control=True)
    text = inspect.getsource(module)
    return [
        Task(paper["id"], role, module.__name__, own, _key(paper["id"], own, text))
        for role, own in configs.items()
    ]


def _key(slug: str, config: Config, text: str) -> str:
    parts = (slug, as_json(config), text, versions())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _finished(results: Mapping[str, Any], task: Task) -> bool:
    record = results[task.slug].get(task.role, {})
    return record.get("key") == task.key and "error" not in record


def _outcome(record: Mapping[str, Any]) -> str:
    if "error" in record:
        return f"failed, {record['error']}"
    return f"{'holds' if record['holds'] else 'does not hold'}, {record['seconds']:.0f} s"


def _save(store: Path, results: Mapping[str, Any]) -> None:
    # Quantities keep the order in which a script names them.
    write(store, json.dumps(dict(sorted(results.items())), indent=1) + "\n")


@contextlib.contextmanager
def _terminate_gracefully() -> Iterator[None]:
    """Turns SIGTERM into an exit that takes the workers along."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
