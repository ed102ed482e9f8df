"""Two small groups of outliers with opposing signals make the sharpness grow and then oscillate against each other.

A two-layer linear network f = c (b.x + b_o x_o) on 400 points with x ~ N(0, I_10), x_o = +10 and -10 on ten points
each and 0 elsewhere, and the target beta.x + 0.3 |x_o|, ‖beta‖ = 3, by full-batch gradient descent from N(0, 0.1²):
(i) with learning rate 0.03, 1000 steps, the largest eigenvalue of the Hessian first falls by at least 3% and then
grows to at least 4 times its minimum; (ii) the median over those steps of the cosine between the two outlier
groups' mean gradients is below -0.9; (iii) with learning rate 0.13, at the edge of stability, the mean changes of
the two groups' losses have opposite signs on at least 80% of 300 steps; in every seed. Control: both groups
have x_o = +10, so that nothing opposes.

Reported beside it: at each of those 300 steps, how many of the ten largest rises are outliers of one sign and of the
ten largest falls of the other, as `opposing_signals` finds them without knowing the groups.

References:
    Rosenfeld, Risteski (2024), Outliers with opposing signals have an outsized effect on neural network optimization.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics

FALL, GROWTH, COSINE, OPPOSITE = 0.03, 4.0, -0.9, 0.8
EVERY = 4


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    examples: int = 400
    """Points."""
    outliers: int = 10
    """Of each sign."""
    features: int = 10
    """Without the outlying one."""
    size: float = 10.0
    """Of the outlying feature."""
    target: float = 0.3
    """What an outlier adds to the target, times its size."""
    slow: float = 0.03
    """Learning rate of (i) and (ii)."""
    slow_steps: int = 1000
    """Its steps."""
    fast: float = 0.13
    """Learning rate of (iii)."""
    fast_steps: int = 300
    """Its steps."""


SMOKE = Config(seeds=2, examples=60, outliers=3, features=3, slow_steps=40, fast_steps=20)


def problem(config: Config, seed: int):
    rng = np.random.default_rng(seed)
    n, k = config.examples, config.outliers
    inputs = rng.normal(size=(n, config.features))
    beta = rng.normal(size=config.features)
    beta *= 3 / np.linalg.norm(beta)
    outlying = np.zeros(n)
    outlying[:k], outlying[k : 2 * k] = config.size, config.size if config.control else -config.size
    targets = inputs @ beta + config.target * np.abs(outlying)
    params = {"b": 0.1 * rng.normal(size=config.features), "o": 0.1 * rng.normal(), "c": 0.1 * rng.normal()}
    return jax.tree.map(np.float32, (params, (inputs, outlying, targets)))


def losses(params, batch):
    inputs, outlying, targets = batch
    return (params["c"] * (inputs @ params["b"] + params["o"] * outlying) - targets) ** 2 / 2


def loss(params, batch):
    return jnp.mean(losses(params, batch))


def run(config: Config) -> Claim:
    k = config.outliers

    def group(batch, start):
        return jax.tree.map(lambda x: x[start : start + k], batch)

    def descend(params, rate, batch):
        return jax.tree.map(lambda w, g: w - rate * g, params, jax.grad(loss)(params, batch))

    def sharpness(params, batch):
        return diagnostics.hessian_eigenvalues(loss, params, batch, key=jax.random.key(1)).values[0]

    def of_seed(key, problem):
        params, batch = problem
        up, down = group(batch, 0), group(batch, k)

        def slow(params, _):
            opposition = diagnostics.gradient_opposition(
                jax.grad(loss)(params, up), jax.grad(loss)(params, down)
            )
            return descend(params, config.slow, batch), (opposition, params)

        _, (cosines, visited) = jax.lax.scan(slow, params, length=config.slow_steps)

        def along(visited):
            return jax.lax.map(lambda p: sharpness(p, batch), jax.tree.map(lambda x: x[::EVERY], visited))

        def fast(params, _):
            new = descend(params, config.fast, batch)
            found = diagnostics.opposing_signals(losses, params, new, batch, k)
            first, second = jnp.mean(found.change[:k]), jnp.mean(found.change[k : 2 * k])

            def same(indices):
                inside = indices < 2 * k
                ones = jnp.sum(inside & (indices < k)), jnp.sum(inside & (indices >= k))
                return jnp.array(ones)

            rises, falls = same(found.up), same(found.down)
            named = jnp.maximum(rises[0] + falls[1], rises[1] + falls[0]) / (2 * k)
            return new, (first, second, named, params)

        _, (*changes, edge) = jax.lax.scan(fast, params, length=config.fast_steps)
        return cosines, along(visited), along(edge), *changes

    problems = full_batch.stack(lambda seed: problem(config, seed), config.seeds)
    found = full_batch.each_seed(of_seed, config.seeds)(problems)
    cosines, tops, edge, first, second, named = map(np.asarray, found)
    lowest = tops.min(axis=1)
    after = [row[np.argmin(row) :].max() for row in tops]
    fall, growth = 1 - lowest / tops[:, 0], np.array(after) / lowest
    cosine = np.median(cosines, axis=1)
    opposite = np.mean(first * second < 0, axis=1)
    measured = {
        "fall of the sharpness": fall.tolist(),
        "growth of the sharpness": growth.tolist(),
        "median cosine": cosine.tolist(),
        "share of steps with opposite signs": opposite.tolist(),
        "share of the groups found": np.median(named, axis=1).tolist(),
    }
    holds = (
        (fall >= FALL).all()
        and (growth >= GROWTH).all()
        and (cosine < COSINE).all()
        and (opposite >= OPPOSITE).all()
    )
    figure = diagnostics.plots.opposing_groups(
        {"x_o = +10": first[0], "x_o = -10": second[0]}, edge[0], EVERY, 2 / config.fast
    )
    return Claim(measured, bool(holds), figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
