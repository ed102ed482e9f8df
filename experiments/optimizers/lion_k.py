"""Lion-K solves the constrained problem that its weight decay implies, to one part in a million.

Data: least squares with 50 equations in 8 unknowns whose solution lies outside the unit box. Lion (κ the L1 norm,
λ = 1) takes 4,000 steps of the full gradient from 0, the learning rate following a cosine from 0.02 to 0. Its loss
must be within 1e-6 of that of the constrained solution (scipy's `lsq_linear`), relative to it, and no entry may leave
the box by more than 1e-6, in every seed. Reported beside it: the same for κ the L2 norm, whose constraint is the unit
ball, against projected gradients. Control: no weight decay, and so no constraint.

References:
    Chen, Liu, Liang, Liu (2024), Lion secretly solves constrained optimization: as Lyapunov predicts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.optimize import lsq_linear

from experiments import claims
from experiments.claims import Claim
from jaxdiv import convex, transforms

CLOSE = 1e-6


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    equations: int = 50
    """Rows of the matrix."""
    unknowns: int = 8
    """Columns of the matrix."""
    steps: int = 4000
    """Full-gradient steps."""
    learning_rate: float = 0.02
    """The first one."""
    weight_decay: float = 1.0
    """Inverse of the bound."""


SMOKE = Config(seeds=2, equations=10, unknowns=3, steps=400)


def problem(config: Config, seed: int):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(config.equations, config.unknowns))
    return matrix, matrix @ rng.normal(scale=2.0, size=config.unknowns) + 0.1 * rng.normal(
        size=config.equations
    )


def minimize(tx: optax.GradientTransformation, matrix, goal, steps: int):
    gradient = jax.grad(lambda x: jnp.sum((matrix @ x - goal) ** 2) / 2)

    def body(carry, _):
        x, state = carry
        updates, state = tx.update(gradient(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.zeros(matrix.shape[1])
    (x, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=steps)
    return x


def in_ball(matrix, goal, radius: float, steps: int = 20_000):
    """Projected gradient descent, as the solution on the ball."""
    rate = 1 / jnp.linalg.norm(matrix, 2) ** 2
    step = lambda _, x: convex.l2.project(x - rate * matrix.T @ (matrix @ x - goal), radius)  # noqa: E731
    return jax.lax.fori_loop(0, steps, step, jnp.zeros(matrix.shape[1]))


def run(config: Config) -> Claim:
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    bound = 1 / config.weight_decay
    decay = 0.0 if config.control else config.weight_decay

    def solver(norm):
        tx = transforms.lion_k(rate, transforms.ball_kappa(norm), weight_decay=decay)
        return jax.jit(lambda matrix, goal: minimize(tx, matrix, goal, config.steps))

    measured: dict[str, list[float]] = {}
    with jax.enable_x64(True):
        solvers = {"box": (solver(convex.linf), convex.linf), "ball": (solver(convex.l2), convex.l2)}
        for seed in range(config.seeds):
            matrix, goal = problem(config, seed)
            solutions = {
                "box": lsq_linear(matrix, goal, bounds=(-bound, bound), tol=1e-14).x,
                "ball": np.asarray(jax.jit(in_ball, static_argnums=2)(matrix, goal, bound)),
            }
            for name, (solve, norm) in solvers.items():
                x = np.asarray(solve(matrix, goal))
                loss, best = (np.sum((matrix @ point - goal) ** 2) for point in (x, solutions[name]))
                measured.setdefault(f"{name}: relative gap", []).append(float(loss / best - 1))
                measured.setdefault(f"{name}: excess over the bound", []).append(float(norm.value(x)) - bound)
    holds = all(abs(gap) <= CLOSE for gap in measured["box: relative gap"]) and all(
        excess <= CLOSE for excess in measured["box: excess over the bound"]
    )
    return Claim(measured, bool(holds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
