"""Of a teacher wrong on 30% of the examples, learned ratios take 5 points more than the ratio .5 in every seed.

Data: 400 training digits, 200 for validation, the rest for the test; all labels are clean. The teacher, an MLP
64-128-10 trained on the training examples, has its logits shifted cyclically by one class on 30% of them. Student: an
MLP 64-32-10, trained for 600 full-batch Adam steps at temperature 3 by α τ² KL + (1 - α) CE. TGeo-KD learns α of each
example: a network 50-16-16-1 on the trilateral features descends the cross entropy of the validation examples one
step of the student ahead. Compared is the test accuracy. Beside it stand the fixed ratios .9 and 0 (labels alone,
which are clean here, so that no teacher can help) and the mean ratios of good and corrupted examples. Control: the
ratio is .5 in both arms.

References:
    Hu, Wu, Li, Ma, Chen, Yan, Wang, Liu (2024), Less or More From Teacher: Exploiting Trilateral Geometry For
    Knowledge Distillation.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import bilevel, diagnostics, losses, nn, objectives
from jaxdiv.testing.data import digits

GAIN = 0.05


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 400
    """Training examples."""
    validation: int = 200
    """Held-out examples of the outer loss."""
    corrupted: float = 0.3
    """Share of the training examples on which the teacher is wrong."""
    width: int = 32
    """Hidden units of the student."""
    teacher_width: int = 128
    """Hidden units of the teacher."""
    fusion_width: int = 16
    """Units in each of the fusion network's two hidden layers."""
    temperature: float = 3.0
    """Of the distillation loss."""
    steps: int = 600
    """Full-batch steps."""
    learning_rate: float = 1e-2
    """Of Adam for teacher and student."""
    eps_root: float = 1e-8
    """Of Adam."""
    fusion_learning_rate: float = 1e-2
    """Of Adam for the fusion network."""


SMOKE = Config(seeds=2, examples=40, validation=20, width=4, teacher_width=8, fusion_width=4, steps=3)


def draw(seed: int, config: Config) -> dict:
    """One seed's three splits, and which training examples the teacher gets wrong."""
    held_out = config.examples + config.validation
    split = digits(seed, train=held_out)
    parts = {
        "train": {name: x[: config.examples] for name, x in split["train"].items()},
        "validation": {name: x[config.examples :] for name, x in split["train"].items()},
        "test": split["test"],
    }
    order = np.random.default_rng(seed).permutation(config.examples)
    return {**parts, "wrong": order < config.corrupted * config.examples}


def run(config: Config) -> Claim:
    data = full_batch.stack(partial(draw, config=config), config.seeds)
    student = full_batch.models(lambda rngs: nn.MLP((64, config.width, 10), rngs=rngs), config.seeds)
    teacher = full_batch.models(lambda rngs: nn.MLP((64, config.teacher_width, 10), rngs=rngs), config.seeds)
    hidden = config.fusion_width
    fusion = full_batch.models(lambda rngs: nn.MLP((50, hidden, hidden, 1), rngs=rngs), config.seeds)
    kd = partial(losses.kd, temperature=config.temperature)
    # Differentiable where a gradient is 0, as of a unit that is off for all examples.
    adam = optax.adam(config.learning_rate, eps_root=config.eps_root)

    def accuracy(params, part):
        return diagnostics.accuracy(student.apply(params, (), part["inputs"], None)[0], part["targets"])

    def teach(key, params, data):
        """The teacher's logits on the training examples, corrupted on some."""
        objective = objectives.chain(
            objectives.forward(teacher.apply),
            objectives.loss(losses.cross_entropy, name="ce"),
            objectives.mean(),
        )
        state, _ = full_batch.fit(objective, params, data["train"], key, tx=adam, steps=config.steps)
        logits, _ = teacher.apply(state.params, (), data["train"]["inputs"], None)
        logits = jnp.where(data["wrong"][:, None], jnp.roll(logits, 1, axis=-1), logits)
        return {**data, "train": {**data["train"], "teacher": logits}}

    def of_fixed(key, params, data, ratio):
        objective = objectives.chain(
            objectives.forward(student.apply),
            objectives.loss(kd, name="kd", target="teacher", weight=ratio),
            objectives.loss(losses.cross_entropy, name="ce", weight=1 - ratio),
            objectives.mean(),
        )
        state, _ = full_batch.fit(objective, params, data["train"], key, tx=adam, steps=config.steps)
        return accuracy(state.params, data["test"])

    def of_learned(key, params, omega, data):
        forward = objectives.forward(lambda pair, *rest: student.apply(pair[1], *rest))
        table = losses.class_mean_predictions(data["train"]["teacher"], data["train"]["targets"])
        fused = objectives.tgeo_kd(
            fusion.apply, table, where=lambda pair: pair[0], temperature=config.temperature
        )
        cross_entropy = objectives.loss(losses.cross_entropy, name="ce")
        inner = objectives.chain(forward, fused, objectives.mean())
        outer = objectives.chain(forward, cross_entropy, objectives.mean())
        init, step = bilevel.make_step(
            bilevel.problem(inner, outer),
            bilevel.unrolled(),
            adam,
            optax.adam(config.fusion_learning_rate),
            inner_steps=1,
        )
        both = bilevel.Data(inner=data["train"], outer=data["validation"])
        state, _ = jax.lax.scan(
            lambda state, _: step(state, both), init(omega, params, both, key), length=config.steps
        )
        batch = data["train"]
        logits, _ = student.apply(state.inner, (), batch["inputs"], None)
        features = losses.trilateral_features(
            logits, batch["teacher"], batch["targets"], table[batch["targets"]]
        )
        ratio = jax.nn.sigmoid(fusion.apply(state.outer, (), features, None)[0][:, 0])
        good, bad = (jnp.mean(ratio, where=where) for where in (~data["wrong"], data["wrong"]))
        return accuracy(state.inner, data["test"]), good, bad

    data = full_batch.each_seed(teach, config.seeds)(teacher.params, data)
    fixed = full_batch.each_seed(of_fixed, config.seeds)
    half, most, none = (
        np.asarray(fixed(student.params, data, jnp.full(config.seeds, ratio))) for ratio in (0.5, 0.9, 0.0)
    )
    if config.control:
        learned, good, bad = half, np.full(config.seeds, 0.5), np.full(config.seeds, 0.5)
    else:
        train = full_batch.each_seed(of_learned, config.seeds)
        learned, good, bad = map(np.asarray, train(student.params, fusion.params, data))
    return Claim(
        measured={
            "accuracy": learned.tolist(),
            "accuracy, ratio .5": half.tolist(),
            "accuracy, ratio .9": most.tolist(),
            "accuracy, labels alone": none.tolist(),
            "ratio of good examples": good.tolist(),
            "ratio of corrupted examples": bad.tolist(),
        },
        holds=bool(np.all(learned >= half + GAIN)),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
