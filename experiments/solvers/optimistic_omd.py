"""In a zero-sum game the last plays of optimistic mirror descent approach equilibrium; without hints they leave it.

Rock, paper, scissors in self-play with the entropy, step 0.1, 3000 rounds, from (.6, .3, .1) and (.2, .5, .3): the
duality gap max(A x) - min(Aᵀy) of the last plays is at most 0.05 with optimism and at least 0.5 without. The game
has no randomness; the other seeds start from random points of the simplex, at which the same must hold. Control:
hints of 0 in place of the last gradients.

References:
    Chen, Zhang, Tu, Zhao, Zhang (2024), Optimistic online mirror descent for bridging stochastic and adversarial
    online convex optimization.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import solvers

NEAR, FAR = 0.05, 0.5
PAYOFF = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    rounds: int = 3000
    """Rounds of play."""
    learning_rate: float = 0.1
    """Step of both players."""


SMOKE = Config(seeds=2, rounds=20)


def starts(seed: int):
    if seed == 0:
        return np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    return np.random.default_rng(seed).dirichlet(np.ones(3), 2)


@partial(jax.jit, static_argnames=("rounds", "optimistic"))
def gaps(x0, y0, learning_rate, rounds, optimistic):
    """The duality gap of each round's plays; x minimizes xᵀ(Aᵀy)."""
    learner = solvers.OptimisticOMD(mirror="entropy", learning_rate=learning_rate)
    payoff = jnp.asarray(PAYOFF)
    hint = None if optimistic else jnp.zeros(3)

    def play(states, _):
        (x, first), (y, second) = (learner.play(state, hint) for state in states)
        states = learner.update(first, payoff.T @ y), learner.update(second, -payoff @ x)
        return states, jnp.max(payoff @ x) - jnp.min(payoff.T @ y)

    return jax.lax.scan(play, (learner.init(x0), learner.init(y0)), length=rounds)[1]


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        curves = {
            name: [
                np.asarray(
                    gaps(*map(jnp.asarray, starts(seed)), config.learning_rate, config.rounds, optimistic)
                )
                for seed in range(config.seeds)
            ]
            for name, optimistic in (("optimism", not config.control), ("no hints", False))
        }
    last = {f"last gap, {name}": [float(gap[-1]) for gap in of] for name, of in curves.items()}
    holds = max(last["last gap, optimism"]) <= NEAR and min(last["last gap, no hints"]) >= FAR
    return Claim(last, holds, draw(curves))


def draw(curves):
    """Duality gaps of the first seed over the rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, of in curves.items():
        axes.semilogy(of[0], label=name)
    axes.set(xlabel="round", ylabel="duality gap of the plays")
    axes.legend()
    return figure


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
