"""Concatenated distance covariance sees and removes a disparity between intersections that pairwise misses.

Statistic: predictions y_hat = XOR(S1, S2) + 0.1 noise on 600 people, 150 in each of the four cells of two
fair binary attributes. Every distance covariance is divided by its level under independence, the mean over
permutations of y_hat: pairwise dCov^2(y_hat, S_i) stays within 5 times its level, the concatenated one is at
least 40, the joint one at least 25 times its level, in every seed.

Training: labels of logit x·(1.5, -1, 0.5) + 2 (XOR(S1, S2) - 1/2); an MLP 6-32-1 sees x, both attributes and
a noisy proxy of their XOR, and minimizes the cross entropy plus lambda times a penalty of its probabilities,
in 400 full-batch Adam steps. Measured is the largest gap between the mean predictions of two cells, relative
to that under the pairwise penalty with lambda = 5: in every seed at most 0.85 under the concatenated penalty
with lambda = 3 and at most 0.55 with lambda = 10. Control: pairwise in place of concatenated and joint, and
no penalty in training.

The same trainings on ProPublica's COMPAS table (race and sex protected), with as many people, are reported
beside it where the environment variable JAXDIV_DATA names a folder with compas-two-years.csv; nothing is
claimed of them.

References:
    Lee, Antonio, Avanzi, Marchi, Zhou (2025), Machine Learning with Multitype Protected Attributes:
    Intersectional Fairness through Regularisation.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, divergences, nn, objectives
from jaxdiv.testing.data import compas, intersectional

PAIRWISE_LEVEL, CONCATENATED_LEVEL, JOINT_LEVEL = 5.0, 40.0, 25.0
WEAK_GAP, STRONG_GAP = 0.85, 0.55


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    people: int = 600
    """People in the statistic and in training, a multiple of 4."""
    permutations: int = 20
    """Permutations for the level under independence."""
    width: int = 32
    """Hidden units."""
    steps: int = 400
    """Full-batch steps."""
    learning_rate: float = 5e-3
    """Of Adam."""
    pairwise_strength: float = 5.0
    """Lambda of the pairwise penalty."""
    weak: float = 3.0
    """Smaller lambda of the concatenated penalty."""
    strong: float = 10.0
    """Larger lambda of the concatenated penalty."""


SMOKE = Config(seeds=2, people=40, permutations=2, width=4, steps=2)


def pairwise(y_hat, attributes, weights=None):
    return sum(divergences.dcov2(y_hat, s, weights=weights) for s in attributes)


def concatenated(y_hat, attributes, weights=None):
    return divergences.concat_dcov2(y_hat, attributes, weights=weights)


def split(protected):
    """The attributes one by one, in columns."""
    return [protected[:, :1], protected[:, 1:]]


def levels(config: Config):
    """Each statistic over its mean under permutations of the predictions; one entry per seed."""
    cells = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    protected = jnp.repeat(cells, config.people // 4, axis=0)
    s1, s2 = split(protected)

    def statistics(y_hat):
        first, second = divergences.dcov2(y_hat, s1), divergences.dcov2(y_hat, s2)
        if config.control:
            return first, second, first, first
        concat = divergences.concat_dcov2(y_hat, [s1, s2], standardize=False)
        return first, second, concat, divergences.joint_dcov2([y_hat, s1, s2])

    def of_seed(key):
        noise_key, permutation_key = jax.random.split(key)
        y_hat = jnp.abs(s1 - s2) + 0.1 * jax.random.normal(noise_key, s1.shape)
        keys = jax.random.split(permutation_key, config.permutations)
        independent = jax.lax.map(lambda k: statistics(jax.random.permutation(k, y_hat)), keys)
        return jax.tree.map(lambda value, level: value / jnp.mean(level), statistics(y_hat), independent)

    first, second, concat, joint = full_batch.each_seed(of_seed, config.seeds)()
    return {
        "pairwise level": jnp.maximum(first, second),
        "concatenated level": concat,
        "joint level": joint,
    }


def trained(config: Config, data, penalty):
    """A function of lambda: gap between cells, accuracy and so on of the test split, one entry per seed."""
    features = data["train"]["inputs"].shape[-1]
    model = full_batch.models(lambda rngs: nn.MLP((features, config.width, 1), rngs=rngs), config.seeds)

    def apply(params, state, inputs, key):
        logits, state = model.apply(params, state, inputs, key)
        return {"logits": logits[:, 0], "probability": jax.nn.sigmoid(logits)}, state

    def standardized(protected):
        return split((protected - jnp.mean(protected, 0)) / jnp.std(protected, 0))

    def of_seed(key, params, data, strength):
        dependence = objectives.batch_loss(
            lambda y_hat, s, weights: penalty(y_hat, standardized(s), weights),
            name="dependence",
            output="probability",
            target="protected",
            weight=strength,
        )
        objective = objectives.chain(
            objectives.forward(apply, model_state=model.model_state),
            objectives.loss(optax.sigmoid_binary_cross_entropy, name="ce"),
            objectives.mean(),
            dependence,
        )
        tx = optax.adam(config.learning_rate)
        state, _ = full_batch.fit(objective, params, data["train"], key, tx=tx, steps=config.steps)
        outputs, _ = apply(state.params, model.model_state, data["test"]["inputs"], None)
        y_hat, protected = outputs["probability"][:, 0], data["test"]["protected"]
        cell = (2 * protected[:, 0] + protected[:, 1]).astype(jnp.int32)
        means = jnp.array([jnp.mean(y_hat, where=cell == k) for k in range(4)])
        return {
            "gap": jnp.max(means) - jnp.min(means),
            "accuracy": jnp.mean((y_hat > 0.5) == (data["test"]["targets"] > 0.5)),
            "jsd": diagnostics.group_jsd(y_hat, cell, num_groups=4, limits=(0.0, 1.0)).largest,
        }

    mapped = full_batch.each_seed(of_seed, config.seeds)
    scale = 0.0 if config.control else 1.0
    return lambda strength: mapped(model.params, data, jnp.full(config.seeds, scale * strength))


def under_each_penalty(config: Config, data):
    """What `trained` gives for each penalty that is compared."""
    with_pairwise, with_concatenated = (
        trained(config, data, penalty) for penalty in (pairwise, concatenated)
    )
    return {
        "none": with_pairwise(0.0),
        "pairwise": with_pairwise(config.pairwise_strength),
        "weak": with_concatenated(config.weak),
        "strong": with_concatenated(config.strong),
    }


def run(config: Config) -> Claim:
    level = levels(config)
    data = full_batch.stack(lambda seed: intersectional(seed, train=config.people), config.seeds)
    runs = under_each_penalty(config, data)
    weak, strong = (runs[name]["gap"] / runs["pairwise"]["gap"] for name in ("weak", "strong"))
    holds = (
        jnp.all(level["pairwise level"] <= PAIRWISE_LEVEL)
        & jnp.all(level["concatenated level"] >= CONCATENATED_LEVEL)
        & jnp.all(level["joint level"] >= JOINT_LEVEL)
        & jnp.all(weak <= WEAK_GAP)
        & jnp.all(strong <= STRONG_GAP)
    )
    measured = {**level, "gap ratio, weak": weak, "gap ratio, strong": strong}
    for quantity in ("gap", "accuracy", "jsd"):
        measured |= {f"{quantity}, {name}": seen[quantity] for name, seen in runs.items()}
    folder = os.environ.get("JAXDIV_DATA")
    if folder is None:
        Console(stderr=True).print("JAXDIV_DATA is not set: synthetic data alone, without COMPAS.")
    else:
        data = full_batch.stack(lambda seed: compas(folder, seed, train=config.people), config.seeds)
        for name, seen in under_each_penalty(config, data).items():
            measured |= {f"COMPAS {quantity}, {name}": seen[quantity] for quantity in ("gap", "accuracy")}
    return Claim(
        measured={name: np.asarray(values).tolist() for name, values in measured.items()}, holds=bool(holds)
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
