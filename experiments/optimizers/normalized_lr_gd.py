"""Normalized logistic regression separates the data in a number of steps that does not grow with their number.

Data: n - 1 copies of the example (1, 0.3) and one (-1, 0.3), as margins, for n = 10, 100 and 1,000; gradient descent
from 0 until all margins are positive. With γ = 1,000 plain descent must take at least five times the steps for
n = 1,000 that it takes for n = 100, and the normalized one at most 10 steps for every n. For n = 100 and plain
descent with γ = 1, 10, 100, 1,000, larger steps must have a larger mean loss on the way and no smaller greatest loss,
but fewer steps. In every seed, which moves the examples by 2%. Control: plain steps in place of normalized ones.

References:
    Tyurin (2025), From logistic regression to the perceptron algorithm: exploring gradient descent with large step
    sizes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import oracles

GROWTH, FEW = 5, 10


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    counts: tuple[int, ...] = (10, 100, 1000)
    """Numbers of examples."""
    gammas: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    """Step sizes; the last one is the large one."""
    jitter: float = 0.02
    """Standard deviation of the examples' shifts; the first seed has none."""
    max_steps: int = 100_000
    """Most steps."""


SMOKE = Config(seeds=2, counts=(5, 10), gammas=(10.0, 1000.0), max_steps=1000)


def logistic(theta, state, batch, key):
    ce = optax.sigmoid_binary_cross_entropy(batch["inputs"] @ theta, jnp.ones(()))
    value = jnp.mean(ce)
    return value, (state, {"terms": {"ce": value}, "losses": {"ce": ce}, "metrics": {}})


def descend(oracle: oracles.Oracle, rows, gamma, max_steps: int):
    """Steps until all margins are positive, with the mean and the greatest loss on the way."""

    def unfinished(carry):
        theta, step, _, _ = carry
        return (step < max_steps) & jnp.any(rows @ theta <= 0)

    def body(carry):
        theta, step, total, greatest = carry
        batch = {"inputs": rows}
        (value, _), direction, _, _ = oracle.value_and_grad(logistic, theta, (), (), batch, jax.random.key(0))
        return theta - gamma * direction, step + 1, total + value, jnp.maximum(greatest, value)

    start = (jnp.zeros(2), jnp.zeros((), int), jnp.zeros(()), jnp.zeros(()))
    _, steps, total, greatest = jax.lax.while_loop(unfinished, body, start)
    return steps, total / steps, greatest


def run(config: Config) -> Claim:
    plain = oracles.plain()
    normalized = plain if config.control else oracles.confidence_normalized(plain)
    methods = {"plain": plain, "normalized": normalized}
    steps: dict[tuple[str, int, float], list[int]] = {}
    mean: dict[float, list[float]] = {}
    greatest: dict[float, list[float]] = {}
    middle, large = config.counts[-2], config.gammas[-1]
    with jax.enable_x64(True):
        compiled = {
            name: jax.jit(lambda rows, gamma, oracle=oracle: descend(oracle, rows, gamma, config.max_steps))
            for name, oracle in methods.items()
        }
        for seed in range(config.seeds):
            rng = np.random.default_rng(seed)
            shifts = 0.0 if seed == 0 else config.jitter
            for count in config.counts:
                rows = np.tile([1.0, 0.3], (count, 1))
                rows[-1, 0] = -1.0
                rows += shifts * rng.normal(size=rows.shape)
                for name, run_method in compiled.items():
                    for gamma in config.gammas if count == middle else (large,):
                        taken, average, most = run_method(rows, gamma)
                        steps.setdefault((name, count, gamma), []).append(int(taken))
                        if name == "plain" and count == middle:
                            mean.setdefault(gamma, []).append(float(average))
                            greatest.setdefault(gamma, []).append(float(most))
    measured = {f"steps, {name}, n = {n}, γ = {gamma:g}": taken for (name, n, gamma), taken in steps.items()}
    measured |= {f"mean loss, n = {middle}, γ = {gamma:g}": values for gamma, values in mean.items()}
    measured |= {f"greatest loss, n = {middle}, γ = {gamma:g}": values for gamma, values in greatest.items()}

    last, before = (np.array(steps["plain", n, large]) for n in (config.counts[-1], middle))
    few = np.array([steps["normalized", n, large] for n in config.counts])
    by_gamma = [np.array([of[gamma] for gamma in config.gammas]) for of in (mean, greatest)]
    taken = np.array([steps["plain", middle, gamma] for gamma in config.gammas])
    holds = (
        np.all(last >= GROWTH * before)
        and np.all(few <= FEW)
        and np.all(np.diff(by_gamma[0], axis=0) > 0)
        and np.all(np.diff(by_gamma[1], axis=0) >= 0)
        and np.all(np.diff(taken, axis=0) < 0)
    )
    return Claim(measured, bool(holds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
