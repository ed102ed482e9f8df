"""Learned weights of Dice, cross entropy and focal loss find their stationary point and cost no more than 0.02 Dice.

Stationarity: for terms fixed at 0.1, 1 and 10, Adam on s alone ends within 0.001 of s² = (L + sqrt(L² + 8 L))
/ 4, so that larger terms weigh less. Segmentation: 32 training and 64 test images of 16x16 pixels, a bright
disc of random place and radius on noise of deviation 0.7, a network of two 3x3 convolutions with 8 channels,
200 full-batch Adam steps under SAM (rho = 0.05). Claimed of means over the seeds: the test Dice (twice the
overlap by the sum of the areas, of hard predictions) of the weighted sum is at least that of the best single
loss less 0.02. Control: the s are not learned.

References:
    Tsai, Lin, Hu, Chang, Zhu, Wang (2024), UU-Mamba: Uncertainty-aware U-Mamba for Cardiovascular Segmentation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import losses, objectives, oracles

LEVELS = (0.1, 1.0, 10.0)
TOLERANCE, LOSS_OF_DICE = 1e-3, 0.02
SIZE = 16


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    images: int = 32
    """Training images."""
    channels: int = 8
    """Channels of the hidden layer."""
    steps: int = 200
    """Full-batch steps."""
    learning_rate: float = 1e-2
    """Of Adam."""
    weight_steps: int = 3000
    """Steps on s alone."""


SMOKE = Config(seeds=2, images=4, channels=2, steps=2, weight_steps=2)


def draw(seed, images):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1)

    def part(n):
        centers, radii = rng.uniform(4, SIZE - 4, (n, 1, 1, 2)), rng.uniform(2, 5, (n, 1, 1))
        disc = np.linalg.norm(grid - centers, axis=-1) < radii
        inputs = disc + 0.7 * rng.normal(size=disc.shape)
        return {"inputs": np.float32(inputs[..., None]), "targets": disc.astype(np.int32)}

    return {"train": part(images), "test": part(2 * images)}


class Network(nnx.Module):
    """Two convolutions with a ReLU between them."""

    def __init__(self, channels, rngs):
        self.first = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.second = nnx.Conv(channels, 2, (3, 3), rngs=rngs)

    def __call__(self, images):
        return self.second(jax.nn.relu(self.first(images)))


def overlap(logits, labels):
    """Dice of hard predictions, over all pixels of the test images."""
    predicted = jnp.argmax(logits, -1) == 1
    return 2 * jnp.sum(predicted & (labels == 1)) / (jnp.sum(predicted) + jnp.sum(labels == 1))


def learned_weights(config):
    """The s after steps of Adam for terms that stay as they are."""
    link = objectives.uncertainty_weighting("a", "b", "c", where=lambda s: s)
    record = objectives.from_batch({"inputs": jnp.zeros((1, 1))})
    record = record._replace(terms=dict(zip("abc", map(jnp.float32, LEVELS), strict=True)))
    tx = optax.adam(0.0 if config.control else 0.01)

    def step(carry, _):
        s, state = carry
        slope = jax.grad(lambda s: sum(link.update(s, (), record, None)[0].terms.values()))(s)
        updates, state = tx.update(slope, state, s)
        return (optax.apply_updates(s, updates), state), None

    first = jnp.ones(len(LEVELS))
    (s, _), _ = jax.jit(lambda s: jax.lax.scan(step, (s, tx.init(s)), length=config.weight_steps))(first)
    return np.asarray(s)


def run(config: Config) -> Claim:
    data = full_batch.stack(lambda seed: draw(seed, config.images), config.seeds)
    model = full_batch.models(lambda rngs: Network(config.channels, rngs), config.seeds)
    names = ("dice", "ce", "focal")
    params = {"model": model.params, "s": jnp.ones((config.seeds, len(names)))}

    def apply(params, state, inputs, key):
        return model.apply(params["model"], state, inputs, key)

    def where(params):
        return jax.lax.stop_gradient(params["s"]) if config.control else params["s"]

    def training(*weighting):
        """A function that gives test Dice and s of each seed; its shares multiply the three losses."""

        def of_seed(key, params, data, share):
            objective = objectives.chain(
                objectives.forward(apply),
                objectives.loss(losses.dice, name="dice", weight=share[0]),
                objectives.loss(losses.pixel_cross_entropy, name="ce", weight=share[1]),
                objectives.loss(losses.softmax_focal, name="focal", weight=share[2]),
                objectives.mean(),
                *weighting,
            )
            state, _ = full_batch.fit(
                objective,
                params,
                data["train"],
                key,
                tx=optax.adam(config.learning_rate),
                steps=config.steps,
                oracle=oracles.sam(oracles.plain(), rho=0.05),
            )
            logits, _ = apply(state.params, (), data["test"]["inputs"], None)
            return overlap(logits, data["test"]["targets"]), state.params["s"]

        return full_batch.each_seed(of_seed, config.seeds)

    weighting = training(objectives.uncertainty_weighting(*names, where=where))
    weighted, s = map(np.asarray, weighting(params, data, jnp.ones((config.seeds, 3))))
    alone = training()
    single = [np.asarray(alone(params, data, jnp.tile(row, (config.seeds, 1)))[0]) for row in jnp.eye(3)]
    level = np.array(LEVELS)
    stationary = np.sqrt((level + np.sqrt(level**2 + 8 * level)) / 4)
    learned = learned_weights(config)
    return Claim(
        measured={
            "Dice, weighted": weighted.tolist(),
            **{f"Dice, {name} alone": dice.tolist() for name, dice in zip(names, single, strict=True)},
            "s of dice": s[:, 0].tolist(),
            "s of ce": s[:, 1].tolist(),
            "s of focal": s[:, 2].tolist(),
            "distance of s from the stationary point": float(np.abs(learned - stationary).max()),
        },
        holds=bool(
            np.abs(learned - stationary).max() < TOLERANCE
            and weighted.mean() >= max(dice.mean() for dice in single) - LOSS_OF_DICE
        ),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
