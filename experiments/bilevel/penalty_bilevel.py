"""The penalty gradient is O(sigma)-close to the hypergradient, also where the inner problem has many solutions.

Random pairs of quadratics (8 inner, 5 outer numbers, float64), one with a unique inner solution, one whose inner loss
has a 3-dimensional set of them among which the outer loss chooses. Over sigma in {1e-1, ..., 1e-4} the log-log slope of
|grad psi_sigma - grad Phi| is 1 +- 0.1 on both, where grad Phi is the pseudo-inverse's formula on the second; that of
the central quotient on the first is 2 +- 0.1 down to 1e-3. On the second, F2SA with lambda = 30 ends with at most 1e-2
of the first |grad Phi|, and the implicit gradient, its singular system solved with a ridge, with more than ten times
that: descent of the inner loss alone does not choose among the solutions. Control: one variable in place of y_sigma and
z, and the implicit gradient in place of F2SA.

References:
    Kwon, Kwon, Wright, Nowak (2024), On penalty methods for nonconvex bilevel optimization and first-order stochastic
    approximation.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import bilevel

INNER, OUTER, RANK = 8, 5, 5
BAND, REACHED, TIMES = 0.1, 1e-2, 10
RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    sigmas: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Penalty parameters whose errors are compared."""
    penalty: float = 30.0
    """F2SA's lambda."""
    inner_steps: int = 20
    """Inner steps before each outer one."""
    steps: int = 3000
    """Outer steps."""


SMOKE = Config(seeds=2, sigmas=(1e-1, 1e-2), inner_steps=2, steps=3)


class Pair(NamedTuple):
    """G = ½ |A y − B x − c|² and F = ½ |y − C x − t|² + 0.05 |x|², with the pseudo-inverse of A."""

    a: jax.Array
    inverse: jax.Array
    b: jax.Array
    c: jax.Array
    mix: jax.Array
    target: jax.Array


PROBLEM = bilevel.problem(
    lambda x, y, of: 0.5 * jnp.sum((of.a @ y - of.b @ x - of.c) ** 2),
    lambda x, y, of: 0.5 * jnp.sum((y - of.mix @ x - of.target) ** 2) + 0.05 * jnp.sum(x**2),
)


def draw_pair(seed: int, rank: int) -> Pair:
    """Singular values of A between 1 and 2, or 0 beyond its rank."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.normal(size=(INNER, INNER)))
    left, right, values = left[:, :rank], right[:rank], np.linspace(1, 2, INNER)[:rank]
    shapes = (INNER, OUTER), (INNER,), (INNER, OUTER), (INNER,)
    rest = [rng.normal(size=shape) for shape in shapes]
    return Pair(*map(jnp.asarray, ((left * values) @ right, (right.T / values) @ left.T, *rest)))


def chosen(of: Pair, x):
    """Among the minimizers of G the one that F prefers: y in the range of Aᵀ by G, beyond it by F."""
    wanted = of.mix @ x + of.target
    return of.inverse @ (of.b @ x + of.c - of.a @ wanted) + wanted


def hypergradient(of: Pair, x):
    """∂F/∂x − J H⁺ ∂F/∂y there."""
    gap = chosen(of, x) - of.mix @ x - of.target
    return 0.1 * x - of.mix.T @ gap + of.b.T @ of.inverse.T @ gap


def errors(config: Config, of: Pair, central: bool):
    """|grad psi_sigma − grad Phi| at x = 1 for each sigma, with exact y_sigma and z."""
    x = jnp.ones(OUTER)
    losses = bilevel.Losses(PROBLEM, ((), ()), bilevel.Data(of, of), jax.random.key(0))

    def penalized(sigma):
        matrix = of.a.T @ of.a + sigma * jnp.eye(INNER)
        return jnp.linalg.solve(matrix, of.a.T @ (of.b @ x + of.c) + sigma * (of.mix @ x + of.target))

    def error(sigma):
        y = penalized(sigma)
        z = penalized(-sigma) if central else of.inverse @ (of.b @ x + of.c)
        z = y if config.control else z
        gradient = bilevel.penalty_hypergradient(losses, x, y, z, sigma, central=central)
        return jnp.linalg.norm(gradient - hypergradient(of, x))

    return jax.vmap(error)(jnp.asarray(config.sigmas))


def slope(sigmas, errors):
    """Of the least squares line in log-log scale."""
    return float(np.polyfit(np.log(sigmas), np.log(errors), 1)[0])


def reached(config: Config, of: Pair, method: str):
    """|grad Phi| where the run ends over the first."""
    curvature = jnp.linalg.norm(of.a, 2) ** 2
    outer_tx = optax.sgd(0.02)
    if method == "f2sa":
        init, step = bilevel.f2sa(
            PROBLEM,
            optax.sgd(1 / (curvature + 1)),
            outer_tx,
            penalty=config.penalty,
            inner_steps=config.inner_steps,
        )
    else:
        estimator = bilevel.implicit_gradient(method="cholesky", ridge=RIDGE)
        init, step = bilevel.make_step(
            PROBLEM, estimator, optax.sgd(1 / curvature), outer_tx, inner_steps=config.inner_steps
        )
    data, x = bilevel.Data(of, of), jnp.ones(OUTER)
    state = init(x, jnp.zeros(INNER), data, jax.random.key(0))
    state = jax.lax.fori_loop(0, config.steps, lambda _, state: step(state, data)[0], state)
    return jnp.linalg.norm(hypergradient(of, state.outer)) / jnp.linalg.norm(hypergradient(of, x))


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        return _run(config)


def _run(config: Config) -> Claim:
    over_seeds = {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(draw_pair(seed, rank) for seed in range(config.seeds)))
        for name, rank in (("unique", INNER), ("many", RANK))
    }
    unique, many = over_seeds["unique"], over_seeds["many"]

    def each(f, pairs, *args):
        return np.asarray(jax.jit(jax.vmap(lambda of: f(config, of, *args)))(pairs))

    # Below 1e-3 the central quotient's error is rounding.
    upper = [i for i, sigma in enumerate(config.sigmas) if sigma >= 1e-3]
    curves = {
        "one solution": each(errors, unique, False),
        "one solution, central": each(errors, unique, True)[:, upper],
        "many solutions": each(errors, many, False),
    }
    slopes = {
        name: [slope(config.sigmas[: curve.shape[1]], row) for row in curve] for name, curve in curves.items()
    }
    implicit = each(reached, many, "implicit")
    penalized = implicit if config.control else each(reached, many, "f2sa")
    orders = {"one solution": 1, "one solution, central": 2, "many solutions": 1}
    holds = all(abs(np.asarray(slopes[name]) - order).max() <= BAND for name, order in orders.items())
    return Claim(
        measured={f"slope, {name}": values for name, values in slopes.items()}
        | {
            "relative hypergradient, many solutions, F2SA": penalized.tolist(),
            "relative hypergradient, many solutions, implicit with ridge": implicit.tolist(),
        },
        holds=bool(holds and np.all(penalized <= REACHED) and np.all(implicit > TIMES * penalized)),
        figure=draw(config.sigmas, curves),
    )


def draw(sigmas, curves):
    """Errors over sigma, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        lines = axes.loglog(sigmas[: curve.shape[1]], curve.T, "o-", color=f"C{i}")
        lines[0].set_label(name)
    axes.set(xlabel="sigma", ylabel="error of the gradient")
    axes.legend()
    return figure


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
