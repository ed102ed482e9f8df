"""How claims run: one fresh process for each, so that none can take the others down."""

import contextlib
import dataclasses
import importlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]
"""What is kept of a run: key, config, versions, device, seconds; ``measured`` and ``holds``, or ``error``."""


class Task(NamedTuple):
    """One run of one claim.

    Attributes:
        slug: The paper's id.
        role: ``"claim"``, or ``"control"`` with the method switched off.
        module: The script's dotted name.
        config: Its config.
        key: Identifies everything the outcome depends on.
    """

    slug: str
    role: str
    module: str
    config: Any
    key: str


def versions() -> dict[str, str]:
    """Versions that a measurement depends on."""
    import jax

    import jaxdiv

    python = ".".join(map(str, sys.version_info[:2]))
    return {"jaxdiv": jaxdiv.__version__, "jax": jax.__version__, "python": python}


def as_json(config: Any) -> dict[str, Any]:
    """A config as results.json keeps it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def execute(tasks: Sequence[Task], jobs: int, scratch: Path) -> Iterator[tuple[Task, Record]]:
    """Runs the tasks, at most `jobs` at a time (0: in this process); yields each record as it is ready.

    A process that dies gives a record with an error. Leaving the iterator early ends the running ones.
    """
    if jobs == 0:
        for task in tasks:
            yield task, _measure(task, scratch)
        return
    # Fork would copy the state of a running XLA client.
    context = multiprocessing.get_context("spawn")
    queue = list(tasks)
    running: dict[Any, tuple[Task, Any]] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs:
                task = queue.pop(0)
                _path(task, scratch, "json").unlink(missing_ok=True)
                process = context.Process(target=_work, args=(task, scratch), daemon=True)
                with _sharing_the_machine():
                    process.start()
                running[process.sentinel] = (task, process)
            for sentinel in multiprocessing.connection.wait(list(running)):
                task, process = running.pop(sentinel)
                process.join()
                path = _path(task, scratch, "json")
                if path.exists():
                    yield task, json.loads(path.read_text())
                else:
                    log = _path(task, scratch, "log")
                    yield task, {"error": f"process ended with status {process.exitcode}; see {log.name}"}
    finally:
        for _, process in running.values():
            process.terminate()


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _path(task: Task, scratch: Path, suffix: str) -> Path:
    return scratch / f"{task.slug}-{task.role}.{suffix}"


def _work(task: Task, scratch: Path) -> None:
    """A worker's life: what is printed goes to a log, the record to a file."""
    scratch.mkdir(parents=True, exist_ok=True)
    with _path(task, scratch, "log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        write(_path(task, scratch, "json"), json.dumps(_measure(task, scratch)))


def _measure(task: Task, scratch: Path) -> Record:
    import jax

    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    record: Record = {
        "key": task.key,
        "config": as_json(task.config),
        "versions": versions(),
        "device": f"{device.device_kind}{cores}",
    }
    began = time.perf_counter()
    try:
        module = importlib.import_module(task.module)
        claim = module.run(task.config)
        record["words"] = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
        record["measured"] = {name: _numbers(name, value) for name, value in claim.measured.items()}
        record["holds"] = bool(claim.holds)
        if claim.figure is not None:
            figure = _path(task, scratch, "png")
            figure.parent.mkdir(parents=True, exist_ok=True)
            claim.figure.savefig(figure, dpi=120)
    except Exception as error:
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = round(time.perf_counter() - began, 1)
    return record


def _numbers(name: str, value: float | Sequence[float]) -> float | list[float]:
    several = isinstance(value, Sequence)
    values = [float(f"{float(v):.5g}") for v in (value if several else [value])]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"measured {name!r} must be finite; got {values}.")
    return values if several else values[0]


@contextlib.contextmanager
def _sharing_the_machine() -> Iterator[None]:
    """Lets a process that starts here use one core and no more accelerator memory than it needs."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    wanted: Mapping[str, str] = {
        "XLA_FLAGS": flags,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "MPLBACKEND": "Agg",
    }
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
