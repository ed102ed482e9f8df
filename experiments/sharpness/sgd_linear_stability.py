"""The critical learning rate of SGD at an interpolating minimum obeys the trace bound and parts decay from growth.

For random gradients (6 examples, 10 parameters, unequal norms): (i) the critical rate from the largest eigenvalue
of the second-moment operator is at most 2 / tr G for batches of one and at most 2 / λmax(G) for any batch, and grows
strictly from batches of 1 to 4 to all. (ii) Of 500 simulated runs with batches of one, the mean of ‖θ‖² agrees with
the operator's prediction within 50% for up to 10 steps at 0.8 times the critical rate, and after 2000 steps it is
below 0.05 of its start there, and above 10 times its start at 1.3 times the critical rate; in every seed.
Control: the critical rate of gradient descent, 2 / λmax(G), in the place of that of SGD.

References:
    Wu, Su (2023), The implicit regularization of dynamical stability in stochastic gradient descent.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import diagnostics

AGREE, BELOW, ABOVE, DECAYED, GROWN, EARLY = 0.5, 0.8, 1.3, 0.05, 10.0, 10


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 4
    """Number of seeds."""
    examples: int = 6
    """Gradients."""
    parameters: int = 10
    """Dimensions."""
    runs: int = 500
    """Simulated runs."""
    steps: int = 2000
    """Steps of each."""


SMOKE = Config(seeds=2, runs=20, steps=20)


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        return _run(config)


@jax.jit
def growth(jacobian, rate, starts, draws):
    """Mean of ‖θ‖² over the runs after each step, over that of the start."""

    def step(theta, rows):
        a = jacobian[rows]
        theta = theta - rate * jnp.sum(a * theta, axis=1, keepdims=True) * a
        return theta, jnp.mean(jnp.sum(theta**2, axis=1))

    _, squares = jax.lax.scan(step, starts, draws)
    return squares / jnp.mean(jnp.sum(starts**2, axis=1))


@jax.jit
def prediction(jacobian, rate, start):
    """The same from the operator, for the first steps."""
    operator = diagnostics.linear_stability_operator(jacobian, rate, 1)

    def step(v, _):
        v = operator(v)
        return v, jnp.trace(v)

    _, traces = jax.lax.scan(step, start, length=EARLY)
    return traces / jnp.trace(start)


@jax.jit
def radius(jacobian, rate, batch):
    """Growth factor of the second moment per step, by power iteration from the identity."""
    operator = diagnostics.linear_stability_operator(jacobian, rate, batch)
    v = jax.lax.fori_loop(0, 300, lambda _, v: operator(v) / jnp.linalg.norm(v), jnp.eye(jacobian.shape[1]))
    return jnp.linalg.norm(operator(v)) / jnp.linalg.norm(v)


def size(square):
    """Its decimal logarithm; what overflowed counts as 1e300."""
    return np.log10(np.clip(np.nan_to_num(square, nan=np.inf), 1e-300, 1e300))


def _run(config: Config) -> Claim:
    measured: dict[str, list[float]] = {}
    holds = True
    for seed in range(config.seeds):
        rng = np.random.default_rng(seed)
        scales = rng.uniform(0.3, 2.0, size=(config.examples, 1))
        jacobian = rng.normal(size=(config.examples, config.parameters)) * scales
        # In coordinates of the span, outside of which nothing moves.
        jacobian = jnp.asarray(jacobian @ np.linalg.svd(jacobian, full_matrices=False)[2].T)
        one, four, full = (diagnostics.sgd_stability(jacobian, batch) for batch in (1, 4, np.inf))
        critical = one.gradient_descent if config.control else one.critical

        dimension = jacobian.shape[1]
        starts = jnp.asarray(rng.normal(size=(config.runs, dimension)))
        draws = jnp.asarray(rng.integers(config.examples, size=(config.steps, config.runs)))
        below = np.asarray(growth(jacobian, BELOW * critical, starts, draws))
        above = np.asarray(growth(jacobian, ABOVE * critical, starts, draws))
        predicted = np.asarray(prediction(jacobian, BELOW * critical, starts.T @ starts / config.runs))
        gap = float(np.max(np.abs(below[:EARLY] / predicted - 1)))
        found = {
            "critical rate, B = 1": critical,
            "critical rate, B = 4": four.critical,
            "critical rate, all": full.critical,
            "2 / tr G": one.trace_bound,
            "2 / largest eigenvalue": one.gradient_descent,
            "largest gap to the prediction": gap,
            "log10 of the end below": size(below[-1]),
            "log10 of the end above": size(above[-1]),
        }
        for name, value in found.items():
            measured.setdefault(name, []).append(float(value))
        holds &= bool(critical <= one.trace_bound * (1 + 1e-9))
        holds &= bool(critical < four.critical < full.critical <= one.gradient_descent * (1 + 1e-9))
        holds &= gap < AGREE and size(below[-1]) < np.log10(DECAYED) and size(above[-1]) > np.log10(GROWN)

    rates = np.linspace(0.1, 1.3, 60) * float(one.gradient_descent)
    curves = {
        f"B = {batch}": np.asarray(jax.vmap(lambda rate, b=batch: radius(jacobian, rate, b))(rates))
        for batch in (1, 4, np.inf)
    }
    bounds = {"2 / tr G": float(one.trace_bound), "2 / λmax": float(one.gradient_descent)}
    return Claim(measured, bool(holds), diagnostics.plots.stability(rates, curves, bounds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
