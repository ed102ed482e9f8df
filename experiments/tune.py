"""Hyperparameters of the main job's student: bilevel optimization against random search of equal cost.

A teacher MLP learns the digits. A small student minimizes, on training digits with Gaussian noise of spread s added,

    (1 - alpha) CE(y, student) + alpha T^2 KL(teacher_T || student_T) + sum_l d_l ||W_l||^2 / 2

and its hyperparameters alpha, s and d_l (one for each layer) are tuned on a validation split: by random search, which
trains a student for each draw and keeps the one with the least validation cross entropy, and by bilevel
optimization, which moves them along the hypergradient of that cross entropy while a student trains, from the middle of
the ranges, which is the search's first draw too, and then trains one student with what it found. Both may take the
same number of gradient evaluations, a product with second derivatives counted as two; the last training is part of it.
The test split is looked at once, in the end.
"""

import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.table import Table

from experiments.report import interval, terminal
from jaxdiv import bilevel, diagnostics, divergences, losses, nn, objectives
from jaxdiv.testing.data import digits

FEATURES, CLASSES = 64, 10
PRODUCT = 2
"""Gradients that a product with second derivatives counts for."""
METHODS = ("middle", "random search", "bilevel")


@dataclasses.dataclass(frozen=True)
class Config:
    """Tune a student's regularization, augmentation and loss mixture."""

    seeds: int = 10
    """Number of seeds: each draws its own split, teacher, draws and students."""
    trainings: int = 10
    """Budget of each method, in trainings of a student."""
    steps: int = 600
    """Steps of a training."""
    batch_size: int = 128
    """Examples in each batch of training or validation."""
    train_examples: int = 100
    """Examples the student learns from; as many again teach the teacher beside them."""
    validation_examples: int = 200
    """Examples the hyperparameters are tuned on."""
    teacher_width: int = 256
    """Units in the teacher's hidden layer."""
    student_width: int = 12
    """Units in the student's hidden layer."""
    temperature: float = 4.0
    """Temperature of both softmaxes in the divergence."""
    learning_rate: float = 1e-2
    """Of Adam, for the weights."""
    outer_learning_rate: float = 5e-2
    """Of Adam, for the unconstrained hyperparameters."""
    inner_steps: int = 30
    """Training steps between two steps of the hyperparameters; the hypergradient follows all of them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for results.json and the figure; nothing is written by default."""


SPACE = bilevel.hparam_space(
    {
        "mixture": bilevel.Range(0.0, 1.0),
        "noise": bilevel.Range(0.0, 1.0),
        "log_decay_hidden": bilevel.Range(math.log(1e-6), math.log(1.0)),
        "log_decay_output": bilevel.Range(math.log(1e-6), math.log(1.0)),
    }
)


def model(widths: tuple[int, ...], seed: Any) -> tuple[Any, Any]:
    module = nn.MLP(widths, rngs=nnx.Rngs(seed))
    return nn.functional(module).apply, nnx.state(module, nnx.Param)


def noise(spread: Any) -> objectives.Link:
    """Augments by Gaussian noise; its spread may be differentiated."""

    def update(params, record, key):
        if key is None:
            return record
        drawn = jax.random.normal(key, record.inputs.shape, record.inputs.dtype)
        return record._replace(inputs=record.inputs + spread * drawn)

    return objectives.stateless(update)


def decay(tree: Any, weights: tuple[Any, Any]) -> Any:
    """Half the squared norms of the two layers, weighed."""
    layers = [optax.tree.norm(layer, squared=True) for layer in (tree["hidden"], tree["output"])]
    return sum(weight * square / 2 for weight, square in zip(weights, layers, strict=True))


def training_objective(apply, teacher, config: Config) -> objectives.Objective:
    """Over ``(hyperparameters, weights)``: the chain is built anew from the values of the former."""
    kd = partial(losses.kd, divergence=divergences.get("kl"), temperature=config.temperature)

    def chain(vector):
        values = SPACE.constrain(vector)
        decays = tuple(jnp.exp(values[f"log_decay_{layer}"]) for layer in ("hidden", "output"))
        return objectives.chain(
            noise(values["noise"]),
            teacher,
            objectives.forward(apply),
            objectives.loss(losses.cross_entropy, name="ce", weight=1 - values["mixture"]),
            objectives.loss(kd, name="kd", target="teacher", weight=values["mixture"]),
            objectives.mean(),
            objectives.parameter_regularizer(partial(decay, weights=decays), name="decay", where=by_layer),
        )

    return objectives.Objective(
        init=lambda params, batch, key: chain(params[0]).init(params[1], batch, key),
        apply=lambda params, state, batch, key: chain(params[0]).apply(params[1], state, batch, key),
    )


def by_layer(params: Any) -> dict[str, Any]:
    """Kernels of the hidden and of the output layer."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    return {"hidden": kernels[0], "output": kernels[1]}


def validation_objective(apply) -> objectives.Objective:
    chain = objectives.chain(
        objectives.forward(apply), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()
    )
    return objectives.Objective(
        init=lambda params, batch, key: chain.init(params[1], batch, key),
        apply=lambda params, state, batch, key: chain.apply(params[1], state, batch, key),
    )


def split(config: Config, seed: int) -> tuple[Any, Any, Any, Any]:
    """Examples of the teacher, of the student, of validation and of the test."""
    n, m = config.train_examples, config.validation_examples
    parts = digits(seed, train=2 * n + m)
    train = {k: jnp.asarray(v) for k, v in parts["train"].items()}
    pick = lambda a, b: {k: v[a:b] for k, v in train.items()}  # noqa: E731
    return pick(0, 2 * n), pick(0, n), pick(2 * n, 2 * n + m), jax.tree.map(jnp.asarray, parts["test"])


def study(config: Config, parts: Any, teacher_weights: Any, first_weights: Any, key: Any) -> Any:
    """One seed: what each method found, in the order of `METHODS`, and the way of bilevel optimization."""
    for_teacher, train, validation, test = parts
    data = bilevel.Data(train, validation)
    sampler = bilevel.minibatches(inner=config.batch_size, outer=config.batch_size)
    keys = jax.random.split(key, 4)

    teach, apply = (model(widths, 0)[0] for widths in architectures(config))
    teacher_problem = bilevel.Problem(validation_objective(teach), validation_objective(teach))
    learn = bilevel.make_step(
        teacher_problem, bilevel.first_order(), optax.adam(1e-3), optax.sgd(0.0),
        inner_steps=config.steps, sampler=sampler,
    )  # fmt: skip
    teacher_data = bilevel.Data(for_teacher, validation)
    state = learn.init(jnp.zeros(1), teacher_weights, teacher_data, keys[0])
    teacher = objectives.teacher(teach, learn.step(state, teacher_data)[0].inner)

    problem = bilevel.problem(training_objective(apply, teacher, config), validation_objective(apply))
    inner_tx, outer_tx = optax.adam(config.learning_rate), optax.adam(config.outer_learning_rate)
    train_once = bilevel.make_step(
        problem, bilevel.first_order(), inner_tx, optax.sgd(0.0), inner_steps=config.steps, sampler=sampler
    )

    def trained(vector: jax.Array) -> tuple[Any, Any]:
        """A student's validation loss, and its test scores."""
        state = train_once.init(vector, first_weights, data, keys[2])
        weights = train_once.step(state, data)[0].inner
        logits = [apply(weights, (), part["inputs"], None)[0] for part in (validation, test)]
        found = diagnostics.nll(logits[0], validation["targets"])
        scores = diagnostics.nll(logits[1], test["targets"]), diagnostics.accuracy(logits[1], test["targets"])
        return found, scores

    unit = jax.random.uniform(keys[1], (config.trainings, len(SPACE.names)), minval=0.01, maxval=0.99)
    # Uniform in each range, but for the first, which is in its middle.
    draws = (jnp.log(unit) - jnp.log1p(-unit)).at[0].set(0.0)
    found, scores = jax.lax.map(trained, draws)

    along = bilevel.make_step(
        problem, bilevel.unrolled(), inner_tx, outer_tx, inner_steps=config.inner_steps, sampler=sampler
    )
    cost = config.inner_steps + 1 + PRODUCT * config.inner_steps

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        state, _ = along.step(state, data)
        return state, state.outer

    start = along.init(draws[0], first_weights, data, keys[3])
    length = (config.trainings - 1) * config.steps // cost
    state, path = jax.lax.scan(step, start, length=length)

    best = jnp.argmin(found)
    pick = lambda i: (draws[i], found[i], jax.tree.map(lambda leaf: leaf[i], scores))  # noqa: E731
    return (pick(0), pick(best), (state.outer, *trained(state.outer))), path


def architectures(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of the teacher and of the student."""
    return (FEATURES, config.teacher_width, CLASSES), (FEATURES, config.student_width, CLASSES)


def results_of(config: Config) -> list[dict[str, Any]]:
    """All seeds, side by side."""
    seeds = range(config.seeds)
    weights = [[model(widths, seed)[1] for widths in architectures(config)] for seed in seeds]
    arguments = [(split(config, seed), *weights[seed], jax.random.key(seed)) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
    chosen, path = jax.jit(jax.vmap(partial(study, config)))(*stacked)
    results = []
    for seed in seeds:
        rows = {}
        for method, (vector, found, (nll, accuracy)) in zip(METHODS, chosen, strict=True):
            rows[method] = {
                "validation": float(found[seed]),
                "nll": float(nll[seed]),
                "accuracy": float(accuracy[seed]),
                "values": {k: float(v) for k, v in SPACE.constrain(vector[seed]).items()},
            }
        values = SPACE.constrain(path[seed])
        results.append({"rows": rows, "path": {k: np.asarray(v).tolist() for k, v in values.items()}})
    return results


def render(results: list[dict[str, Any]], config: Config) -> Table:
    view = Table(
        title=f"digits, {config.seeds} seeds, {config.trainings} trainings each: "
        "mean ± half width of the 95 % interval"
    )
    view.add_column("method", no_wrap=True)
    metrics = ("validation", "nll", "accuracy")
    for metric in metrics:
        view.add_column(f"test {metric}" if metric != "validation" else "validation loss", justify="right")
    for method in METHODS:
        cells = [interval([r["rows"][method][metric] for r in results]) for metric in metrics]
        view.add_row(method, *(f"{mean:.3f} ± {half:.3f}" for mean, half in cells))
    gains = [
        interval([r["rows"]["bilevel"][m] - r["rows"]["random search"][m] for r in results]) for m in metrics
    ]
    view.add_row("bilevel - random", *(f"{mean:+.3f} ± {half:.3f}" for mean, half in gains))
    return view


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The way of each hyperparameter, one line for each seed; dots where random search ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(SPACE.names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(SPACE.names)), SPACE.names, strict=True):
        for i, result in enumerate(results):
            axes.plot(result["path"][name], color=f"C{i}")
            chosen = result["rows"]["random search"]["values"][name]
            axes.plot(len(result["path"][name]), chosen, "o", color=f"C{i}")
        axes.set(title=name.replace("_", " "), xlabel="outer steps")
    figure.savefig(path, dpi=120)


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the comparison and returns the results of each seed."""
    for name in ("seeds", "steps", "batch_size", "inner_steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}.")
    if config.trainings < 2:
        raise ValueError(
            f"--trainings must be at least 2, one to tune and one to train; got {config.trainings}."
        )
    console = terminal()
    with console.status(f"tuning for {config.seeds} seeds"):
        results = results_of(config)
    console.print(render(results, config))
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        everything = {"config": dataclasses.asdict(config), "results": results}
        (config.out / "results.json").write_text(json.dumps(everything, indent=1, default=str))
        plot(results, config.out / "tuning.png")
        console.print(f"results and figure are in {config.out}")
    return results


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
