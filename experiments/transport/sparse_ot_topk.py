"""Transport with at most k entries in each column lies between the assignment and quadratic regularization.

Two clouds of 20 Gaussian points in the plane, squared distances, equal weights, gamma 1 and 10, k of 1, 2, 5,
8 and 20, in float64. In every seed:

- semi-dual and dual have one value: to 1e-5 for k >= 5, to 5e-4 below, where kinks may stop both solvers;
- the value does not rise with k, up to that accuracy;
- k = 1 has the value ``W + gamma/2 sum b^2`` of the assignment to 1e-6, and its plan;
- k = 20 has the value of quadratic regularization to 1e-6;
- no column has more than k entries;
- marginal errors at k = 2 are at most 0.3; at k = 1 and for k >= 8 at most 1e-6.

In the mean over the seeds, the semi-dual comes within 1e-5 of its maximum in fewer steps at k = 20 than at
k = 2, with gamma = 10. Control: quadratic regularization whatever k.

Routing: 64 tokens on 8 experts by random affinities, which favor some experts. Transport with at most k = 16
tokens an expert, twice the mean, leaves at most half as many tokens without an expert, in the mean over the
seeds, as a router does that sends each token to its best expert and drops what exceeds k.

References:
    Liu, Puigcerver, Blondel (2023), Sparsity-constrained optimal transport.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import linear_sum_assignment

from experiments import claims
from experiments.claims import Claim
from jaxdiv import ot

FREE, GAMMAS = 5, (1.0, 10.0)
EQUAL, EQUAL_AT_KINKS, EXACT, MARGINALS = 1e-5, 5e-4, 1e-6, 0.3


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    points: int = 20
    """Points in each cloud."""
    ks: tuple[int, ...] = (1, 2, 5, 8, 20)
    """Most entries of a column: 1, 2, and so on up to all."""
    max_steps: int = 2000
    """Most steps of a solver."""
    counted: int = 300
    """Steps among which the first one close to the maximum is sought."""
    tokens: int = 64
    """Tokens to route."""
    experts: int = 8
    """Experts."""
    strength: float = 50.0
    """Gamma in routing."""


SMOKE = Config(seeds=1, points=2, ks=(1, 2), max_steps=5, counted=2, tokens=8, experts=2)


def regularizer(config: Config, gamma, k):
    return ot.Quadratic(gamma) if config.control else ot.TopK(gamma, k)


def solved(config: Config, solver, make):
    """A function of costs [seeds, n, m] and gamma: value, plan, marginal error, one entry per seed."""

    def of_seed(cost, gamma):
        out = ot.solve(ot.CostMatrix(cost), regularizer=make(gamma), solver=solver(config))
        return out.cost, out.plan(), out.error

    mapped = jax.jit(jax.vmap(of_seed, in_axes=(0, None)))
    return lambda cost, gamma: tuple(map(np.asarray, mapped(cost, gamma)))


def semi_dual(config: Config):
    return ot.SemiDual(tol=1e-8, max_steps=config.max_steps)


def dual(config: Config):
    return ot.Dual(tol=1e-8, max_steps=config.max_steps)


def steps_to_maximum(config: Config, cost, gamma, k, maximum):
    """Steps of the semi-dual until its value is within `EQUAL` of the maximum, one entry per seed."""
    solver = semi_dual(config)

    def of_seed(cost):
        problem = ot.solve(
            ot.CostMatrix(cost), regularizer=regularizer(config, gamma, k), solver=solver
        ).problem

        def step(state, _):
            state = solver.step(state, problem)
            return state, problem.dual(*state.value)

        zeros = jnp.zeros(cost.shape[0], cost.dtype)
        return jax.lax.scan(step, solver.init((zeros, zeros), problem), length=config.counted)[1]

    values = np.asarray(jax.jit(jax.vmap(of_seed))(cost))
    reached = values >= maximum[:, None] - EQUAL
    return np.where(reached.any(1), reached.argmax(1) + 1, config.counted)


def assignments(cost):
    """Plans of the linear programs."""
    plans = np.zeros(cost.shape)
    for plan, own in zip(plans, cost, strict=True):
        plan[linear_sum_assignment(own)] = 1 / len(own)
    return plans


def between(config: Config):
    """What lies between the assignment and the quadratic plan; named numbers, and whether the claim holds."""
    n, ks = config.points, config.ks
    first, last = ks[1], ks[-1]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, config.seeds, n, 2))
    cost = jnp.asarray(((x[:, :, None] - (y + 1.0)[:, None]) ** 2).sum(-1))
    best = assignments(np.asarray(cost))
    by_semi = {k: solved(config, semi_dual, lambda gamma, k=k: regularizer(config, gamma, k)) for k in ks}
    by_dual = {k: solved(config, dual, lambda gamma, k=k: regularizer(config, gamma, k)) for k in ks}
    quadratic = solved(config, semi_dual, ot.Quadratic)
    measured, holds = {}, True
    for gamma in GAMMAS:
        values, errors, gaps, entries = {}, {}, {}, {}
        for k in ks:
            values[k], plans, errors[k] = by_semi[k](cost, gamma)
            gaps[k] = abs(values[k] - by_dual[k](cost, gamma)[0])
            entries[k] = (plans > 0).sum(1).max(1)
            holds &= bool(np.all(entries[k] <= k))
            holds &= bool(np.all(gaps[k] <= (EQUAL if k >= FREE else EQUAL_AT_KINKS)))
            if k == 1:
                expected = (best * cost).sum((1, 2)) + gamma / 2 / n
                to_assignment = abs(values[1] - expected)
                plan_to_assignment = abs(plans - best).max((1, 2))
        rises = np.max(np.diff([values[k] for k in ks], axis=0), axis=0)
        to_quadratic = abs(values[last] - quadratic(cost, gamma)[0])
        holds &= bool(np.all(rises <= EQUAL_AT_KINKS) and np.all(errors[first] <= MARGINALS))
        for small in (
            to_assignment,
            plan_to_assignment,
            to_quadratic,
            errors[1],
            errors[ks[-2]],
            errors[last],
        ):
            holds &= bool(np.all(small <= EXACT))
        name = f", gamma {gamma:g}"
        measured |= {
            "value over assignment" + name: to_assignment,
            "plan over assignment" + name: plan_to_assignment,
            "value over quadratic" + name: to_quadratic,
            "largest rise with k" + name: rises,
        }
        for k in ks:
            tag = f"{name}, k {k}"
            measured |= {"value" + tag: values[k], "dual gap" + tag: gaps[k]}
            measured |= {"marginal error" + tag: errors[k], "entries" + tag: entries[k]}
    steps = {}
    for k in (first, last):
        maximum = np.maximum(values[k], by_dual[k](cost, gamma)[0])
        steps[k] = steps_to_maximum(config, cost, gamma, k, maximum)
        measured[f"steps to 1e-5, gamma {gamma:g}, k {k}"] = steps[k]
    return measured, holds and bool(steps[last].mean() < steps[first].mean())


def routing(config: Config):
    """Tokens without an expert and the largest load, under transport and under a router."""
    tokens, experts = config.tokens, config.experts
    k = 2 * tokens // experts
    rng = np.random.default_rng(1)
    affinity = rng.normal(size=(config.seeds, tokens, experts)) + rng.normal(size=(config.seeds, 1, experts))
    _, plans, errors = solved(config, semi_dual, lambda gamma: regularizer(config, gamma, k))(
        jnp.asarray(-affinity), config.strength
    )
    choice = affinity.argmax(-1)
    loads = np.stack([(choice == expert).sum(1) for expert in range(experts)], axis=1)
    routed, dropped = (plans > 0).sum(1), (plans.sum(2) == 0).sum(1)
    overflow = np.maximum(loads - k, 0).sum(1)
    measured = {
        "tokens without expert, transport": dropped,
        "tokens without expert, router": overflow,
        "largest load, transport": routed.max(1),
        "largest load, router": loads.max(1),
        "marginal error, routing": errors,
    }
    holds = np.all(routed <= k) and dropped.mean() <= overflow.mean() / 2
    return measured, bool(holds)


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        measured, holds = between(config)
        routed, balanced = routing(config)
    return Claim(
        measured={name: np.asarray(values).tolist() for name, values in {**measured, **routed}.items()},
        holds=holds and balanced,
    )


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
