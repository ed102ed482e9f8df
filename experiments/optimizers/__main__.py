"""Every transform with every oracle on the digits, each at the best learning rate of its own sweep.

One MLP is trained with cross entropy, over several seeds, by each pair of a transform (how the parameters move) and
an oracle (where their gradient comes from) that is named. A pair takes as many learning rates as asked for, a factor
apart around the transform's own, and a cosine brings each to 0. The rate is chosen by the accuracy on validation
digits, by their cross entropy among equals; the test digits are looked at once, in the end, with the rates chosen.
The table has for each pair

    accuracy     on the test digits,
    sharpness    the largest eigenvalue of the Hessian of the training cross entropy (Lanczos),
    steps        until the training cross entropy was first seen below the target, and the gradients that they took,
    time         of a step, all rates and seeds side by side, divided by their number.

`saf` is an objective, not an oracle, and stands beside them because it aims at the same: flat minima.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments import full_batch
from experiments.oracles import minibatches
from experiments.report import terminal
from jaxdiv import convex, diagnostics, linalg, losses, nn, objectives, oracles, train, transforms
from jaxdiv.testing.data import digits

FEATURES, CLASSES = 64, 10
PLAIN = oracles.plain()


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one model with every transform and every oracle named."""

    transforms: tuple[str, ...] = ("sgd", "adam", "lion_k", "adan", "perp_grad")
    """Transforms by name: sgd, adam, lion, lion_k, adan, perp_grad (then Adam), clip_by_quantile (then SGD), mfac,
    adagrad_norm, muon, noise_adaptive_lmo."""
    oracles: tuple[str, ...] = ("plain", "sam", "saf")
    """Oracles by name: plain, sam, asam, tram, confidence_normalized, saf."""
    rates: int = 5
    """Learning rates in each sweep."""
    factor: float = 3.0
    """Between two neighbors of a sweep."""
    seeds: int = 3
    """Number of seeds: each draws its own split, first parameters and batches."""
    steps: int = 300
    """Steps of each training."""
    evaluations: int = 20
    """How often each training is looked at; it divides the steps."""
    batch_size: int = 64
    """Examples in each batch."""
    width: int = 32
    """Units in the hidden layer."""
    train_examples: int = 800
    """Examples to train on."""
    validation_examples: int = 300
    """Examples that choose the learning rate; what the two leave is the test."""
    target: float = 0.1
    """Training cross entropy to which the steps are counted."""
    products: int = 30
    """Products with the Hessian for its largest eigenvalue."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/optimizers")
    """Folder for results.json and curves.png."""


class Transform(NamedTuple):
    """An optimizer as a function of its learning rate, and the middle of its sweep."""

    make: Callable[[Any], optax.GradientTransformation]
    rate: float


class Way(NamedTuple):
    """An oracle for a model, the links that the loss needs for N examples, and the gradients of a step."""

    make: Callable[[Any], oracles.Oracle]
    gradients: int = 1
    links: Callable[[int], tuple[objectives.Link, ...]] = lambda examples: ()


def noise_adaptive_lmo(rate: Any) -> optax.GradientTransformation:
    """Orthogonalized steps for the kernels and signs for the biases."""
    orthogonal: transforms.Ball = transforms.rms_operator(transforms.newton_schulz())
    balls: dict[str, transforms.Ball] = {"kernels": orthogonal, "biases": convex.linf}

    def labels(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: "kernels" if leaf.ndim == 2 else "biases", tree)

    direction = transforms.scale_by_noise_adaptive_lmo(balls, labels, alpha=1.0)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))


TRANSFORMS = {
    "sgd": Transform(lambda rate: optax.sgd(rate, momentum=0.9), 0.2),
    "adam": Transform(optax.adam, 2e-2),
    "lion": Transform(optax.lion, 1e-2),
    "lion_k": Transform(lambda rate: transforms.lion_k(rate, transforms.pseudo_huber_kappa(1e-3)), 1e-2),
    "adan": Transform(transforms.adan, 4e-2),
    "perp_grad": Transform(lambda rate: optax.chain(transforms.perp_grad(), optax.adam(rate)), 3e-2),
    "clip_by_quantile": Transform(
        lambda rate: optax.chain(transforms.clip_by_quantile(0.1), optax.sgd(rate, momentum=0.9)), 0.2
    ),
    "mfac": Transform(
        lambda rate: optax.chain(
            transforms.scale_by_mfac(32, 1e-2),
            optax.ema(0.9, debias=False),
            optax.scale_by_learning_rate(rate),
        ),
        1e-2,
    ),
    "adagrad_norm": Transform(
        lambda rate: optax.chain(transforms.scale_by_adagrad_norm(), optax.scale_by_learning_rate(rate)), 5.0
    ),
    "muon": Transform(optax.contrib.muon, 2e-2),
    "noise_adaptive_lmo": Transform(noise_adaptive_lmo, 2e-2),
}
ORACLES = {
    "plain": Way(lambda apply: PLAIN),
    "sam": Way(lambda apply: oracles.sam(PLAIN, rho=0.05), gradients=2),
    "asam": Way(lambda apply: oracles.sam(PLAIN, rho=0.5, geometry="adaptive"), gradients=2),
    "tram": Way(lambda apply: oracles.tram(PLAIN, apply, decay=0.9), gradients=2),
    "confidence_normalized": Way(lambda apply: oracles.confidence_normalized(PLAIN)),
    "saf": Way(lambda apply: PLAIN, links=lambda examples: (objectives.saf(examples),)),
}


class Study:
    """Data and first parameters of all seeds, and what is measured on them; axes [rates, seeds] are mapped over."""

    def __init__(self, config: Config):
        self.config = config
        model = full_batch.models(
            lambda rngs: nn.MLP((FEATURES, config.width, CLASSES), rngs=rngs), config.seeds
        )
        self.apply, self.params = model.apply, model.params
        parts = full_batch.stack(lambda seed: split(config, seed), config.seeds)
        self.train, self.validation, self.test = (parts[name] for name in ("train", "validation", "test"))
        self.order = np.stack([order(config, seed) for seed in range(config.seeds)])
        self.keys = jax.random.split(jax.random.key(0), config.seeds)
        self.measure = jax.jit(jax.vmap(jax.vmap(self._measure), in_axes=(0, None)))
        self.sharpness = jax.jit(jax.vmap(self._sharpness))

    def _logits(self, params: Any, part: Any) -> jax.Array:
        return self.apply(params, (), part["inputs"], None)[0]

    def _measure(self, params: Any, part: Any) -> dict[str, jax.Array]:
        logits = self._logits(params, part)
        labels = part["targets"]
        return {"accuracy": diagnostics.accuracy(logits, labels), "nll": diagnostics.nll(logits, labels)}

    def _sharpness(self, params: Any, part: Any) -> jax.Array:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(losses.cross_entropy(self._logits(params, part), part["targets"]))

        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        start = jax.tree.unflatten(structure, drawn)
        hessian = linalg.hessian_operator(loss, params)
        return linalg.eigsh(hessian, start, k=1, num_steps=self.config.products).values[0]

    def trainer(self, transform: Transform, way: Way) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
        """``(init, advance)`` of all rates and seeds: the first states, and those some steps later."""
        objective = objectives.chain(
            objectives.forward(self.apply),
            objectives.loss(losses.cross_entropy, name="ce"),
            *way.links(self.config.train_examples),
            objectives.mean(),
        )
        oracle = way.make(self.apply)

        def functions(rate: Any) -> tuple[Any, Any]:
            tx = transform.make(optax.cosine_decay_schedule(rate, self.config.steps))
            return train.make_step(objective, oracle, tx)

        def gather(data: Any, rows: Any) -> Any:
            return {"index": rows, **{name: jnp.asarray(entry)[rows] for name, entry in data.items()}}

        def init(rate: Any, params: Any, data: Any, rows: Any, key: Any) -> Any:
            return functions(rate)[0](params, gather(data, rows[0]), key)

        def advance(rate: Any, state: Any, data: Any, rows: Any) -> Any:
            step = functions(rate)[1]
            return jax.lax.scan(lambda state, rows: (step(state, gather(data, rows))[0], None), state, rows)[
                0
            ]

        over_seeds = jax.vmap(init, (None, 0, 0, 0, 0)), jax.vmap(advance, (None, 0, 0, 0))
        over_rates = (
            jax.vmap(over_seeds[0], (0, None, None, None, None)),
            jax.vmap(over_seeds[1], (0, 0, None, None)),
        )
        return jax.jit(over_rates[0]), jax.jit(over_rates[1], donate_argnums=1)


def split(config: Config, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Examples to train on, to choose the learning rate by, and to test on."""
    n = config.train_examples
    parts = digits(seed, train=n + config.validation_examples)
    train_part = {name: entry[:n] for name, entry in parts["train"].items()}
    validation = {name: entry[n:] for name, entry in parts["train"].items()}
    return {"train": train_part, "validation": validation, "test": parts["test"]}


def order(config: Config, seed: int) -> np.ndarray:
    """Rows of each step's batch, [steps, batch]."""
    n, size = config.train_examples, config.batch_size
    count = math.ceil(config.steps / (n // size))
    return minibatches.epochs(seed, examples=n, batch=size, count=count)[: config.steps]


def sweep(transform: Transform, config: Config) -> np.ndarray:
    """The learning rates, a factor apart, with the transform's own in the middle."""
    exponents = np.arange(config.rates) - (config.rates - 1) / 2
    return (transform.rate * config.factor**exponents).astype(np.float32)


def run(study: Study, names: tuple[str, str], tick: Callable[[], None]) -> dict[str, Any]:
    """Trains one pair at all its rates and reports the best."""
    config = study.config
    transform, way = TRANSFORMS[names[0]], ORACLES[names[1]]
    rates = sweep(transform, config)
    init, advance = study.trainer(transform, way)
    chunks = np.split(study.order, config.evaluations, axis=1)
    state = init(rates, study.params, study.train, chunks[0], study.keys)
    compiled = advance.lower(rates, state, study.train, chunks[0]).compile()
    curve = [study.measure(state.params, study.train)["nll"]]
    seconds = 0.0
    for chunk in chunks:
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(rates, state, study.train, chunk))
        seconds += time.perf_counter() - began
        curve.append(study.measure(state.params, study.train)["nll"])
        tick()
    found = {
        name: np.asarray(values) for name, values in study.measure(state.params, study.validation).items()
    }
    best = choose(found["accuracy"].mean(axis=1), found["nll"].mean(axis=1))
    params = jax.tree.map(lambda leaf: leaf[best], state.params)
    scores = study.measure(jax.tree.map(lambda leaf: leaf[None], params), study.test)
    curves = np.stack(curve)[:, best]
    at = np.arange(config.evaluations + 1) * (config.steps // config.evaluations)
    steps = [first_below(at, curves[:, seed], config.target) for seed in range(config.seeds)]
    return {
        "transform": names[0],
        "oracle": names[1],
        "rates": rates.tolist(),
        "validation accuracy": numbers(found["accuracy"].mean(axis=1)),
        "validation nll": numbers(found["nll"].mean(axis=1)),
        "rate": float(rates[best]),
        "at the end": config.rates > 1 and best in (0, config.rates - 1),
        "accuracy": numbers(scores["accuracy"][0]),
        "sharpness": numbers(study.sharpness(params, study.train)),
        "steps": steps,
        "gradients": [None if count is None else way.gradients * count for count in steps],
        "milliseconds": 1e3 * seconds / (config.steps * config.rates * config.seeds),
        "curve": {"steps": at.tolist(), "loss": [numbers(row) for row in curves]},
    }


def choose(accuracy: np.ndarray, nll: np.ndarray) -> int:
    """The rate of the highest accuracy, and of the least cross entropy among equals; a diverged one comes last."""
    finite = np.isfinite(nll)
    return int(np.lexsort((np.where(finite, nll, np.inf), -np.where(finite, accuracy, -1.0)))[0])


def first_below(at: np.ndarray, losses: np.ndarray, target: float) -> int | None:
    """The first of the steps `at` at which the loss was at most the target."""
    below = np.flatnonzero(losses <= target)
    return int(at[below[0]]) if below.size else None


def numbers(values: Any) -> list[float | None]:
    """As JSON has them: None for what is not finite."""
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values)]


def spread(values: list[Any], form: str) -> str:
    """Mean and standard deviation over the seeds; a dash where a seed has none."""
    if None in values:
        return "-"
    mean = format(np.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(np.std(values, ddof=1), form)}"


def render(rows: list[dict[str, Any]], config: Config) -> Table:
    """The table for people."""
    view = Table(
        title=f"digits, {config.seeds} seeds: mean ± standard deviation",
        caption=f"steps and gradients until the training cross entropy is {config.target:g}, - where a seed does "
        "not get there; * the end of the sweep, a better rate may lie beyond: raise --rates or --factor",
    )
    view.add_column("transform", no_wrap=True)
    view.add_column("oracle", no_wrap=True)
    for column in ("rate", "accuracy", "sharpness", "steps", "gradients", "ms a step"):
        view.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(
            row["transform"],
            row["oracle"],
            f"{row['rate']:.2g}{'*' if row['at the end'] else ' '}",
            spread(row["accuracy"], ".3f"),
            spread(row["sharpness"], ".2f"),
            spread(row["steps"], ".0f"),
            spread(row["gradients"], ".0f"),
            f"{row['milliseconds']:.3f}",
        )
    return view


def plot(rows: list[dict[str, Any]], config: Config, path: Path) -> None:
    """Training cross entropy at the rate chosen: a panel for each oracle, a line for each transform's mean."""
    from matplotlib.figure import Figure

    count = len(config.oracles)
    figure = Figure(figsize=(1.5 + 3.5 * count, 3.5), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, oracle in zip(panels, config.oracles, strict=True):
        for row in (row for row in rows if row["oracle"] == oracle):
            loss = np.array(row["curve"]["loss"], float)
            line = axes.plot(row["curve"]["steps"], loss.mean(axis=1), label=row["transform"])[0]
            axes.fill_between(
                row["curve"]["steps"], loss.min(axis=1), loss.max(axis=1), color=line.get_color(), alpha=0.15
            )
        axes.axhline(config.target, color="gray", linestyle=":", linewidth=1)
        axes.set(title=oracle.replace("_", " "), xlabel="steps", yscale="log")
    panels[0].set(ylabel="training cross entropy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def check(config: Config) -> None:
    """Says what is wrong with the options before anything is trained."""
    for option, known in (("transforms", TRANSFORMS), ("oracles", ORACLES)):
        names = getattr(config, option)
        if not names or len(set(names)) < len(names) or not set(names) <= set(known):
            raise ValueError(f"--{option} must name some of {', '.join(known)}, each once; got {names}.")
    counts = ("rates", "seeds", "evaluations", "batch_size", "width", "validation_examples", "products")
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}.")
    if config.steps < 1 or config.steps % config.evaluations:
        raise ValueError(
            f"--steps must be a multiple of --evaluations, {config.evaluations}; got {config.steps}."
        )
    if config.train_examples < config.batch_size:
        raise ValueError(
            f"--train-examples must be at least --batch-size, {config.batch_size}; got {config.train_examples}."
        )
    if not config.factor > 1:
        raise ValueError(f"--factor must be above 1; got {config.factor}.")


def main(config: Config) -> list[dict[str, Any]]:
    """Trains every pair and returns its row."""
    check(config)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to --out {config.out}: {error}; name a writable folder.") from error
    study = Study(config)
    pairs = [(transform, oracle) for transform in config.transforms for oracle in config.oracles]
    columns = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows = []
    with Progress(*columns) as bars:
        task = bars.add_task("", total=len(pairs) * config.evaluations)
        for pair in pairs:
            bars.update(task, description=" with ".join(pair))
            rows.append(run(study, pair, lambda: bars.advance(task)))
    everything = {"config": dataclasses.asdict(config), "rows": rows}
    (config.out / "results.json").write_text(json.dumps(everything, indent=1, default=str))
    plot(rows, config, config.out / "curves.png")
    console = terminal()
    console.print(render(rows, config))
    console.print(f"results and figure are in {config.out}")
    return rows


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
