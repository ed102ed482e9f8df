"""Newton's method with adaptive gradient-normalized smoothness needs few steps where gradient descent needs thousands.

Logistic regression (n = 300, d = 20, columns scaled from 1 to 1e-2, labels of the model with weights
N(0, 1) / sqrt(scale), l2 strength 1e-6, start 0, float64). With the Hessian a gradient norm of 1e-8 is reached in
at most 30 steps, f never rising by more than rounding (1e-15), while 2000 steps of gradient descent of length
1 / L leave 1e-4 or more, in every seed. Control: the same method with the constant XᵀX / 4n in place of the Hessian.

Reported beside it: the linear systems solved, and f above its minimum after 200 steps with the empirical Fisher
matrix, with XᵀX / 4n and without curvature.

References:
    Semenov, Jaggi, Doikov (2025), Gradient-normalized smoothness for optimization with approximate Hessians.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import core, linalg, solvers

TOL, LEFT, STEPS, ROUNDING = 1e-8, 1e-4, 30, 1e-15
RIDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    rows: int = 300
    """Examples."""
    columns: int = 20
    """Features."""
    descent: int = 2000
    """Steps of gradient descent."""
    approximate: int = 200
    """Steps with approximate Hessians."""


SMOKE = Config(seeds=2, rows=20, columns=3, descent=5, approximate=5)


def losses(w, x, labels):
    return jax.nn.softplus(-labels * (x @ w))


def objective(w, x, labels):
    return jnp.mean(losses(w, x, labels)) + RIDGE / 2 * jnp.sum(w**2)


def fisher(w, x, labels):
    return linalg.empirical_fisher_operator(lambda w: losses(w, x, labels), w)


def bound(w, x, labels):
    return lambda v: x.T @ (x @ v) / (4 * len(labels)) + RIDGE * v


def zero(w, x, labels):
    return jnp.zeros_like


def data(seed: int, config: Config):
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1.0, 1e-2, config.columns)
    x = rng.normal(size=(config.rows, config.columns)) * scale
    w = rng.normal(size=config.columns) / np.sqrt(scale)
    labels = np.where(rng.uniform(size=config.rows) < 1 / (1 + np.exp(-x @ w)), 1.0, -1.0)
    return x, labels


@partial(jax.jit, static_argnames=("curvature", "steps"))
def newton(x, labels, curvature, steps):
    """The last state; gradient norms, objectives and numbers of systems solved along the way."""
    solver = solvers.GNSNewton(objective, curvature, tol=0.0)

    def body(state, _):
        # A search that fails ends the run; what follows would only repeat it.
        ended = state.status == core.Status.STALLED
        new = jax.tree.map(lambda a, b: jnp.where(ended, a, b), state, solver.step(state, x, labels))
        return new, (jnp.linalg.norm(new.gradient), new.objective, new.solves)

    return jax.lax.scan(body, solver.init(jnp.zeros(x.shape[1]), x, labels), length=steps)


@partial(jax.jit, static_argnames="steps")
def descent(x, labels, steps):
    length = 1 / (jnp.linalg.norm(x, 2) ** 2 / (4 * len(labels)) + RIDGE)
    solver = solvers.Gradient(objective, optax.sgd(length), tol=0.0)
    found = core.run(solver, jnp.zeros(x.shape[1]), x, labels, max_steps=steps)
    return jnp.linalg.norm(found.state.gradient)


def run(config: Config) -> Claim:
    curvatures = {"empirical Fisher": fisher, "XX'/4n": bound, "no curvature": zero}
    names = ("steps", "systems solved", "gradient norm", "largest rise", "gradient norm, descent")
    measured = {name: [] for name in (*names, *(f"excess, {name}" for name in curvatures))}
    with jax.enable_x64(True):
        for seed in range(config.seeds):
            x, labels = map(jnp.asarray, data(seed, config))
            _, (norms, values, solves) = newton(x, labels, bound if config.control else None, STEPS)
            values = np.concatenate([[np.log(2.0)], values])
            reached = np.flatnonzero(np.asarray(norms) <= TOL)
            steps = int(reached[0]) + 1 if reached.size else STEPS + 1
            measured["steps"].append(steps)
            measured["systems solved"].append(int(solves[min(steps, STEPS) - 1]))
            measured["gradient norm"].append(float(norms.min()))
            measured["largest rise"].append(float(np.diff(values)[:steps].max()))
            measured["gradient norm, descent"].append(float(descent(x, labels, config.descent)))
            best = newton(x, labels, None, STEPS)[0].objective
            for name, curvature in curvatures.items():
                excess = newton(x, labels, curvature, config.approximate)[0].objective - best
                measured[f"excess, {name}"].append(float(excess))
    holds = (
        max(measured["steps"]) <= STEPS
        and max(measured["largest rise"]) <= ROUNDING
        and min(measured["gradient norm, descent"]) >= LEFT
    )
    return Claim(measured, bool(holds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
