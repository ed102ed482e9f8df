"""IGNITE with a fixed multiplier of 0.5 leaves a surrogate whose prediction is at most 0.65 times as sensitive.

Task: offline data of f(x) = -|x - 0.5|² + 0.3 Σ sin(3 x_i) on [-2, 2]^5, the lower half of 2000 points by
value, 800 for training and 200 held out, values standardized. A ReLU network 5-64-64-1 is trained by 1500
Adam steps of 128 points, plainly and with IGNITE (rho = r = 0.05). Claimed for every seed, on the held-out
points: rho times the norm of the gradient of the mean prediction by the weights is at most 0.65 of that of
plain training, and the squared error at most 1.35 of it. Nothing is claimed of the true value that a search
on the surrogate reaches. Control: the multiplier is 0.

References:
    Dao, Phung, Phan, Hoang (2024), Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from experiments.oracles import minibatches
from jaxdiv import losses, nn, objectives, oracles

SHARPNESS, ERROR = 0.65, 1.35


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    epochs: int = 250
    """Epochs of six steps."""
    batch: int = 128
    """Examples a step."""
    width: int = 64
    """Units in each of the two hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    rho: float = 0.05
    """Radius of the sharpness, and of the finite difference."""
    multiplier: float = 0.5
    """Fixed λ."""


SMOKE = Config(seeds=2, epochs=1, width=4)


def draw(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (2000, 5))
    y = -((x - 0.5) ** 2).sum(1) + 0.3 * np.sin(3 * x).sum(1)
    low = np.argsort(y)[:1000]
    rng.shuffle(low)
    y = (y - y[low[:800]].mean()) / y[low[:800]].std()
    parts = {"train": low[:800], "held out": low[800:]}
    return {
        name: {"inputs": np.float32(x[rows]), "targets": np.float32(y[rows])} for name, rows in parts.items()
    }


def run(config: Config) -> Claim:
    data = full_batch.stack(draw, config.seeds)
    widths = (5, config.width, config.width, 1)
    model = full_batch.models(lambda rngs: nn.MLP(widths, rngs=rngs), config.seeds)

    def apply(params, state, inputs, key):
        return model.apply(params, state, inputs, key)[0][:, 0], state

    objective = objectives.chain(
        objectives.forward(apply), objectives.loss(losses.squared_error, name="fit"), objectives.mean()
    )

    order = full_batch.stack(
        lambda seed: minibatches.epochs(seed, examples=800, batch=config.batch, count=config.epochs),
        config.seeds,
    )

    def of_seed(key, params, data, order, multiplier):
        oracle = oracles.ignite(
            oracles.plain(),
            apply,
            rho=config.rho,
            radius=config.rho,
            multiplier=multiplier,
            learning_rate=0.0,
        )
        state = minibatches.fit(
            objective,
            params,
            data["train"],
            key,
            tx=optax.adam(config.learning_rate),
            order=order,
            oracle=oracle,
        )

        def error(part):
            outputs, _ = apply(state.params, (), data[part]["inputs"], None)
            return jnp.mean(losses.squared_error(outputs, data[part]["targets"]))

        mean = lambda params: jnp.mean(apply(params, (), data["held out"]["inputs"], None)[0])  # noqa: E731
        sharpness = config.rho * optax.tree.norm(jax.grad(mean)(state.params))
        return sharpness, error("held out"), error("train")

    train = full_batch.each_seed(of_seed, config.seeds)
    none = jnp.zeros(config.seeds)
    fixed = none if config.control else jnp.full(config.seeds, config.multiplier)
    sharpness, error, training = map(np.asarray, train(model.params, data, order, fixed))
    plain_sharpness, plain_error, plain_training = map(np.asarray, train(model.params, data, order, none))
    return Claim(
        measured={
            "sharpness": sharpness.tolist(),
            "sharpness, plain": plain_sharpness.tolist(),
            "held-out error": error.tolist(),
            "held-out error, plain": plain_error.tolist(),
            "training error": training.mean(),
            "training error, plain": plain_training.mean(),
        },
        holds=bool(np.all(sharpness <= SHARPNESS * plain_sharpness) and np.all(error <= ERROR * plain_error)),
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
