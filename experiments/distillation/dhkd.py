"""CE and a logit-level loss conflict in one classifier; gradient alignment keeps every step from hurting CE.

Data: 400 training digits; the rest for the test. Models: a teacher 64-256-256-10, trained with cross entropy,
and students 64-32-32-10 that minimize CE(y) + BinaryKL-Norm(teacher) with 300 full-batch Adam steps, on one
head or with the logit-level loss on an auxiliary head of its own. Measured before each step are the gradients
of the two terms: their cosine in the single classifier, averaged from step 50 on, which is negative in every
seed; and for both students under `oracles.align("ce")`

    margin = ( <g, g_CE> - |g_CE|^2 ) / |g| |g_CE|,    g the direction in which the parameters move,

whose minimum over all steps and seeds is not negative up to rounding. Test accuracies are reported; the
claim is about the conflict and its removal alone. Control: the plain gradient instead of the aligned one.

References:
    Yang, Zong, Huang, Feng, An (2024), Dual-Head Knowledge Distillation: Enhancing Logits Utilization with
    an Auxiliary Head.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives, oracles
from jaxdiv.testing.data import digits

ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 400
    """Training examples."""
    student_width: int = 32
    """Units in each of the student's two hidden layers."""
    teacher_width: int = 256
    """Units in each of the teacher's two hidden layers."""
    auxiliary_width: int = 200
    """Hidden units of the auxiliary head."""
    steps: int = 300
    """Full-batch steps of teacher and students."""
    warm_up: int = 50
    """Steps before the cosine is averaged."""
    learning_rate: float = 3e-3
    """Of Adam."""
    temperature: float = 2.0
    """Of the logit-level loss."""


SMOKE = Config(seeds=2, examples=40, student_width=8, teacher_width=8, auxiliary_width=8, steps=6, warm_up=2)


class DualHead(nnx.Module):
    """A student with a second head on its last features; the main logits are those used at test time."""

    def __init__(self, main: nn.MLP, auxiliary: nn.AuxiliaryHead):
        self.main, self.auxiliary = main, auxiliary

    def __call__(self, inputs):
        outputs = self.main(inputs)
        return {**outputs, "auxiliary": self.auxiliary(outputs["features"])}


def run(config: Config) -> Claim:
    width, wide = config.student_width, config.teacher_width
    data = full_batch.stack(lambda seed: digits(seed, train=config.examples), config.seeds)

    def single_head(rngs):
        return nn.MLP((64, width, width, 10), features=True, rngs=rngs)

    def dual_head(rngs):
        auxiliary = nn.AuxiliaryHead(width, 10, hidden=config.auxiliary_width, rngs=rngs)
        return DualHead(single_head(rngs), auxiliary)

    teacher = full_batch.models(lambda rngs: nn.MLP((64, wide, wide, 10), rngs=rngs), config.seeds)
    single = full_batch.models(single_head, config.seeds)
    dual = full_batch.models(dual_head, config.seeds)
    ce = objectives.loss(losses.cross_entropy, name="ce")
    logit_level = partial(losses.binary_kl_norm, temperature=config.temperature)
    mean, tx = objectives.mean(), optax.adam(config.learning_rate)
    oracle = oracles.plain() if config.control else oracles.align("ce")

    def distill(model, params, teacher_params, output, oracle, batch, key):
        """Trains a student, and watches what its terms ask for and how it moves."""
        objective = objectives.chain(
            objectives.forward(model.apply, model_state=model.model_state),
            objectives.teacher(teacher.apply, teacher_params, teacher.model_state),
            ce,
            objectives.loss(logit_level, name="logit_level", output=output, target="teacher"),
            mean,
        )

        def watch(state):
            at = (state.loss_state, batch, jax.random.fold_in(state.key, state.step))
            terms = jax.jacrev(lambda params: objective.apply(params, *at)[1][1]["terms"])(state.params)
            moved = oracle.value_and_grad(objective.apply, state.params, state.oracle_state, *at)[1]
            norm = optax.tree.norm(terms["ce"])
            margin = (optax.tree.vdot(moved, terms["ce"]) - norm**2) / (optax.tree.norm(moved) * norm)
            return margin, cosine(*(classifier(terms[name]) for name in ("ce", "logit_level")))

        state, (margin, cosines) = full_batch.fit(
            objective, params, batch, key, tx=tx, steps=config.steps, oracle=oracle, watch=watch
        )
        return state, jnp.min(margin), jnp.mean(cosines[config.warm_up :])

    def of_seed(key, teacher_params, single_params, dual_params, data):
        batch, test = data["train"], data["test"]

        def accuracy(model, state):
            outputs, _ = model.apply(state.params, state.loss_state[0], test["inputs"], None)
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs
            return diagnostics.accuracy(logits, test["targets"])

        learn = objectives.chain(objectives.forward(teacher.apply, model_state=teacher.model_state), ce, mean)
        taught, _ = full_batch.fit(learn, teacher_params, batch, key, tx=tx, steps=config.steps)
        conflict = distill(single, single_params, taught.params, "logits", oracles.plain(), batch, key)
        aligned = distill(single, single_params, taught.params, "logits", oracle, batch, key)
        both = distill(dual, dual_params, taught.params, "auxiliary", oracle, batch, key)
        return {
            "cosine in the single classifier": conflict[2],
            "least margin, single head": aligned[1],
            "least margin, dual head": both[1],
            "accuracy, teacher": accuracy(teacher, taught),
            "accuracy, single head": accuracy(single, conflict[0]),
            "accuracy, single head aligned": accuracy(single, aligned[0]),
            "accuracy, dual head aligned": accuracy(dual, both[0]),
        }

    measured = full_batch.each_seed(of_seed, config.seeds)(teacher.params, single.params, dual.params, data)
    conflicts = measured["cosine in the single classifier"] < 0
    margins = jnp.stack([measured[f"least margin, {heads} head"] for heads in ("single", "dual")])
    return Claim(
        measured={name: np.asarray(values).tolist() for name, values in measured.items()},
        holds=bool(jnp.all(conflicts) and jnp.all(margins >= -ROUNDING)),
    )


def classifier(params):
    """The main head's last layer."""
    return params["main"]["output"] if "main" in params else params["output"]


def cosine(a, b):
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
