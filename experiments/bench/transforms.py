"""What transforms and oracles cost: updates of a large tree against Adam's and optax's, steps against plain ones.

The compiled updates take turns on one gradient, each on its own state in place, and so do the compiled steps of an
MLP under each oracle; compilation is apart. An update moves memory and little else, so it is told beside the time how
many bytes a parameter its state has and how many its program reads and writes, as XLA counts them. M-FAC's
product with the inverse Fisher matrix of m gradients reads these twice, x twice and writes the result: its bound is
4 d (2 m + 3) bytes at the bandwidth with which the same gradients are negated in place or multiplied by a vector, the
faster of the two.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table

from experiments.bench import composition
from experiments.report import terminal
from jaxdiv import convex, linalg, losses, objectives, oracles, train, transforms

MATRICES = 4
"""Matrices of the tree, each with a bias."""
TARGET, MFAC_TARGET = 1.3, 2.0
PLAIN = oracles.plain()
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Config:
    """Time updates of a large tree and steps under each oracle."""

    parameters: int = 10_000_000
    """Numbers in the tree, about."""
    window: int = 8
    """Gradients in M-FAC's window."""
    batch_size: int = 128
    """Examples in the batch of the oracles' steps."""
    width: int = 512
    """Units in the hidden layers of their MLP."""
    repetitions: int = 15
    """How often each turn comes; medians are over these."""
    steps: int = 3
    """Training steps in one turn of an oracle; an update's turn is one."""
    only: tuple[str, ...] = ()
    """Transforms and oracles by their names in the tables, besides what they are compared with; all by default."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the results; nothing is written by default."""


class Case(NamedTuple):
    """A transform, its counterpart's name if it has one, and whether the target speaks of the two."""

    tx: optax.GradientTransformation
    counterpart: str | None = None
    target: bool = False


def cases(config: Config) -> dict[str, Case]:
    """Directions, without a learning rate; optax's first."""
    adam = optax.scale_by_adam()
    return {
        "optax adam": Case(adam),
        "optax lion": Case(optax.scale_by_lion()),
        "optax adan": Case(optax.scale_by_adan()),
        "optax trust ratio": Case(optax.scale_by_trust_ratio()),
        "optax trust ratio, adam": Case(optax.chain(optax.scale_by_trust_ratio(), adam)),
        "optax clip by norm": Case(optax.clip_by_global_norm(1.0)),
        "optax clip by norm, adam": Case(optax.chain(optax.clip_by_global_norm(1.0), adam)),
        "lion_k": Case(transforms.scale_by_lion_k(), "optax lion", True),
        "adan": Case(transforms.scale_by_adan(), "optax adan", True),
        "perp_grad": Case(transforms.perp_grad(), "optax trust ratio", True),
        "perp_grad, adam": Case(optax.chain(transforms.perp_grad(), adam), "optax trust ratio, adam"),
        "clip_by_quantile": Case(transforms.clip_by_quantile(0.1), "optax clip by norm", True),
        "clip_by_quantile, adam": Case(
            optax.chain(transforms.clip_by_quantile(0.1), adam), "optax clip by norm, adam"
        ),
        "adagrad_norm": Case(transforms.scale_by_adagrad_norm(), "optax clip by norm"),
        "noise_adaptive_lmo, signs": Case(
            transforms.scale_by_noise_adaptive_lmo({"all": convex.linf}, "all", alpha=1.0), "optax lion"
        ),
        "mfac": Case(transforms.scale_by_mfac(config.window, 1e-3)),
    }


def select(known: Mapping[str, T], only: tuple[str, ...], reference: str) -> dict[str, T]:
    """The entries named, or all, and the reference."""
    return {name: entry for name, entry in known.items() if not only or name in (*only, reference)}


def tree(config: Config, seed: int) -> dict[str, jax.Array]:
    """Square matrices and biases of standard normal numbers."""
    side = max(1, math.isqrt(config.parameters // MATRICES))
    rng = np.random.default_rng(seed)
    shapes = {f"{kind}{i}": (side,) * ndim for i in range(MATRICES) for kind, ndim in (("w", 2), ("b", 1))}
    return {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def size_in_bytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(values))


class Turn(NamedTuple):
    """What one turn does: a compiled ``(state) -> state`` in place, its first state, seconds and bytes of it."""

    call: Callable[[Any], Any]
    state: Any
    compilation: float
    accessed: float


def turn(function: Callable[..., Any], state: Any, *arguments: Any) -> Turn:
    """Compiles ``function(state, *arguments) -> (state, …)``, which takes its state's memory."""
    began = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state, *arguments).compile()
    seconds = time.perf_counter() - began
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed", math.nan)
    return Turn(lambda state: compiled(state, *arguments), state, seconds, accessed)


def medians(turns: dict[str, Turn], repetitions: int, steps: int = 1) -> dict[str, float]:
    """Median seconds of a step of each, by turns, forward and backward."""
    states = {name: jax.tree.map(jnp.copy, entry.state) for name, entry in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for repetition in range(repetitions + 1):
        for name in list(turns)[:: 1 if repetition % 2 else -1]:
            began = time.perf_counter()
            for _ in range(steps):
                outputs = turns[name].call(states[name])
                states[name] = outputs[0]
            jax.block_until_ready(outputs)
            if repetition:  # the first warms up
                times[name].append((time.perf_counter() - began) / steps)
            del outputs
    return {name: statistics.median(values) for name, values in times.items()}


def updates(config: Config) -> list[dict[str, Any]]:
    """One row for each transform."""
    params, gradient = tree(config, 0), tree(config, 1)
    count = optax.tree.size(params)
    known = cases(config)
    chosen = select(known, config.only, "optax adam")
    against = {case.counterpart for case in chosen.values()}
    chosen = {name: case for name, case in known.items() if name in chosen or name in against}

    def prepare(tx: optax.GradientTransformation) -> Turn:
        def update(state: Any, gradient: Any, params: Any) -> tuple[Any, Any]:
            direction, state = tx.update(gradient, state, params)
            return state, direction

        return turn(update, tx.init(params), gradient, params)

    turns = {name: prepare(case.tx) for name, case in chosen.items()}
    seconds = medians(turns, config.repetitions)
    rows = []
    for name, case in chosen.items():
        ratio = None if case.counterpart is None else seconds[name] / seconds[case.counterpart]
        rows.append(
            {
                "transform": name,
                "milliseconds": 1e3 * seconds[name],
                "to_adam": seconds[name] / seconds["optax adam"],
                "counterpart": case.counterpart,
                "to_counterpart": ratio,
                "target": TARGET if case.target else None,
                "state_bytes": size_in_bytes(turns[name].state) / count,
                "accessed_bytes": turns[name].accessed / count,
                "compilation_seconds": turns[name].compilation,
            }
        )
    return rows


def inverse_fisher(config: Config) -> dict[str, float]:
    """M-FAC's product against its bytes."""
    x = tree(config, 2)
    window = linalg.mfac_window(x, config.window)
    push = jax.jit(lambda window, key: window.push(_like(x, key)), donate_argnums=0)
    for key in jax.random.split(jax.random.key(0), config.window):
        window = push(window, key)
    # All but the negation, which is in place, change nothing: their states are empty.
    grads = window.grads
    turns = {
        "product": turn(lambda state, window, x: (state, window.inverse(x, 1e-3)), (), window, x),
        "negate": turn(lambda grads: (jax.tree.map(jnp.negative, grads),), grads),
        "multiply": turn(lambda state, grads, x: (state, _products(grads, x)), (), grads, x),
    }
    seconds = medians(turns, config.repetitions)
    rows, one = size_in_bytes(grads), size_in_bytes(x)
    bandwidth = max(2 * rows / seconds["negate"], (rows + one) / seconds["multiply"])
    bound = 2 * rows + 3 * one
    return {
        "milliseconds": 1e3 * seconds["product"],
        "bound_bytes": bound,
        "bytes_ratio": turns["product"].accessed / bound,
        "bandwidth": bandwidth,
        "time_ratio": seconds["product"] * bandwidth / bound,
        "target": MFAC_TARGET,
    }


def _like(x: Any, key: Any) -> Any:
    keys = dict(zip(x, jax.random.split(key, len(x)), strict=True))
    return {name: jax.random.normal(keys[name], leaf.shape) for name, leaf in x.items()}


def _products(grads: Any, x: Any) -> jax.Array:
    """Inner products of each gradient with x."""
    dots = jax.tree.map(lambda rows, leaf: rows.reshape(len(rows), -1) @ leaf.ravel(), grads, x)
    return jnp.sum(jnp.stack(jax.tree.leaves(dots)), axis=0)


class Way(NamedTuple):
    """An oracle by the model, the gradients of a step, forward and backward, and the links that the loss needs."""

    make: Callable[[Any], oracles.Oracle]
    gradients: float
    links: tuple[objectives.Link, ...] = ()


def ways(config: Config) -> dict[str, Way]:
    """The oracles, plain first. A forward pass counts a third of a gradient."""
    return {
        "plain": Way(lambda apply: PLAIN, 1),
        "sam": Way(lambda apply: oracles.sam(PLAIN), 2),
        "asam": Way(lambda apply: oracles.sam(PLAIN, geometry="adaptive"), 2),
        "tram": Way(lambda apply: oracles.tram(PLAIN, apply), 2 + 2 / 3),
        "tram_x": Way(lambda apply: oracles.tram_x(PLAIN, apply), 2 + 2 / 3),
        "ignite": Way(lambda apply: oracles.ignite(PLAIN, apply), 3),
        "target_surrogate": Way(
            lambda apply: oracles.target_surrogate(PLAIN, apply, losses.cross_entropy, eta=0.1, steps=2), 3
        ),
        "confidence_normalized": Way(lambda apply: oracles.confidence_normalized(PLAIN), 1),
        "saf": Way(lambda apply: PLAIN, 1, (objectives.saf(config.batch_size),)),
    }


def steps(config: Config) -> list[dict[str, Any]]:
    """One row for each oracle: a step of SGD on an MLP."""
    model = composition.mlp(composition.Config(batch_size=config.batch_size, width=config.width))
    batch = {
        "inputs": model.inputs,
        "targets": jnp.arange(config.batch_size) % 10,
        "index": jnp.arange(config.batch_size),
    }

    def apply(params: Any, state: Any, x: jax.Array, key: Any) -> tuple[jax.Array, Any]:
        return model.apply(params, x), state

    turns = {}
    chosen = select(ways(config), config.only, "plain")
    for name, way in chosen.items():
        objective = objectives.chain(
            objectives.forward(apply),
            objectives.loss(losses.cross_entropy, name="ce"),
            *way.links,
            objectives.mean(),
        )
        init, step = train.make_step(objective, way.make(apply), optax.sgd(1e-3))
        turns[name] = turn(step, init(model.params, batch, jax.random.key(0)), batch)
    seconds = medians(turns, config.repetitions, config.steps)
    return [
        {
            "oracle": name,
            "milliseconds": 1e3 * seconds[name],
            "to_plain": seconds[name] / seconds["plain"],
            "gradients": way.gradients,
            "compilation_seconds": turns[name].compilation,
        }
        for name, way in chosen.items()
    ]


def verdict(ratio: float, target: float) -> str:
    return f"≤ {target:g}: {'met' if ratio <= target else 'missed'}"


def render(results: dict[str, Any], config: Config) -> list[Table]:
    """The tables for people."""
    first = Table(title=f"updates of {config.parameters:,} parameters: medians of {config.repetitions} turns")
    first.add_column("transform", no_wrap=True)
    for column in ("ms", "/ Adam", "/ counterpart", "target", "state B", "moved B", "s to compile"):
        first.add_column(column, justify="right")
    for row in results["transforms"]:
        ratio = row["to_counterpart"]
        first.add_row(
            row["transform"],
            f"{row['milliseconds']:.2f}",
            f"{row['to_adam']:.2f}",
            "" if ratio is None else f"{ratio:.2f} {row['counterpart'].removeprefix('optax ')}",
            "" if row["target"] is None else verdict(ratio, row["target"]),
            f"{row['state_bytes']:.1f}",
            f"{row['accessed_bytes']:.0f}",
            f"{row['compilation_seconds']:.2f}",
        )
    second = Table(title=f"M-FAC's product, {config.window} gradients, against its bytes")
    for column in ("ms", "GB/s possible", "bytes / bound", "time / bound", "target"):
        second.add_column(column, justify="right")
    product = results["mfac"]
    second.add_row(
        f"{product['milliseconds']:.2f}",
        f"{product['bandwidth'] / 1e9:.1f}",
        f"{product['bytes_ratio']:.2f}",
        f"{product['time_ratio']:.2f}",
        verdict(product["time_ratio"], product["target"]),
    )
    third = Table(
        title=f"steps of an MLP: medians of {config.repetitions} turns of {config.steps}",
        caption="gradients: what the oracle's own account lets expect, a forward pass a third of one",
    )
    third.add_column("oracle", no_wrap=True)
    for column in ("ms", "/ plain", "gradients", "s to compile"):
        third.add_column(column, justify="right")
    for row in results["oracles"]:
        third.add_row(
            row["oracle"],
            f"{row['milliseconds']:.2f}",
            f"{row['to_plain']:.2f}",
            f"{row['gradients']:.2f}",
            f"{row['compilation_seconds']:.2f}",
        )
    return [first, second, third]


def main(config: Config) -> dict[str, Any]:
    """Runs the benchmark and prints its tables."""
    for name in ("window", "batch_size", "width", "repetitions", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}.")
    if config.parameters < MATRICES:
        raise ValueError(f"--parameters must be at least {MATRICES}; got {config.parameters}.")
    names = {**cases(config), **ways(config)}
    if not set(config.only) <= set(names):
        raise ValueError(f"--only must name some of {'; '.join(names)}; got {config.only}.")
    results = {"transforms": updates(config), "mfac": inverse_fisher(config), "oracles": steps(config)}
    console = terminal()
    console.print(*render(results, config), sep="\n")
    environment = composition.environment()
    console.print(", ".join(f"{name} {text}" for name, text in environment.items()), highlight=False)
    if config.out is not None:
        try:
            config.out.write_text(json.dumps({"environment": environment, **results}, indent=1))
        except OSError as error:
            raise OSError(f"cannot write --out {config.out}: {error}; name a writable file.") from error
    return results


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
