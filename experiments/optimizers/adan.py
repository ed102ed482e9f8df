"""Adan reaches a hundredth of the first loss in at most 0.75 times the steps of Adam with the same decays.

Problem: quadratics in 50 dimensions with eigenvalues from 1 to 1e-3 in a random basis, gradients with Gaussian noise
of a tenth of the mean eigenvalue, start N(0, I). Each method takes the best of five learning rates; Adam has Adan's
decays of the first and second moment. Compared is the median over the seeds. Reported beside it: Adam with its usual
decays, against which Adan gains nothing here. Control: Adan without its differences, that is Adam.

References:
    Xie, Zhou, Li, Lin, Yan (2024), Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import transforms

SHARE, TARGET = 0.75, 0.01


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    dimension: int = 50
    """Of the quadratics."""
    steps: int = 600
    """Most steps."""
    noise: float = 0.1
    """Standard deviation of the gradients' noise, over that of a mean eigenvalue."""
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """Each method takes its best one."""


SMOKE = Config(seeds=2, dimension=4, steps=50, learning_rates=(0.1,))


def draw(config: Config, seed: int):
    """``(hessian, start, noise)`` with one row of noise for each step."""
    rng = np.random.default_rng(seed)
    n = config.dimension
    eigenvalues = np.logspace(0, -3, n)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    deviation = config.noise * np.sqrt(np.mean(eigenvalues) / n)
    noise = deviation * rng.normal(size=(config.steps, n))
    arrays = (basis * eigenvalues) @ basis.T, rng.normal(size=n), noise
    return tuple(x.astype(np.float32) for x in arrays)


def steps_to_target(make, config: Config, hessian, start, noise) -> jax.Array:
    """The first step whose loss is a hundredth of the first loss, one past the last if none is."""

    def of_rate(rate):
        tx = make(rate)

        def body(carry, noise):
            x, state = carry
            gradient = hessian @ x
            loss = jnp.vdot(x, gradient) / 2
            updates, state = tx.update(gradient + noise, state, x)
            return (optax.apply_updates(x, updates), state), loss

        _, losses = jax.lax.scan(body, (start, tx.init(start)), noise)
        reached = losses <= TARGET * losses[0]
        return jnp.where(jnp.any(reached), jnp.argmax(reached), config.steps)

    return jnp.min(jax.vmap(of_rate)(jnp.asarray(config.learning_rates)))


def run(config: Config) -> Claim:
    adam = lambda rate: optax.adam(rate, 0.98, 0.99)  # noqa: E731
    methods = {
        "Adan": adam if config.control else transforms.adan,
        "Adam, the same decays": adam,
        "Adam, its usual decays": optax.adam,
    }
    problems = full_batch.stack(lambda seed: draw(config, seed), config.seeds)
    measured = {}
    for name, make in methods.items():
        of_seed = lambda *problem, make=make: steps_to_target(make, config, *problem)  # noqa: E731
        measured[f"steps, {name}"] = np.asarray(jax.jit(jax.vmap(of_seed))(*problems)).tolist()
    ours, theirs = (np.median(measured[f"steps, {name}"]) for name in ("Adan", "Adam, the same decays"))
    measured["ratio of the medians"] = float(ours / theirs)
    return Claim(measured, bool(ours <= SHARE * theirs))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
