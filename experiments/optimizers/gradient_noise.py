"""Annealed gradient noise trains a 20-layer network from a poor start, where plain descent stays near chance.

Data: 300 examples of five Gaussian classes in ten dimensions. Model: 20 layers of 50 rectified units, weights
N(0, 0.01), no first bias; 1,500 full-batch steps of gradient descent with learning rate 0.05 and gradients clipped
to norm 10, then noise of variance 0.3/t^0.55 added by `optax.add_noise`. The best training accuracy on the way must
reach 0.9 with noise and stay at most 0.4 without, in every seed. Control: no noise in either arm.

References:
    Neelakantan et al. (2015), Adding gradient noise improves learning for very deep networks.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import losses

LEARNED, STUCK = 0.9, 0.4


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 300
    """Training examples."""
    classes: int = 5
    """Gaussians with unit variance between their means and 1/4 within."""
    layers: int = 20
    """Hidden layers."""
    width: int = 50
    """Hidden units of each."""
    steps: int = 1500
    """Full-batch steps."""
    eta: float = 0.3
    """Variance of the noise at the first step."""
    gamma: float = 0.55
    """Exponent of its decay."""
    learning_rate: float = 0.05
    """Of gradient descent."""


SMOKE = Config(seeds=2, examples=20, layers=3, width=8, steps=10)


def draw(config: Config, seed: int):
    """``(inputs, labels, params)``; all hidden layers but the first are stacked."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(config.classes, 10))
    # Drawn, not dealt: with equal counts the biases stay at 0 and tiny outputs of an untrained network decide.
    labels = rng.integers(0, config.classes, config.examples)
    inputs = means[labels] + 0.5 * rng.normal(size=(config.examples, 10))
    n, m = config.width, config.layers - 1
    weights = {"in": (10, n), "hidden": (m, n, n), "out": (n, config.classes)}
    params = {name: 0.1 * rng.normal(size=shape) for name, shape in weights.items()}
    params |= {"in_bias": np.zeros(n), "hidden_bias": np.zeros((m, n)), "out_bias": np.zeros(config.classes)}
    inputs, params = jax.tree.map(lambda x: x.astype(np.float32), (inputs, params))
    return inputs, labels.astype(np.int32), params


def model(params, inputs):
    layer = lambda h, wb: (jax.nn.relu(h @ wb[0] + wb[1]), None)  # noqa: E731
    hidden, _ = layer(inputs, (params["in"], params["in_bias"]))
    hidden, _ = jax.lax.scan(layer, hidden, (params["hidden"], params["hidden_bias"]))
    return hidden @ params["out"] + params["out_bias"]


def trainer(config: Config, eta: float):
    """``(key, inputs, labels, params) -> (best, last)`` training accuracy."""

    @jax.jit
    def run(key, inputs, labels, params):
        # Clipped before the noise, as the paper has it.
        tx = optax.chain(
            optax.clip_by_global_norm(10.0),
            optax.add_noise(eta, config.gamma, key),
            optax.sgd(config.learning_rate),
        )

        def objective(params):
            logits = model(params, inputs)
            return jnp.mean(losses.cross_entropy(logits, labels)), jnp.mean(jnp.argmax(logits, -1) == labels)

        def body(carry, _):
            params, state = carry
            gradient, accuracy = jax.grad(objective, has_aux=True)(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), accuracy

        _, accuracy = jax.lax.scan(body, (params, tx.init(params)), length=config.steps)
        return jnp.max(accuracy), accuracy[-1]

    return run


def run(config: Config) -> Claim:
    arms = {"noise": trainer(config, 0.0 if config.control else config.eta), "plain": trainer(config, 0.0)}
    measured: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        for name, train in arms.items():
            best, last = train(jax.random.key(seed), *draw(config, seed))
            measured.setdefault(f"best training accuracy, {name}", []).append(float(best))
            measured.setdefault(f"last training accuracy, {name}", []).append(float(last))
    noise, plain = (np.array(measured[f"best training accuracy, {name}"]) for name in arms)
    return Claim(measured, bool(np.all(noise >= LEARNED) and np.all(plain <= STUCK)))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
