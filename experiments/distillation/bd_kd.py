"""BD-KD gives an online student a lower ECE than DML, within a point of accuracy, at no larger entropy gap.

Data: 500 training digits, 20% of them with another label; the rest of the digits, clean, for the test.
Models: a student 64-16-10 and a teacher 64-128-128-10, trained together by one chain over both for 600
full-batch Adam steps, each a constant to the other's loss. DML gives both the forward divergence
KL(other || own); BD-KD gives the student both divergences, the one that its entropy gap asks for twice, and
the teacher the reverse one. Compared are means over the seeds of the student's expected calibration error
and accuracy, and of the mean absolute gap between the two networks' entropies. Control: BD-KD's arm trains
by DML as well.

References:
    Amara et al. (2022), BD-KD: Balancing the Divergences for Online Knowledge Distillation.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives
from jaxdiv.testing.data import digits

POINT = 0.01


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    examples: int = 500
    """Training examples."""
    label_noise: float = 0.2
    """Share of the training labels that are replaced."""
    student_width: int = 16
    """Hidden units of the student."""
    teacher_width: int = 128
    """Units in each of the teacher's two hidden layers."""
    steps: int = 600
    """Full-batch steps."""
    learning_rate: float = 3e-3
    """Of Adam."""
    temperature: float = 1.0
    """Of the divergences."""
    nu: float = 2.0
    """Weight of the divergence that the entropy gap asks for; 1 is Jeffreys."""


SMOKE = Config(seeds=2, examples=40, student_width=4, teacher_width=8, steps=3)


def forward_only(gap, nu):
    """DML: the forward divergence alone, whatever the gap."""
    return jnp.ones_like(gap), jnp.zeros_like(gap)


def run(config: Config) -> Claim:
    data = full_batch.stack(
        lambda seed: digits(seed, train=config.examples, label_noise=config.label_noise), config.seeds
    )
    wide = config.teacher_width
    student = full_batch.models(lambda rngs: nn.MLP((64, config.student_width, 10), rngs=rngs), config.seeds)
    teacher = full_batch.models(lambda rngs: nn.MLP((64, wide, wide, 10), rngs=rngs), config.seeds)
    params = {"student": student.params, "teacher": teacher.params}

    def both(params, state, inputs, key):
        logits = {
            "student": student.apply(params["student"], student.model_state, inputs, key)[0],
            "teacher": teacher.apply(params["teacher"], teacher.model_state, inputs, key)[0],
        }
        return logits, state

    def scores(student_loss, teacher_loss):
        objective = objectives.chain(
            objectives.forward(both),
            objectives.loss(losses.cross_entropy, name="student_ce", output="student"),
            objectives.loss(losses.cross_entropy, name="teacher_ce", output="teacher"),
            objectives.loss(student_loss, name="student_kd", output="student", target="teacher"),
            objectives.loss(teacher_loss, name="teacher_kd", output="teacher", target="student"),
            objectives.mean(),
        )

        def of_seed(key, params, data):
            tx = optax.adam(config.learning_rate)
            state, _ = full_batch.fit(objective, params, data["train"], key, tx=tx, steps=config.steps)
            logits, _ = both(state.params, (), data["test"]["inputs"], None)
            labels = data["test"]["targets"]
            entropy = {name: diagnostics.predictive_entropy(z) for name, z in logits.items()}
            return (
                diagnostics.ece(logits["student"], labels),
                diagnostics.accuracy(logits["student"], labels),
                jnp.mean(jnp.abs(entropy["teacher"] - entropy["student"])),
            )

        return map(np.asarray, full_batch.each_seed(of_seed, config.seeds)(params, data))

    # The student's loss with the forward divergence alone is DML's for either network.
    mutual = partial(losses.bd_kd_student, balance=forward_only, temperature=config.temperature)
    balanced = partial(losses.bd_kd_student, nu=config.nu, temperature=config.temperature)
    regularized = partial(losses.bd_kd_teacher, temperature=config.temperature)
    dml_ece, dml_accuracy, dml_gap = scores(mutual, mutual)
    ece, accuracy, gap = scores(mutual, mutual) if config.control else scores(balanced, regularized)
    return Claim(
        measured={
            "ece": ece.mean(),
            "ece, DML": dml_ece.mean(),
            "accuracy": accuracy.mean(),
            "accuracy, DML": dml_accuracy.mean(),
            "entropy gap": gap.mean(),
            "entropy gap, DML": dml_gap.mean(),
            "ece by seed": ece.tolist(),
            "ece by seed, DML": dml_ece.tolist(),
        },
        holds=bool(
            ece.mean() < dml_ece.mean()
            and accuracy.mean() >= dml_accuracy.mean() - POINT
            and gap.mean() <= dml_gap.mean()
        ),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
