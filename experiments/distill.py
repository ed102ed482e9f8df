"""The main job: one teacher, one much smaller student, and every divergence between them.

A teacher MLP learns the digits. A student of the same input and far fewer units then minimizes

    (1 - alpha) CE(y, student) + alpha T^2 D(teacher_T || student_T)

once for each divergence D asked for, and once without a teacher (`none`), over several seeds. For `sinkhorn`
it minimizes CE + 0.8 SinKD, the cost of transport between a batch of the teacher's predictions and one of the
student's: that does not see whose prediction is whose, so the labels count in full. The table compares test
accuracy, negative log-likelihood, calibration error, agreement with the teacher and predictive entropy; the
figure shows what each divergence trades for what. A run that was interrupted goes on when the same command is
started again, and ends with the same numbers.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.report import interval, terminal
from jaxdiv import diagnostics, divergences, losses, nn, objectives, oracles, sampling, train
from jaxdiv.testing import data as datasets

Advance: TypeAlias = Callable[[int], None]
METRICS = ("accuracy", "nll", "ece", "agreement", "entropy", "seconds")
BASELINE = "none"
SINKHORN, SINKHORN_WEIGHT = "sinkhorn", 0.8
NAMES = (*divergences.NAMES, SINKHORN)


@dataclasses.dataclass(frozen=True)
class Config:
    """Distil a teacher into a small student under several divergences."""

    divergence: tuple[str, ...] = (
        "kl",
        "reverse_kl",
        "js",
        "jeffreys",
        "squared_hellinger",
        "tv",
        "sinkhorn",
    )
    """Divergences D(teacher || student) to minimize, by name; sinkhorn is transport between batches."""
    data: Literal["digits", "mnist"] = "digits"
    """digits: scikit-learn's 8x8 digits. mnist: IDX files in mnist/ of the folder JAXDIV_DATA names."""
    teacher_width: int = 256
    """Units in each of the teacher's two hidden layers."""
    student_width: int = 12
    """Units in the student's hidden layer."""
    temperature: float = 4.0
    """Temperature T of both softmaxes in the divergence."""
    alpha: float = 0.9
    """Weight of the divergence against the cross entropy with the labels, sinkhorn's aside."""
    steps: int = 1000
    """Training steps of the teacher and of each student."""
    batch_size: int = 128
    """Examples in each batch."""
    learning_rate: float = 1e-2
    """Peak learning rate of Adam, decayed by a cosine."""
    seeds: int = 5
    """Number of seeds: each draws its own split, teacher and students."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where results go; by default a folder under runs/ named after the options."""
    resume: bool = True
    """Go on from what the folder holds; --no-resume starts over."""


class Data(NamedTuple):
    """Training and test examples of one seed's split."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int


def load(config: Config, seed: int) -> Data:
    """Loads one seed's split; without JAXDIV_DATA only the bundled digits are there."""
    if config.data == "mnist":
        folder = os.environ.get("JAXDIV_DATA")
        if folder is None:
            raise ValueError("--data mnist reads mnist/ in the folder that JAXDIV_DATA names; set it.")
        split = datasets.mnist(folder, seed=seed)
    else:
        split = datasets.digits(seed=seed)
    return Data(split["train"], split["test"], num_classes=10)


class Trainer:
    """Trains one kind of network on one kind of objective; all seeds share its compiled step."""

    def __init__(self, widths: tuple[int, ...], config: Config):
        self.widths = widths
        self.config = config
        self.apply = nn.functional(self._module(0)).apply
        self.step: Callable[..., Any] | None = None

    def _module(self, seed: int) -> nnx.Module:
        return nn.MLP(self.widths, rngs=nnx.Rngs(seed))

    def objective(
        self, teacher: objectives.Link | None, kd: objectives.Link | None, labels: float
    ) -> objectives.Objective:
        """Cross entropy with a weight, alone or beside what the teacher teaches."""
        links = [
            teacher,
            objectives.forward(self.apply),
            objectives.loss(losses.cross_entropy, name="ce", weight=labels),
            kd,
            objectives.mean(),
        ]
        return objectives.chain(*(link for link in links if link is not None))

    def train(
        self, objective: objectives.Objective, data: Data, seed: int, folder: Path, advance: Advance
    ) -> tuple[Any, float]:
        """Trains until done, going on from what the folder holds; returns parameters and seconds."""
        config = self.config
        tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
        init, step = train.make_step(objective, oracles.plain(), tx)
        # Whatever differs between seeds sits in the state, so the first seed's step serves them all.
        self.step = self.step or step
        size = min(config.batch_size, len(data.train["targets"]))
        batch = {name: value[:size] for name, value in data.train.items()}
        key = jax.random.key(seed)
        result = train.fit(
            self.step,
            init(nnx.state(self._module(seed), nnx.Param), batch, key),
            data.train,
            steps=config.steps,
            chunk=max(1, config.steps // 4),
            sampler=sampling.shuffle(size),
            on_visit=lambda state, row: advance(row["step"]),
            out=folder,
            progress=False,
            key=key,
        )
        return result.state.params, sum(row["seconds"] for row in result.history)

    def predict(self, params: Any, inputs: np.ndarray) -> jax.Array:
        """Logits in evaluation mode."""
        return self.apply(params, (), jnp.asarray(inputs), None)[0]


def distillation(name: str, config: Config) -> tuple[objectives.Link, float]:
    """The link of a divergence's name, and the weight of the cross entropy beside it."""
    options: dict[str, Any] = {"name": "kd", "target": "teacher"}
    if name == SINKHORN:
        fn = partial(losses.sinkhorn_kd, temperature=config.temperature)
        return objectives.batch_loss(fn, weight=SINKHORN_WEIGHT, **options), 1.0
    if name not in NAMES:
        raise ValueError(f"--divergence must name some of {', '.join(NAMES)}; got {name!r}.")
    fn = partial(losses.kd, divergence=divergences.get(name), temperature=config.temperature)
    return objectives.loss(fn, weight=config.alpha, **options), 1.0 - config.alpha


def main(config: Config) -> dict[str, Any]:
    """Runs the job and returns what it writes to results.json."""
    chosen = {name: distillation(name, config) for name in config.divergence}
    out = prepare(config)
    rows: list[dict[str, Any]] = []
    splits = [load(config, seed) for seed in range(config.seeds)]
    features = math.prod(splits[0].train["inputs"].shape[1:])
    width, classes = config.teacher_width, splits[0].num_classes
    teachers = Trainer((features, width, width, classes), config)
    students = {
        name: Trainer((features, config.student_width, classes), config) for name in (BASELINE, *chosen)
    }

    with show_progress(config.seeds * (1 + len(students)), config.steps) as begin:
        for seed, data in enumerate(splits):
            folder = out / f"seed-{seed}"
            inputs, labels = data.test["inputs"], data.test["targets"]
            advance = begin(f"seed {seed}: teacher")
            params, seconds = teachers.train(
                teachers.objective(None, None, 1.0), data, seed, folder / "teacher", advance
            )
            reference = teachers.predict(params, inputs)
            rows.append(
                {
                    "model": "teacher",
                    "seed": seed,
                    **measure(reference, reference, labels),
                    "seconds": seconds,
                }
            )
            teacher = objectives.teacher(teachers.apply, params)
            for name, student in students.items():
                kd, labels_weight = chosen.get(name, (None, 1.0))
                objective = student.objective(teacher if kd else None, kd, labels_weight)
                advance = begin(f"seed {seed}: {name}")
                params, seconds = student.train(objective, data, seed, folder / name, advance)
                logits = student.predict(params, inputs)
                rows.append(
                    {"model": name, "seed": seed, **measure(logits, reference, labels), "seconds": seconds}
                )

    results = {"config": as_json(config), "rows": rows, "table": summarize(rows)}
    write_json(out / "results.json", results)
    plot(results["table"], out / "tradeoff.png")
    console = terminal()
    console.print(render(results["table"], config))
    console.print(f"table, figure and logs are in {out}")
    return results


def measure(logits: jax.Array, reference: jax.Array, labels: np.ndarray) -> dict[str, float]:
    """What the table says of one network on the test examples."""
    labels = jnp.asarray(labels)
    return {
        "accuracy": float(diagnostics.accuracy(logits, labels)),
        "nll": float(diagnostics.nll(logits, labels)),
        "ece": float(diagnostics.ece(logits, labels)),
        "agreement": float(diagnostics.agreement(logits, reference)),
        "entropy": float(jnp.mean(diagnostics.predictive_entropy(logits))),
    }


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over the seeds and half width of its 95 % interval (Student's t), for each model."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        entry: dict[str, Any] = {"model": model}
        for metric in METRICS:
            mean, half = interval([row[metric] for row in rows if row["model"] == model])
            entry[metric] = {"mean": mean, "half_width": None if math.isnan(half) else half}
        table.append(entry)
    return table


def render(table: list[dict[str, Any]], config: Config) -> Table:
    """The table for people."""
    view = Table(title=f"{config.data}, {config.seeds} seeds: mean ± half width of the 95 % interval")
    view.add_column("divergence", no_wrap=True)
    for metric in METRICS:
        view.add_column(metric, justify="right")
    for entry in table:
        digits = {metric: 1 if metric == "seconds" else 3 for metric in METRICS}
        cells = []
        for metric in METRICS:
            mean, half = entry[metric]["mean"], entry[metric]["half_width"]
            spread = "" if half is None else f" ± {half:.{digits[metric]}f}"
            cells.append(f"{mean:.{digits[metric]}f}{spread}")
        view.add_row(entry["model"], *cells)
    return view


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """Draws what each divergence trades for what."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = (("ece", "accuracy"), ("entropy", "agreement"))
    for axes, (x, y) in zip(figure.subplots(1, 2), panels, strict=True):
        for position, entry in enumerate(table):
            axes.errorbar(
                entry[x]["mean"],
                entry[y]["mean"],
                xerr=entry[x]["half_width"],
                yerr=entry[y]["half_width"],
                fmt="s" if entry["model"] in ("teacher", BASELINE) else "o",
                color=f"C{position}",
                capsize=2,
                label=entry["model"],
            )
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def as_json(config: Config) -> dict[str, Any]:
    """The configuration without where and how it is run."""
    return {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "resume")
    }


def prepare(config: Config) -> Path:
    """Checks the options, and makes or reopens the run's folder."""
    if not config.divergence:
        raise ValueError(f"--divergence needs at least one name of {', '.join(NAMES)}.")
    for name in ("teacher_width", "student_width", "steps", "batch_size", "seeds"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}.")
    if not 0 <= config.alpha <= 1:
        raise ValueError(f"--alpha must lie in [0, 1]; got {config.alpha}.")
    for name in ("temperature", "learning_rate"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive; got {getattr(config, name)}.")
    settings = json.loads(json.dumps(as_json(config)))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    out = config.out or Path("runs") / f"distill-{config.data}-{digest}"
    file = out / "config.json"
    if file.exists():
        try:
            found = json.loads(file.read_text())["config"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file} is not this job's configuration; name another --out.") from error
        if not config.resume:
            for old in (*out.glob("seed-*"), file, out / "results.json", out / "tradeoff.png"):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        elif found != settings:
            changed = ", ".join(k for k in settings if settings[k] != found.get(k))
            raise ValueError(
                f"{out} holds a run with other options ({changed}); name another --out or --no-resume."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"config": settings, "versions": versions()})
    except OSError as error:
        raise OSError(f"cannot write to --out {out}: {error}; name a writable folder.") from error
    return out


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("jaxdiv", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(content, indent=1))
    half.replace(path)


@contextmanager
def show_progress(runs: int, steps: int) -> Iterator[Callable[[str], Advance]]:
    """One bar for all the trainings and one for the present one; gives a function that begins a training."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:
        overall = bars.add_task("trainings", total=runs)
        current = bars.add_task("", total=steps)
        begun = itertools.count()

        def begin(name: str) -> Advance:
            bars.update(overall, completed=next(begun))
            bars.reset(current, description=name, total=steps)
            return lambda step: bars.update(current, completed=step)

        yield begin
        bars.update(overall, completed=runs)
        bars.remove_task(current)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
