"""The training loop: scan-compiled chunks of steps, and everything that happens between two chunks."""

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdiv.core import strong
from jaxdiv.core.types import Key, State
from jaxdiv.sampling import Sampler, shuffle
from jaxdiv.train.folder import Row, RunFolder


class Fit(NamedTuple):
    """What a run gave.

    Attributes:
        state: The last state.
        history: One row per chunk: ``step``, means over the chunk of ``value``, ``terms/*`` and
            ``metrics/*``, ``evaluation/*`` at its end, and ``seconds``.
    """

    state: State
    history: list[Row]


class NonFiniteError(FloatingPointError):
    """Training met a value that is not finite.

    Attributes:
        step: The first step whose value was not finite, or the last step of the chunk whose state was not;
            steps count from 0.
        term: What was not finite, e.g. ``"term 'ce'"``.
        detail: The examples it came from and the last finite checkpoint, as far as they are known.
    """

    def __init__(self, step: int, term: str, detail: str):
        super().__init__(step, term, detail)
        self.step = step
        self.term = term
        self.detail = detail

    def __str__(self) -> str:
        return f"step {self.step}: {self.term} is not finite{self.detail}"


def fit(
    step: Callable[[State, Any], tuple[State, dict[str, Any]]],
    state: State,
    data: PyTree,
    *,
    steps: int,
    chunk: int = 100,
    sampler: Sampler | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    on_visit: Callable[[State, Row], None] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    key: Key | None = None,
) -> Fit:
    """Runs a step until `steps` are taken.

    Steps run in compiled chunks; between two chunks the host records losses with the sampler, evaluates,
    logs, and saves a checkpoint from which a killed run goes on bit for bit. SIGTERM ends the chunk, saves,
    and exits with status 143.

    Args:
        step: ``(state, batch) -> (state, metrics)``, from `make_step` or alike; metrics are a mapping or a named
            tuple with a ``value``. Runs of one and the same function share their compilation.
        state: First state; it is copied, and the copies are donated.
        data: The data set, a mapping of arrays [N, ...] as a batch has them; ``"shared"`` is passed whole.
            Batches get ``"index"`` unless the data bring their own. Anything else, such as `bilevel.Data`, whose
            steps draw their own batches, is handed to each step whole.
        steps: Number of steps in all, those of an earlier, interrupted run included.
        chunk: Steps a chunk.
        sampler: Chooses the batches; by default `sampling.shuffle` of up to 128 examples. None for data that are
            handed over whole.
        evaluate: ``(state) -> {name: number}``, called after each chunk.
        on_visit: ``(state, row)``, called after each chunk with its row of the history. The next chunk
            takes the state's memory: copy what is to be kept.
        out: Folder for ``metrics.jsonl`` and ``checkpoints/``; nothing is written by default.
        resume: Whether to go on from the latest checkpoint in `out`; else `out` must hold none.
        progress: Whether to show a progress bar.
        key: Seeds the sampler; ``jax.random.key(0)`` by default.

    Returns:
        The last state and the history, both as an uninterrupted run would give them.

    Raises:
        ValueError: If the data are empty or ragged, weights are negative, infinite or all zero, the
            sampler draws what is not there or has nothing to draw from, or the checkpoint in `out` is damaged.
        NonFiniteError: At the first value that is not finite, naming step and term. The last finite
            checkpoint is kept.
        OSError: If `out` cannot be written; checkpoints saved earlier stay.

    Example:
        >>> import jax
        >>> from jaxdiv import train
        >>> def step(state, batch):
        ...     error = jnp.mean((state - batch["inputs"]) ** 2)
        ...     return state - 0.5 * jnp.mean(state - batch["inputs"]), {"value": error}
        >>> result = train.fit(
        ...     step, jnp.zeros(()), {"inputs": jnp.array([1.0, 3.0])}, steps=30, progress=False
        ... )
        >>> round(float(result.state), 3)
        2.0
    """
    whole = not isinstance(data, Mapping)
    if whole and sampler is not None:
        raise ValueError(
            f"sampler must be None for data handed over whole; got one for {type(data).__name__}; give a mapping."
        )
    n = 1 if whole else _check(data)
    if steps < 1 or chunk < 1:
        raise ValueError(f"steps and chunk must be at least 1; got steps={steps}, chunk={chunk}.")
    sampler = shuffle(min(n, 128)) if sampler is None else sampler
    sampler_state = sampler.init(n, jax.random.key(0) if key is None else key)
    state = strong(jax.tree.map(jnp.copy, state))
    data = jax.tree.map(jnp.asarray, data if whole else dict(data))
    log = None if out is None else RunFolder(out, resume)
    done = 0
    history: list[Row] = []
    if log is not None:
        done, (state, sampler_state), history = log.restore((state, sampler_state), steps)

    with _progress_bar(progress, steps, done) as advance, _terminate_gracefully() as terminated:
        while done < steps:
            size = min(chunk, steps - done)
            began = time.perf_counter()
            draws = []
            for _ in range(size):
                index, sampler_state = sampler.draw(sampler_state)
                draws.append(index)
            if len({len(index) for index in draws}) > 1:
                raise ValueError(
                    "sampler must keep one batch size within a chunk; let it change in record()."
                )
            indices = np.stack(draws)
            if not indices.size or indices.min() < 0 or indices.max() >= n:
                drawn = f"{indices.min()} to {indices.max()}" if indices.size else "none"
                raise ValueError(f"sampler must draw at least one index, all from 0 to {n - 1}; got {drawn}.")
            state, metrics, finite = _run_chunk(step, state, data, indices)
            metrics = jax.tree.map(np.asarray, metrics)
            _check_finite(metrics, bool(finite), indices, done, log)
            losses = metrics.pop("losses", None)
            if losses is not None:
                for index, loss in zip(indices, losses, strict=True):
                    # A link may append rows; those drawn come first.
                    sampler_state = sampler.record(sampler_state, index, loss[: len(index)])
            done += size
            row: Row = {
                "step": done,
                **{name: float(v.mean()) for name, v in _flat(metrics).items()},
            }
            if evaluate is not None:
                row |= {f"evaluation/{name}": float(v) for name, v in evaluate(state).items()}
            row["seconds"] = time.perf_counter() - began
            history.append(row)
            if log is not None:
                log.save(done, (state, sampler_state), row)
            if on_visit is not None:
                on_visit(state, row)
            advance(size, row["value"])
            if terminated.is_set():
                raise SystemExit(143)
    return Fit(state, history)


@functools.partial(jax.jit, static_argnames="step", donate_argnames="state")
def _run_chunk(step: Any, state: State, data: Any, indices: Any) -> tuple[State, dict[str, Any], jax.Array]:
    def told(metrics: Any) -> dict[str, Any]:
        return metrics if isinstance(metrics, dict) else dict(metrics._asdict())

    def body(state: State, index: jax.Array) -> tuple[State, dict[str, Any]]:
        if not isinstance(data, dict):
            state, metrics = step(state, data)
            return state, told(metrics)
        batch = {
            name: jax.tree.map(lambda x: x[index], leaf) for name, leaf in data.items() if name != "shared"
        }
        batch.setdefault("index", index)
        if "shared" in data:
            batch["shared"] = data["shared"]
        state, metrics = step(state, batch)
        return state, told(metrics)

    state, metrics = jax.lax.scan(body, state, indices)
    inexact = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = (
        jnp.all(jnp.stack([jnp.all(~jnp.isnan(leaf)) for leaf in inexact])) if inexact else jnp.array(True)
    )
    return state, metrics, finite


def _check(data: Mapping[str, PyTree]) -> int:
    sizes = {
        name: {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(value)}
        for name, value in data.items()
        if name != "shared"
    }
    every = {size for several in sizes.values() for size in several}
    if len(every) != 1 or 0 in every:
        raise ValueError(f"data must hold arrays with one common, positive number of rows; got {sizes}.")
    if "weights" in data:
        weights = np.asarray(data["weights"], np.float64)
        if not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
            raise ValueError(
                "data['weights'] must be finite and non-negative with a positive sum; "
                f"got a minimum of {weights.min():g} and a sum of {weights.sum():g}."
            )
    return every.pop()


def _flat(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = {"value": metrics["value"]}
    for group in ("terms", "metrics"):
        flat |= {f"{group}/{name}": value for name, value in metrics.get(group, {}).items()}
    return flat


def _check_finite(
    metrics: Mapping[str, Any], finite: bool, indices: np.ndarray, done: int, log: RunFolder | None
) -> None:
    kept = "" if log is None else f"; the last finite checkpoint is {log.last_checkpoint()}"
    bad = ~np.isfinite(metrics["value"])
    if bad.any():
        at = int(bad.argmax())
        terms = [name for name, value in metrics.get("terms", {}).items() if not np.isfinite(value[at])]
        rows = ""
        if "losses" in metrics:
            losses = metrics["losses"][at][: indices.shape[1]]
            spoiled = indices[at][~np.isfinite(losses)]
            if len(spoiled):
                rows = f" for the examples {spoiled[:5].tolist()}{' and others' if len(spoiled) > 5 else ''}"
        name = f"term {terms[0]!r}" if terms else "the value"
        raise NonFiniteError(done + at, name, rows + kept)
    if not finite:
        raise NonFiniteError(done + len(indices) - 1, "the state (parameters or memories)", kept)


@contextmanager
def _progress_bar(show: bool, steps: int, done: int) -> Iterator[Callable[[int, float], None]]:
    if not show:
        yield lambda size, value: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("value {task.fields[value]:.4g}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("fit", total=steps, completed=done, value=float("nan"))
        yield lambda size, value: bar.update(task, advance=size, value=value)


@contextmanager
def _terminate_gracefully() -> Iterator[threading.Event]:
    """Turns SIGTERM into an event that the loop reads between chunks; only the main thread may."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: terminated.set())
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, previous)
