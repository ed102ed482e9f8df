"""The peak of double descent shows only if gradient descent gets far enough to fit the data.

ReLU random features of 100 noisy points in 20 dimensions, p from 20 to 400 features, learning rate n/σ_1² each:
with peak(T) = test error at p = 100 over that at p = 400 after T steps, the median over the seeds of peak(1e5) is at
least 8 and of peak(1000) at most 3, and in every seed peak(1e5) is at least 2 peak(1000) and the training error at
p = 100 falls at least four times from 1000 to 1e5 steps. Control: 1000 steps in the place of 1e5.

Reported beside it: the condition number at each number of features.

References:
    Liu, Flanigan (2023), Understanding the role of optimization in double descent.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import diagnostics

HIGH, LOW, RATIO, FITS = 8.0, 3.0, 2.0, 4.0


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    examples: int = 100
    """Training points."""
    tests: int = 2000
    """Test points, without noise."""
    dimension: int = 20
    """Of the inputs."""
    sizes: tuple[int, ...] = (20, 50, 80, 100, 120, 200, 400)
    """Numbers of features; `examples` and the last one enter the claim."""
    noise: float = 0.5
    """Of the training targets."""
    late: float = 1e5
    """Many steps."""
    early: float = 1e3
    """Few steps."""


SMOKE = Config(seeds=2, examples=10, tests=20, dimension=3, sizes=(5, 10, 20), late=100.0, early=10.0)


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        return _run(config)


def _run(config: Config) -> Claim:
    def features(size, key):
        n, d = config.examples, config.dimension
        keys = jax.random.split(key, 5)
        inputs, tests = (
            jax.random.normal(k, (count, d)) for k, count in zip(keys[:2], (n, config.tests), strict=True)
        )
        beta = jax.random.normal(keys[2], (d,)) / np.sqrt(d)
        weights = jax.random.normal(keys[3], (d, size)) / np.sqrt(d)
        targets = inputs @ beta + config.noise * jax.random.normal(keys[4], (n,))

        def lifted(x):
            return jax.nn.relu(x @ weights) / np.sqrt(size)

        return lifted(inputs), targets, lifted(tests), tests @ beta

    @partial(jax.jit, static_argnums=0)
    def errors(size, key, steps):
        path = diagnostics.gd_spectral_path(*features(size, key), steps[None])
        return path.train[0], path.test[0]

    def scan(steps):
        def train(size, key):
            return errors(size, key, jnp.asarray(steps))

        return diagnostics.double_descent(train, config.sizes, num_seeds=config.seeds, key=jax.random.key(0))

    early = scan(config.early)
    late = early if config.control else scan(config.late)
    middle = config.sizes.index(config.examples)
    high, low = (result.test[middle] / result.test[-1] for result in (late, early))
    fits = early.train[middle] / late.train[middle]
    measured = {
        "peak, many steps": high.tolist(),
        "peak, few steps": low.tolist(),
        "training error, few steps over many": fits.tolist(),
    }
    key = jax.random.split(jax.random.key(0), config.seeds)[0]
    condition = jax.jit(
        lambda size, key: diagnostics.condition_number(features(size, key)[0]), static_argnums=0
    )
    measured |= {
        f"log10 condition number, {size} features": float(np.log10(condition(size, key)))
        for size in config.sizes
    }
    holds = (
        np.median(high) >= HIGH
        and np.median(low) <= LOW
        and (high >= RATIO * low).all()
        and (fits >= FITS).all()
    )
    figure = diagnostics.plots.double_descent(
        {f"{config.early:g} steps": early, f"{config.late:g} steps": late}
    )
    return Claim(measured, bool(holds), figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
