"""The sharpness of the straggler layer follows the accuracy under shift as well as that of the whole network.

64-64-64-10 networks trained on 500 digits (1500 steps of SGD on batches of 64, learning rate 0.3), then fine-tuned
on the digits rotated by 25 degrees (600 steps, 0.1); the shift is the test digits rolled by one pixel. Along the
segment from the first to the fine-tuned network, eleven points in each seed, sharpness is the adaptive L-infinity
one (radius 0.05, 10 steps) on the rotated training digits, and the straggler is the layer whose rewinding changes
their loss most. Over all seeds the rank correlation of the straggler's sharpness with the accuracy under shift is, in
absolute value, at least that of the whole network's less 0.05, and both are positive. Control: the layer whose
rewinding changes the loss least in the place of the straggler.

The claim is one of no loss: at this size the straggler is always the first layer, which makes most of the whole
network's sharpness.

References:
    In search of the successful interpolation: on the role of sharpness in CLIP generalization (2024).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.ndimage import rotate
from scipy.stats import spearmanr

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives, oracles, train
from jaxdiv.testing.data import digits

SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    examples: int = 500
    """Training examples."""
    width: int = 64
    """Units in each hidden layer."""
    steps: int = 1500
    """Steps of the first training."""
    tune_steps: int = 600
    """Steps of the fine-tuning."""
    learning_rate: float = 0.3
    """Of the first training."""
    tune_rate: float = 0.1
    """Of the fine-tuning."""
    batch: int = 64
    """Examples in a step."""
    angle: float = 25.0
    """Degrees by which the digits of the fine-tuning are rotated."""
    points: int = 11
    """Points on the segment."""
    rho: float = 0.05
    """Radius of the sharpness."""
    ascent_steps: int = 10
    """Steps of the ascent."""


SMOKE = Config(seeds=2, examples=64, width=8, steps=3, tune_steps=3, points=3, ascent_steps=2)


def shifted(config: Config, seed: int):
    """Digits as they are, rotated ones, and the test rolled by a pixel."""
    split = digits(seed, train=config.examples)

    def turned(batch):
        images = batch["inputs"].reshape(-1, 8, 8)
        inputs = rotate(images, config.angle, axes=(1, 2), reshape=False, order=1)
        return {**batch, "inputs": inputs.reshape(len(images), 64).astype(np.float32)}

    rolled = np.roll(split["test"]["inputs"].reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64)
    return {
        "clean": split["train"],
        "tuned": turned(split["train"]),
        "target": turned(split["test"]),
        "shift": {**split["test"], "inputs": rolled},
    }


def run(config: Config) -> Claim:
    data = full_batch.stack(lambda seed: shifted(config, seed), config.seeds)
    wide = config.width
    model = full_batch.models(lambda rngs: nn.MLP((64, wide, wide, 10), rngs=rngs), config.seeds)
    objective = objectives.chain(
        objectives.forward(model.apply, model_state=model.model_state),
        objectives.loss(losses.cross_entropy),
        objectives.mean(),
    )
    alphas = jnp.linspace(0.0, 1.0, config.points)

    def logits(params, inputs):
        return model.apply(params, model.model_state, inputs, None)[0]

    def loss(params, batch):
        return jnp.mean(losses.cross_entropy(logits(params, batch["inputs"]), batch["targets"]))

    def fit(params, batch, key, steps, rate):
        init, step = train.make_step(objective, oracles.plain(), optax.sgd(rate))

        def body(state, key):
            rows = jax.random.choice(key, config.examples, (config.batch,), replace=False)
            return step(state, jax.tree.map(lambda x: x[rows], batch))[0], None

        first = jax.tree.map(lambda x: x[: config.batch], batch)
        return jax.lax.scan(body, init(params, first, key), jax.random.split(key, steps))[0].params

    def of_seed(key, params, data):
        before = fit(params, data["clean"], key, config.steps, config.learning_rate)
        after = fit(before, data["tuned"], jax.random.fold_in(key, 1), config.tune_steps, config.tune_rate)

        def accuracy(params, name):
            return diagnostics.accuracy(logits(params, data[name]["inputs"]), data[name]["targets"])

        def measure(params):
            options = {"steps": config.ascent_steps, "key": jax.random.key(1)}
            return {
                "accuracy under shift": accuracy(params, "shift"),
                "accuracy on the target": accuracy(params, "target"),
                "loss": loss(params, data["tuned"]),
                "whole": diagnostics.sharpness_worst(loss, params, data["tuned"], config.rho, **options),
                "layers": diagnostics.layerwise_sharpness(loss, params, data["tuned"], config.rho, **options),
            }

        rewound = diagnostics.layer_interpolation(
            lambda params: loss(params, data["tuned"]), before, after, jnp.array([0.0, 1.0])
        )
        return diagnostics.interpolation_curve(measure, before, after, alphas), rewound

    curves, rewound = jax.tree.map(
        np.asarray, full_batch.each_seed(of_seed, config.seeds)(model.params, data)
    )
    layers = list(rewound)
    effects = np.stack([np.abs(rewound[layer][:, 0] - rewound[layer][:, 1]) for layer in layers])
    chosen = effects.argmin(axis=0) if config.control else effects.argmax(axis=0)
    of_layer = np.stack([curves["layers"][layers[which]][seed] for seed, which in enumerate(chosen)])
    shift = curves["accuracy under shift"]

    def correlation(sharpness, accuracy):
        if not (np.ptp(sharpness) and np.ptp(accuracy)):
            return 0.0
        return float(spearmanr(sharpness.ravel(), accuracy.ravel()).statistic)

    layer, whole = correlation(of_layer, shift), correlation(curves["whole"], shift)
    measured = {
        "correlation, layer": layer,
        "correlation, whole network": whole,
        "by seed, layer": [correlation(a, b) for a, b in zip(of_layer, shift, strict=True)],
        "by seed, whole network": [correlation(a, b) for a, b in zip(curves["whole"], shift, strict=True)],
        "layer taken": chosen.tolist(),
        "barrier of the loss": [float(diagnostics.barrier(curve, alphas)) for curve in curves["loss"]],
        "accuracy under shift, first network": shift[:, 0].tolist(),
        "accuracy under shift, best between": shift.max(axis=1).tolist(),
        "accuracy under shift, fine-tuned": shift[:, -1].tolist(),
        "accuracy on the target, fine-tuned": curves["accuracy on the target"][:, -1].tolist(),
    }
    figure = diagnostics.plots.interpolation(
        alphas,
        {name: curves[name][0] for name in ("accuracy under shift", "accuracy on the target", "loss")},
        {f"sharpness of {name}": values[0] for name, values in curves["layers"].items()},
    )
    return Claim(measured, bool(abs(layer) >= abs(whole) - SLACK and layer > 0 and whole > 0), figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
