"""Noise-adaptive rates bring Muon's final loss below 0.9 times its own where layers differ in noise.

Problem: four 10x10 matrices, each to be brought from 0 to a target with entries N(0, 1) under half the squared
Frobenius distance, with gradient noise of standard deviations 0.02, 0.1, 0.5 and 2. Muon (β = 0.95, Newton-Schulz,
constant rate) with and without noise-adaptive rates (α = 30) takes 400 steps; each method takes the best of six
learning rates, a factor √2 apart around the optimum of both, by the mean final loss over the seeds. Noise is measured
against an independent gradient. Reported beside it: α = 100, and noise measured against the last gradient. Control:
every matrix a group of its own, which is Muon.

References:
    Hao, Zhang, Fang, Liu (2025), Noise-adaptive layerwise learning rates: accelerating geometry-aware optimization
    for deep neural network training.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import transforms

SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 8
    """Number of seeds."""
    size: int = 10
    """Rows and columns of a matrix."""
    deviations: tuple[float, ...] = (0.02, 0.1, 0.5, 2.0)
    """Of the gradients' noise, one for each matrix."""
    steps: int = 400
    """Of either method."""
    alpha: float = 30.0
    """The scale of the noise, in the nuclear norm, at which rates fall."""
    larger_alpha: float = 100.0
    """A second scale, reported only."""
    learning_rates: tuple[float, ...] = (0.01, 0.014, 0.02, 0.028, 0.04, 0.056)
    """Each method takes its best one."""


SMOKE = Config(seeds=2, size=2, deviations=(0.02, 2.0), steps=20, learning_rates=(0.1,))


def final_loss(tx, config: Config, rate, key, *, independent: bool):
    target_key, noise_key = jax.random.split(key)
    names = [f"noise {deviation:g}" for deviation in config.deviations]
    shape = (config.size, config.size)
    keys = jax.random.split(target_key, len(names))
    target = {name: jax.random.normal(k, shape) for name, k in zip(names, keys, strict=True)}
    scale = dict(zip(names, config.deviations, strict=True))

    def noisy(params, key):
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        return {n: params[n] - target[n] + scale[n] * jax.random.normal(keys[n], shape) for n in names}

    tx = optax.chain(tx, optax.scale_by_learning_rate(rate))

    def body(carry, key):
        params, state = carry
        one, other = (noisy(params, k) for k in jax.random.split(key))
        extra = {"independent_gradient": other} if independent else {}
        updates, state = tx.update(one, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.zeros_like, target)
    steps = jax.random.split(noise_key, config.steps)
    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), steps)
    return sum(jnp.sum((params[n] - target[n]) ** 2) / 2 for n in names)


def run(config: Config) -> Claim:
    names = [f"noise {deviation:g}" for deviation in config.deviations]
    ball = transforms.newton_schulz()

    def adaptive(alpha: float, independent: bool):
        group = {name: name if config.control else "all" for name in names}
        return transforms.scale_by_noise_adaptive_lmo(
            dict.fromkeys(group.values(), ball), group, alpha=alpha, independent=independent
        )

    matrices = dict.fromkeys(names, optax.contrib.MuonDimensionNumbers())
    muon = optax.contrib.scale_by_muon(beta=0.95, nesterov=False, weight_dimension_numbers=matrices)
    methods = {
        "noise-adaptive": (adaptive(config.alpha, True), True),
        "larger α": (adaptive(config.larger_alpha, True), True),
        "against the last gradient": (adaptive(config.alpha, False), False),
        "Muon": (muon, False),
    }
    keys = jax.random.split(jax.random.key(0), config.seeds)
    rates = jnp.asarray(config.learning_rates)
    measured, best = {}, {}
    for name, (tx, independent) in methods.items():
        of_rate = lambda rate, key, tx=tx, i=independent: final_loss(tx, config, rate, key, independent=i)  # noqa: E731
        losses = np.asarray(jax.jit(jax.vmap(jax.vmap(of_rate, (0, None)), (None, 0)))(rates, keys))
        chosen = int(np.argmin(losses.mean(0)))
        best[name] = float(losses[:, chosen].mean())
        measured[f"final loss, {name}"] = losses[:, chosen].tolist()
        measured[f"learning rate, {name}"] = config.learning_rates[chosen]
    measured["ratio to Muon"] = best["noise-adaptive"] / best["Muon"]
    return Claim(measured, bool(measured["ratio to Muon"] < SHARE))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
