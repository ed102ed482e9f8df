"""What composing costs: a jaxdiv step against the same step written by hand with optax.

Both train one model on one batch with cross entropy and Adam. The compiled steps are compared by floating
point operations and temporary memory; then they take turns being timed, in one process and on the same
threads. Compilation is timed apart.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from jaxdiv import objectives, oracles, train

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True)
class Config:
    """Time composed steps against hand-written ones."""

    batch_size: int = 128
    """Examples in the batch."""
    width: int = 512
    """Units in each hidden layer of the MLP."""
    channels: int = 16
    """Channels of the CNN's first convolution; the second has twice as many."""
    repetitions: int = 100
    """How often each step's turn comes; medians are over these."""
    steps: int = 3
    """Training steps in one turn: few, so that whatever else the machine does meets both alike."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the results; nothing is written by default."""


class Model(NamedTuple):
    """A model as a pure function, with its first parameters."""

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    inputs: jax.Array


class Pair(NamedTuple):
    """The same training step twice; each is ``(state, batch) -> (state, metrics)``."""

    composed: Callable[..., Any]
    composed_state: Any
    by_hand: Callable[..., Any]
    by_hand_state: Any
    batch: dict[str, jax.Array]


def _layers(*shapes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """Kernels by He's rule, and biases."""
    rng = np.random.default_rng(0)
    scales = [math.sqrt(2 / math.prod(shape[:-1])) for shape in shapes]
    return [
        (jnp.asarray(scale * rng.normal(size=shape), jnp.float32), jnp.zeros(shape[-1]))
        for scale, shape in zip(scales, shapes, strict=True)
    ]


def _inputs(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def mlp(config: Config) -> Model:
    """Three dense layers on 28 x 28 inputs."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        return x @ w + b

    width = config.width
    params = _layers((784, width), (width, width), (width, 10))
    return Model(apply, params, _inputs(config.batch_size, 784))


def cnn(config: Config) -> Model:
    """Two strided convolutions and a dense layer on 28 x 28 images."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x + b)
        w, b = params[-1]
        return x.reshape(x.shape[0], -1) @ w + b

    c = config.channels
    params = _layers((3, 3, 1, c), (3, 3, c, 2 * c), (7 * 7 * 2 * c, 10))
    return Model(apply, params, _inputs(config.batch_size, 28, 28, 1))


MODELS = {"3-layer MLP": mlp, "small CNN": cnn}


def pair(model: Model) -> Pair:
    """Writes the training step of a model in both ways."""
    tx = optax.adam(1e-3)
    batch = {"inputs": model.inputs, "targets": jnp.arange(len(model.inputs)) % 10}

    objective = objectives.chain(
        objectives.forward(lambda params, state, x, key: (model.apply(params, x), state)),
        objectives.loss(cross_entropy, name="ce"),
        objectives.mean(),
    )
    init, composed = train.make_step(objective, oracles.plain(), tx)

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(cross_entropy(model.apply(params, batch["inputs"]), batch["targets"]))

    def by_hand(state: Any, batch: dict[str, jax.Array]) -> Any:
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"value": value}

    state = init(model.params, batch, jax.random.key(2))
    return Pair(composed, state, by_hand, (model.params, tx.init(model.params)), batch)


def compile_step(step: Callable[..., Any], state: Any, batch: Any) -> tuple[Any, float]:
    """The compiled step, which takes its state's memory, and the seconds that took."""
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    return compiled, time.perf_counter() - began


def seconds_per_step(compiled: Any, state: Any, batch: Any, steps: int) -> tuple[float, Any]:
    """Times one turn; gives the state after it too."""
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps, state


def compare(name: str, config: Config) -> dict[str, Any]:
    """Compiles both steps of a model and times them in turns."""
    steps = pair(MODELS[name](config))
    ways = ("composed", "by hand")
    functions = dict(zip(ways, (steps.composed, steps.by_hand), strict=True))
    # Donated memory must not be shared between the two.
    first = zip(ways, (steps.composed_state, steps.by_hand_state), strict=True)
    states = {way: jax.tree.map(jnp.copy, state) for way, state in first}
    compiled, compilation, times = {}, {}, {}
    for way in ways:
        compiled[way], compilation[way] = compile_step(functions[way], states[way], steps.batch)
        _, states[way] = seconds_per_step(compiled[way], states[way], steps.batch, config.steps)
        times[way] = []
    for repetition in range(config.repetitions):
        for way in ways if repetition % 2 else ways[::-1]:
            seconds, states[way] = seconds_per_step(compiled[way], states[way], steps.batch, config.steps)
            times[way].append(seconds)
    flops = {way: compiled[way].cost_analysis()["flops"] for way in ways}
    memory = {way: compiled[way].memory_analysis().temp_size_in_bytes for way in ways}
    seconds = {way: statistics.median(times[way]) for way in ways}

    def ratio(values: dict[str, float]) -> float:
        return values["composed"] / values["by hand"]

    return {
        "model": name,
        "flops_ratio": ratio(flops),
        "memory_ratio": ratio(memory),
        "time_ratio": ratio(seconds),
        "flops": flops,
        "temporary_bytes": memory,
        "seconds_per_step": seconds,
        "compilation_seconds": compilation,
    }


def render(rows: list[dict[str, Any]], config: Config) -> Table:
    """The table for people."""
    view = Table(
        title=f"composed / by hand: medians of {config.repetitions} turns of {config.steps} steps",
        caption="target: a time ratio of at most 1.05",
    )
    view.add_column("model")
    for column in ("FLOPs", "memory", "time", "ms per step", "s to compile"):
        view.add_column(column, justify="right")
    for row in rows:
        milliseconds = [1e3 * seconds for seconds in row["seconds_per_step"].values()]
        view.add_row(
            row["model"],
            *(f"{row[name]:.4f}" for name in ("flops_ratio", "memory_ratio", "time_ratio")),
            " / ".join(f"{value:.3f}" for value in milliseconds),
            " / ".join(f"{value:.2f}" for value in row["compilation_seconds"].values()),
        )
    return view


def environment() -> dict[str, str]:
    """Versions and machine, on which the numbers depend."""
    names = ("jaxdiv", "jax", "jaxlib", "optax")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        "on": f"{device.platform} ({device.device_kind})"
        if device.device_kind != device.platform
        else device.platform,
        "host": f"{platform.machine()} with {os.cpu_count()} cores",
        "in": "float32",
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark and prints its table."""
    for name in ("batch_size", "width", "channels", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}.")
    if config.repetitions < 5:
        raise ValueError(f"--repetitions must be at least 5; got {config.repetitions}.")
    rows = [compare(name, config) for name in MODELS]
    console = Console()
    console.print(render(rows, config))
    console.print(", ".join(f"{name} {text}" for name, text in environment().items()), highlight=False)
    if config.out is not None:
        try:
            config.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
        except OSError as error:
            raise OSError(f"cannot write --out {config.out}: {error}; name a writable file.") from error
    return rows


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
