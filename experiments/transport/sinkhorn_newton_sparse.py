"""Sinkhorn's algorithm, its sparse Newton extension and Newton with continuation on the paper's problems.

Random assignment (n = 500, C ~ U[0, 1], equal weights, eta = 1 / epsilon = 1200, float64): after 20 Sinkhorn steps
at most 15 Newton steps, with five entries of each row in the Hessian, bring the L1 error of the marginals to
1e-8 in every seed, where 400 Sinkhorn steps leave more than 1e-6. So do at most 30 steps of Newton's method
with continuation in epsilon, also at n = 200, where the paper's form of it has trouble. Control: as many
Sinkhorn steps in place of the Newton steps.

Reported beside it: image pairs (digits enlarged, or MNIST where the environment variable JAXDIV_DATA names its
folder; intensities + 0.01, squared L2 and L1 distances of pixels over their maximum), the seconds of each
method, Sinkhorn's steps to the same error on the first assignment and on the squared L2 pair, and Newton steps
over eta, over the number of Sinkhorn steps before them and over the entries kept.

References:
    Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying (2024), Accelerating Sinkhorn algorithm
    with sparse Newton iterations, section 5.
"""

import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from sklearn.datasets import load_digits

from experiments import claims
from experiments.claims import Claim
from jaxdiv import ot
from jaxdiv.testing.data import mnist

TOL, LEFT_BY_SINKHORN = 1e-8, 1e-6
SPARSE_STEPS, CONTINUATION_STEPS = 15, 30


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    points: int = 500
    """Rows and columns of the assignment."""
    hard_points: int = 200
    """Those of the hard one."""
    eta: float = 1200.0
    """Inverse strength of the entropy."""
    warmup: int = 20
    """Sinkhorn steps before the first Newton step."""
    nonzeros: int = 5
    """Entries of each row that the Hessian keeps."""
    sinkhorn_steps: int = 400
    """Steps of Sinkhorn's algorithm alone."""
    side: int = 28
    """Pixels along an image's side."""
    to_the_end: int = 60_000
    """Most steps of Sinkhorn's algorithm where its steps to the tolerance are counted."""
    l2_nonzeros: int = 25
    """Entries kept for images with squared L2 costs, whose plans are less sparse."""
    l1_nonzeros: int = 60
    """Those with L1 costs, whose optimal plans are not unique; the paper keeps 29 n of the whole plan."""
    l1_warmup: int = 700
    """Sinkhorn steps before the first Newton step with L1 costs."""
    etas: tuple[float, ...] = (100.0, 400.0, 1200.0, 2400.0)
    """Values of eta in the sweep."""
    warmups: tuple[int, ...] = (0, 5, 20, 80)
    """Numbers of Sinkhorn steps in the sweep."""
    kept: tuple[int, ...] = (2, 3, 5, 10)
    """Entries of each row in the sweep."""


SMOKE = Config(
    seeds=2, points=20, hard_points=12, eta=60.0, sinkhorn_steps=40, side=4, to_the_end=40, l1_warmup=20,
    etas=(30.0,), warmups=(0,), kept=(3,),
)  # fmt: skip


def sparse(config: Config, warmup: int, nonzeros: int) -> ot.SinkhornNewton:
    """The paper's method, with the largest entries of each row."""
    return ot.SinkhornNewton(
        tol=TOL, max_steps=100, warmup=warmup, factor=None, linear="cg", nonzeros=nonzeros
    )


def sinkhorn(steps: int) -> ot.Sinkhorn:
    return ot.Sinkhorn(tol=TOL, max_steps=steps)


class Timed:
    """Solves problems and takes the time of the second run, without compilation."""

    def __init__(self, solver):
        self.solve = jax.jit(
            lambda cost, a, b, eta: ot.solve(ot.CostMatrix(cost), a, b, epsilon=1 / eta, solver=solver)
        )

    def __call__(self, cost, a, b, eta):
        arguments = (*map(jnp.asarray, (cost, a, b)), jnp.asarray(eta, jnp.float64))
        jax.block_until_ready(self.solve(*arguments))
        begun = time.perf_counter()
        out = jax.block_until_ready(self.solve(*arguments))
        seconds = time.perf_counter() - begun
        plan = out.plan()
        error = jnp.sum(jnp.abs(plan.sum(1) - arguments[1])) + jnp.sum(jnp.abs(plan.sum(0) - arguments[2]))
        return {"error": float(error), "steps": int(out.iterations), "seconds": seconds}


def assignment(seed: int, n: int):
    return np.random.default_rng(seed).uniform(size=(n, n)), np.full(n, 1 / n), np.full(n, 1 / n)


def images(config: Config):
    """Two images as measures on their pixels."""
    folder = os.environ.get("JAXDIV_DATA")
    if folder is None:
        pair = load_digits().images[:2] / 16
    else:
        pair = mnist(folder, seed=0)["train"]["inputs"][:2].reshape(2, 28, 28)
    pair = jax.image.resize(jnp.asarray(pair, jnp.float64), (2, config.side, config.side), "linear")
    weights = np.maximum(np.asarray(pair), 0).reshape(2, -1) + 0.01
    return weights / weights.sum(1, keepdims=True)


def pixel_costs(side: int):
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    gaps = np.abs(grid[:, None] - grid).astype(float)
    costs = {"squared L2": np.sum(gaps**2, -1), "L1": np.sum(gaps, -1)}
    return {name: cost / cost.max() for name, cost in costs.items()}


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        return _run(config)


def _run(config: Config) -> Claim:
    newton = Timed(ot.SinkhornNewton(tol=TOL))
    alone = Timed(sinkhorn(config.sinkhorn_steps))
    # As many steps as the sparse method may take, Newton steps among them.
    control = sinkhorn(config.warmup + SPARSE_STEPS)
    extended = Timed(control if config.control else sparse(config, config.warmup, config.nonzeros))
    continued = Timed(sinkhorn(CONTINUATION_STEPS)) if config.control else newton
    measured: dict[str, Any] = {}

    def keep(problem: str, method: str, result: dict[str, float]) -> dict[str, float]:
        for quantity, value in result.items():
            measured.setdefault(f"{problem}, {method}: {quantity}", []).append(value)
        return result

    def keep_one(problem: str, method: str, result: dict[str, float]) -> None:
        measured.update({f"{problem}, {method}: {quantity}": value for quantity, value in result.items()})

    holds = True
    for seed in range(config.seeds):
        problem = (*assignment(seed, config.points), config.eta)
        hard = (*assignment(seed, config.hard_points), config.eta)
        left = keep("assignment", "Sinkhorn", alone(*problem))
        short = keep("assignment", "sparse Newton", extended(*problem))
        steps = keep("assignment", "continuation", continued(*problem))
        harder = keep("hard assignment", "continuation", continued(*hard))
        holds &= left["error"] > LEFT_BY_SINKHORN
        holds &= short["error"] <= TOL and short["steps"] <= SPARSE_STEPS
        for result in (steps, harder):
            holds &= result["error"] <= TOL and result["steps"] <= CONTINUATION_STEPS
    if config.control:
        return Claim(measured, bool(holds))

    a, b = images(config)
    to_the_end = Timed(sinkhorn(config.to_the_end))
    on_images = {
        "squared L2": Timed(sparse(config, config.warmup, config.l2_nonzeros)),
        "L1": Timed(sparse(config, config.l1_warmup, config.l1_nonzeros)),
    }
    keep_one("first assignment", "Sinkhorn to the end", to_the_end(*assignment(0, config.points), config.eta))
    for name, cost in pixel_costs(config.side).items():
        methods = {"Sinkhorn": alone, "sparse Newton": on_images[name], "continuation": newton}
        if name == "squared L2":
            methods["Sinkhorn to the end"] = to_the_end
        for method, solver in methods.items():
            keep_one(f"images {name}", method, solver(cost, a, b, config.eta))

    cost, u, v = assignment(0, config.points)
    sweeps = {
        "eta": [(x, extended, newton, x) for x in config.etas],
        "Sinkhorn steps before": [
            (x, Timed(sparse(config, x, config.nonzeros)), None, config.eta) for x in config.warmups
        ],
        "entries of a row": [
            (x, Timed(sparse(config, config.warmup, x)), None, config.eta) for x in config.kept
        ],
    }
    curves = {}
    for name, points in sweeps.items():
        for x, paper, ours, eta in points:
            curves.setdefault((name, "sparse Newton"), []).append((x, paper(cost, u, v, eta)))
            if ours is not None:
                curves.setdefault((name, "continuation"), []).append((x, ours(cost, u, v, eta)))
    for (name, method), points in curves.items():
        for x, result in points:
            measured |= {f"{name} {x:g}, {method}: {key}": result[key] for key in ("steps", "error")}
    return Claim(measured, bool(holds), draw(curves))


def draw(curves):
    """Newton steps over each option; a cross where 1e-8 was not reached."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in curves))
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for (of, method), points in curves.items():
            if of != name:
                continue
            xs, steps = [x for x, _ in points], [result["steps"] for _, result in points]
            (line,) = axes.plot(xs, steps, "o-", label=method)
            missed = [(x, result["steps"]) for x, result in points if result["error"] > TOL]
            if missed:
                axes.plot(*zip(*missed, strict=True), "x", color=line.get_color(), markersize=12)
        axes.set(xlabel=name, ylabel="Newton steps")
        axes.legend()
    return figure


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
