"""Under label noise PS-KD lowers test NLL in every seed, and mean ECE, against hard targets.

Data: 500 training digits, 30% of them with another label; the rest of the digits, clean, for the test.
Models: an MLP 64-128-10, trained for 60 epochs of 10 full-batch Adam steps. PS-KD mixes the targets with the
predictions of one epoch ago, with a weight that grows linearly to 0.8 from epoch to epoch; for hard targets
the weight stays 0. Control: it stays 0 in both.

References:
    Kim, Ji, Yoon, Hwang (2021), Self-Knowledge Distillation with Progressive Refinement of Targets.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives
from jaxdiv.testing.data import digits


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 500
    """Training examples."""
    label_noise: float = 0.3
    """Share of the training labels that are replaced."""
    width: int = 128
    """Hidden units."""
    epochs: int = 60
    """Epochs, over which the weight of the past grows."""
    steps_per_epoch: int = 10
    """Full-batch steps an epoch."""
    learning_rate: float = 1e-2
    """Of Adam."""
    alpha: float = 0.8
    """Last weight of the past predictions."""


SMOKE = Config(seeds=2, examples=40, width=8, epochs=2, steps_per_epoch=2)


def run(config: Config) -> Claim:
    data = full_batch.stack(
        lambda seed: digits(seed, train=config.examples, label_noise=config.label_noise), config.seeds
    )
    model = full_batch.models(lambda rngs: nn.MLP((64, config.width, 10), rngs=rngs), config.seeds)

    def of_seed(key, params, data, last_weight):
        def alpha(update):
            return last_weight * (update // config.steps_per_epoch) / config.epochs

        objective = objectives.chain(
            objectives.forward(model.apply, model_state=model.model_state),
            objectives.ps_kd(config.examples, alpha=alpha, lag=config.steps_per_epoch),
            objectives.loss(losses.cross_entropy, name="ce"),
            objectives.mean(),
        )
        state, _ = full_batch.fit(
            objective,
            params,
            {**data["train"], "index": jnp.arange(config.examples)},
            key,
            tx=optax.adam(config.learning_rate),
            steps=config.epochs * config.steps_per_epoch,
        )
        logits, _ = model.apply(state.params, model.model_state, data["test"]["inputs"], None)
        labels = data["test"]["targets"]
        return diagnostics.nll(logits, labels), diagnostics.ece(logits, labels)

    train = full_batch.each_seed(of_seed, config.seeds)
    hard = jnp.zeros(config.seeds)
    soft = hard if config.control else jnp.full(config.seeds, config.alpha)
    nll, ece = map(np.asarray, train(model.params, data, soft))
    hard_nll, hard_ece = map(np.asarray, train(model.params, data, hard))
    return Claim(
        measured={
            "nll": nll.tolist(),
            "nll, hard targets": hard_nll.tolist(),
            "ece": ece.tolist(),
            "ece, hard targets": hard_ece.tolist(),
        },
        holds=bool(np.all(nll < hard_nll) and ece.mean() < hard_ece.mean()),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
