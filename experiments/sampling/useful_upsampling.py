"""USEFUL repeats the examples that lack a fast-learned feature, and these are classified better for it.

Data: 400 inputs of 40 features, x = y (fast v_e + 0.25 v_d) + noise of deviation 0.1, with orthogonal unit directions
v_e, present in 90 % of the examples, and v_d, in all. A ReLU network of 40 hidden units and fixed second layer
±1/40 is trained for 400 full-batch steps of the logistic loss. USEFUL clusters after 60 steps, doubles the cluster
of higher loss in each class, and starts again from the same weights. For every seed: precision and recall of what is
repeated, as "lacks the fast feature", are at least 0.9; the accuracy on 4000 such test examples is at least 0.02
above that of training without repeats, and above that with as many random repeats. Control: the random repeats stand
for USEFUL's.

References:
    Nguyen, Haddad, Gan, Mirzasoleiman (2024), Changing the Training Data Distribution to Reduce Simplicity Bias
    Improves In-distribution Generalization.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import sampling

MARGIN = 0.02
LEAST = 0.9


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 400
    """Training examples."""
    features: int = 40
    """Inputs."""
    hidden: int = 40
    """Hidden units."""
    fast_share: float = 0.9
    """Share of the examples that have the fast feature."""
    slow: float = 0.25
    """Length of the slow feature; the fast one has 1."""
    noise: float = 0.1
    """Deviation of the noise in each input."""
    test: int = 4000
    """Test examples without the fast feature."""
    separation_steps: int = 60
    """Steps before the clusters are found."""
    steps: int = 400
    """Steps of each training."""


SMOKE = Config(seeds=1, examples=40, test=20, separation_steps=4, steps=8)


def draw(config: Config, rng: np.random.Generator, n: int, fast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and signs; the two features are the first two coordinates."""
    signs = rng.choice([-1.0, 1.0], n)
    inputs = config.noise * rng.normal(size=(n, config.features))
    inputs[:, 0] += signs * fast
    inputs[:, 1] += signs * config.slow
    return inputs.astype(np.float32), signs.astype(np.float32)


def run(config: Config) -> Claim:
    second = jnp.where(jnp.arange(config.hidden) < config.hidden / 2, 1.0, -1.0) / config.hidden

    def outputs(weights, inputs):
        return jax.nn.relu(inputs @ weights) @ second

    def costs(weights, inputs, signs):
        return optax.losses.sigmoid_binary_cross_entropy(outputs(weights, inputs), (signs + 1) / 2)

    @jax.jit
    def fit(weights, inputs, signs, repeats, steps):
        """Full-batch steps on the data with repeats, which count as weights."""

        def loss(weights):
            return jnp.sum(repeats * costs(weights, inputs, signs)) / jnp.sum(repeats)

        return jax.lax.fori_loop(0, steps, lambda _, w: w - config.hidden * jax.grad(loss)(w), weights)

    rows = []
    for seed in range(config.seeds):
        rng = np.random.default_rng(seed)
        fast = rng.random(config.examples) < config.fast_share
        inputs, signs = draw(config, rng, config.examples, fast)
        test = draw(config, rng, config.test, np.zeros(config.test))
        shape = (config.features, config.hidden)
        start = jnp.asarray(rng.normal(size=shape) / np.sqrt(config.features), jnp.float32)
        once = np.ones(config.examples, np.int32)

        early = fit(start, inputs, signs, once, config.separation_steps)
        labels = (signs > 0).astype(np.int32)
        useful = sampling.useful_repeats(outputs(early, inputs), labels, costs(early, inputs, signs))
        chance = rng.permutation(useful)
        chosen = (chance if config.control else useful) > 1
        accuracies = [
            np.mean(np.sign(outputs(fit(start, inputs, signs, repeats, config.steps), test[0])) == test[1])
            for repeats in (1 + chosen.astype(np.int32), once, chance)
        ]
        hits = np.sum(chosen & ~fast)
        rows.append([hits / max(np.sum(chosen), 1), hits / max(np.sum(~fast), 1), *accuracies])
    names = ("precision", "recall", "accuracy", "accuracy, no repeats", "accuracy, random repeats")
    precision, recall, ours, plain, chance = columns = np.array(rows, np.float64).T
    return Claim(
        measured={name: column.tolist() for name, column in zip(names, columns, strict=True)},
        holds=bool(
            np.all(precision >= LEAST)
            and np.all(recall >= LEAST)
            and np.all(ours >= plain + MARGIN)
            and np.all(ours >= chance + MARGIN)
        ),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
