"""On modular addition perpGrad generalizes without regularization where Adam does not, whose gradient aligns with -θ.

Data: all sums modulo 31, 60 % of them for training. Model: two one-hot numbers, one hidden layer of 128 rectified
units, no biases, first weights N(0, 1/fan_in), float32. Adam (learning rate 1e-2, β2 = 0.99, ε = 1e-25) takes 1,200
full-batch steps on the cross-entropy. In every seed each arm must fit all training examples; test accuracy must be
at least 0.25 with perpGrad and at most 0.05 without; and the cosine between Adam's step direction -∇L and θ, the
direction that only scales the logits, must exceed 0.75 at the end and be larger there than when the training accuracy
first is 1. Reported beside it: the test accuracy of StableMax cross-entropy without perpGrad. Control: perpGrad's arm
trains as the other.

References:
    Prieto, Barsbey, Mediano, Birdal (2025), Grokking at the edge of numerical stability.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import losses, transforms

GROKKED, MEMORIZED, ALIGNED = 0.25, 0.05, 0.75


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    modulus: int = 31
    """Of the sums."""
    train: float = 0.6
    """Share of the pairs for training."""
    width: int = 128
    """Hidden units."""
    steps: int = 1200
    """Full-batch steps."""
    learning_rate: float = 1e-2
    """Of Adam."""


SMOKE = Config(seeds=2, modulus=5, width=8, steps=20)


def draw(config: Config, seed: int):
    """``(train, test, params)`` with the pairs of numbers and their sums as classes."""
    rng = np.random.default_rng(seed)
    p, width = config.modulus, config.width
    pairs = np.stack(np.divmod(rng.permutation(p * p), p), -1)
    inputs = np.concatenate([np.eye(p)[pairs[:, 0]], np.eye(p)[pairs[:, 1]]], -1).astype(np.float32)
    labels = (pairs.sum(-1) % p).astype(np.int32)
    count = round(config.train * p * p)
    params = {
        "in": rng.normal(size=(2 * p, width)) / np.sqrt(2 * p),
        "out": rng.normal(size=(width, p)) / np.sqrt(width),
    }
    params = {name: w.astype(np.float32) for name, w in params.items()}
    return (inputs[:count], labels[:count]), (inputs[count:], labels[count:]), params


def model(params, inputs):
    return jax.nn.relu(inputs @ params["in"]) @ params["out"]


def cosine(a, b):
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def trainer(config: Config, tx, loss):
    """``(train, test, params) -> test accuracy, and training accuracy and alignment before each step``."""
    tx = optax.chain(tx, optax.adam(config.learning_rate, b2=0.99, eps=1e-25))

    @jax.jit
    def run(train, test, params):
        def objective(params):
            logits = model(params, train[0])
            return jnp.mean(loss(logits, train[1])), jnp.mean(jnp.argmax(logits, -1) == train[1])

        def body(carry, _):
            params, state = carry
            gradient, accuracy = jax.grad(objective, has_aux=True)(params)
            seen = accuracy, -cosine(gradient, params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), seen

        (params, _), seen = jax.lax.scan(body, (params, tx.init(params)), length=config.steps)
        return jnp.mean(jnp.argmax(model(params, test[0]), -1) == test[1]), seen

    return run


def run(config: Config) -> Claim:
    perp = optax.identity() if config.control else transforms.perp_grad()
    arms = {
        "perpGrad": trainer(config, perp, losses.cross_entropy),
        "Adam": trainer(config, optax.identity(), losses.cross_entropy),
        "StableMax": trainer(config, optax.identity(), losses.stablemax_cross_entropy),
    }
    measured: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        for name, train in arms.items():
            accuracy, (fitted, alignment) = jax.tree.map(np.asarray, train(*draw(config, seed)))
            measured.setdefault(f"test accuracy, {name}", []).append(float(accuracy))
            measured.setdefault(f"training accuracy, {name}", []).append(float(fitted[-1]))
            if name == "Adam":
                hit = int(np.argmax(fitted == 1))
                measured.setdefault("alignment at the fit", []).append(float(alignment[hit]))
                measured.setdefault("alignment at the end", []).append(float(alignment[-1]))
    seen = {name: np.array(values) for name, values in measured.items()}
    holds = (
        np.all(seen["training accuracy, perpGrad"] == 1)
        and np.all(seen["training accuracy, Adam"] == 1)
        and np.all(seen["test accuracy, perpGrad"] >= GROKKED)
        and np.all(seen["test accuracy, Adam"] <= MEMORIZED)
        and np.all(seen["alignment at the end"] > ALIGNED)
        and np.all(seen["alignment at the end"] > seen["alignment at the fit"])
    )
    return Claim(measured, bool(holds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
