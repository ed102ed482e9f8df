"""Adaptive sharpness does not see a rescaling that keeps the function, and follows the learning rate, not the test.

(i) A two-layer ReLU network W2 relu(W1 x + b1) keeps its function as W1 a, b1 a, W2 / a; for a in {0.1, 10} its
adaptive worst-case (L-infinity) and average-case sharpness change by less than 1%, with the same random numbers,
where its standard average sharpness changes by more than a factor of 2.
(ii) 64-64-10 networks on 500 digits, 3000 steps of SGD on batches of 32, with four learning rates times three weight
decays in each seed: over all of them, the rank correlation of the adaptive worst-case sharpness of standardized
logits with the learning rate is larger in absolute value than that with the test error.
Control: standard sharpness in the place of the adaptive one.

Reported beside it: correlations within each seed, those without standardized logits, and a scatter plot.

References:
    Andriushchenko, Croce, Müller, Hein, Flammarion (2023), A modern look at the relationship between sharpness and
    generalization.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.stats import spearmanr

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives, oracles, train
from jaxdiv.testing.data import digits

UNCHANGED, CHANGED = 0.01, 2.0


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 500
    """Training examples."""
    width: int = 64
    """Hidden units."""
    steps: int = 3000
    """Steps of SGD."""
    batch: int = 32
    """Examples in a step."""
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.15, 0.4)
    """Learning rates."""
    weight_decays: tuple[float, ...] = (0.0, 1e-3, 5e-3)
    """Weight decays."""
    rho: float = 0.05
    """Radius of the adaptive sharpness."""
    standard_rho: float = 0.01
    """Radius of the standard one."""
    ascent_steps: int = 20
    """Steps of the ascent."""


SMOKE = Config(
    seeds=2, examples=64, width=8, steps=4, learning_rates=(0.02, 0.4), weight_decays=(0.0,), ascent_steps=2
)


def rescaled(params, factor):
    """The same function with the first layer times a factor."""

    def of_leaf(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf * factor if "hidden" in name else leaf / factor if "kernel" in name else leaf

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def run(config: Config) -> Claim:
    data = full_batch.stack(lambda seed: digits(seed, train=config.examples), config.seeds)
    model = full_batch.models(lambda rngs: nn.MLP((64, config.width, 10), rngs=rngs), config.seeds)
    objective = objectives.chain(
        objectives.forward(model.apply, model_state=model.model_state),
        objectives.loss(losses.cross_entropy),
        objectives.mean(),
    )

    def logits(params, inputs):
        return model.apply(params, model.model_state, inputs, None)[0]

    def plain_loss(params, batch):
        return jnp.mean(losses.cross_entropy(logits(params, batch["inputs"]), batch["targets"]))

    def standardized_loss(params, batch):
        scores = losses.standardize_logits(logits(params, batch["inputs"]))
        return jnp.mean(losses.cross_entropy(scores, batch["targets"]))

    adaptive = not config.control
    geometry, rho = ("adaptive_linf", config.rho) if adaptive else ("linf", config.standard_rho)

    def worst(loss, params, batch):
        return diagnostics.sharpness_worst(
            loss, params, batch, rho, geometry=geometry, steps=config.ascent_steps, key=jax.random.key(1)
        )

    def average(loss, params, batch, adaptive):
        radius = config.rho if adaptive else config.standard_rho
        return diagnostics.sharpness_average(
            loss, params, batch, radius, adaptive=adaptive, key=jax.random.key(2)
        )[0]

    grid = np.array(list(itertools.product(config.learning_rates, config.weight_decays)), np.float32)

    def of_model(key, params, data, options):
        tx = optax.chain(optax.add_decayed_weights(options[1]), optax.sgd(options[0]))
        init, step = train.make_step(objective, oracles.plain(), tx)

        def body(state, key):
            rows = jax.random.choice(key, config.examples, (config.batch,), replace=False)
            return step(state, jax.tree.map(lambda x: x[rows], data["train"]))[0], None

        first = jax.tree.map(lambda x: x[: config.batch], data["train"])
        state, _ = jax.lax.scan(body, init(params, first, key), jax.random.split(key, config.steps))
        scores = logits(state.params, data["test"]["inputs"])
        return {
            "params": state.params,
            "test error": 1 - diagnostics.accuracy(scores, data["test"]["targets"]),
            "standardized": worst(standardized_loss, state.params, data["train"]),
            "plain": worst(plain_loss, state.params, data["train"]),
        }

    def of_seed(key, params, data):
        return jax.lax.map(lambda options: of_model(key, params, data, options), grid)

    def invariance(key, params, data):
        def measure(factor):
            moved = rescaled(params, factor)
            return jnp.stack(
                [
                    worst(plain_loss, moved, data["train"]),
                    average(plain_loss, moved, data["train"], adaptive),
                    average(plain_loss, moved, data["train"], False),
                ]
            )

        return jax.lax.map(measure, jnp.array([1.0, 0.1, 10.0]))

    models = full_batch.each_seed(of_seed, config.seeds)(model.params, data)
    trained = jax.tree.map(lambda x: x[:, 0], models.pop("params"))
    models = jax.tree.map(np.asarray, models)
    values = np.asarray(full_batch.each_seed(invariance, config.seeds)(trained, data))
    change = np.abs(values[:, 1:] / values[:, :1] - 1).max(axis=1)
    factor = np.exp(np.abs(np.log(np.abs(values[:, 1:, 2] / values[:, :1, 2]))).max(axis=1))

    rates = np.broadcast_to(grid[:, 0], models["plain"].shape)

    def correlation(sharpness, other):
        if not (np.ptp(sharpness) and np.ptp(other)):
            return 0.0
        return float(spearmanr(sharpness.ravel(), other.ravel()).statistic)

    measured = {
        "change of the worst case": change[:, 0].tolist(),
        "change of the average case": change[:, 1].tolist(),
        "factor of the standard average": factor.tolist(),
    }
    pooled = {}
    for loss in ("standardized", "plain"):
        for name, other in (("learning rate", rates), ("test error", models["test error"])):
            pooled[loss, name] = correlation(models[loss], other)
            measured[f"correlation with {name}, {loss} logits"] = pooled[loss, name]
            measured[f"the same by seed: {name}, {loss}"] = [
                correlation(a, b) for a, b in zip(models[loss], other, strict=True)
            ]
    holds = (
        change[:, :2].max() < UNCHANGED
        and factor.min() > CHANGED
        and abs(pooled["standardized", "learning rate"]) > abs(pooled["standardized", "test error"])
    )
    figure = diagnostics.plots.sharpness_scatter(
        models["standardized"].ravel(),
        models["test error"].ravel(),
        rates.ravel(),
        color_label="learning rate",
    )
    return Claim(measured, bool(holds), figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
