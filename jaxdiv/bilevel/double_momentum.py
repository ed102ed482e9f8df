"""Recursive momentum on the direction of y and on a Neumann hypergradient: what MRBO and SUSTAIN share.

    u_k = ∂G/∂y(w_k; b) + (1 − e_k) (u_{k−1} − ∂G/∂y(w_{k−1}; b))
    d_k = g(w_k; b) + (1 − e_k) (d_{k−1} − g(w_{k−1}; b)),    w = (x, y)
    y ← y − β_k u_k,    x ← x − α_k d_k

g is the hypergradient by `series`, at both points on equal draws.
"""

from typing import NamedTuple

import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler
from jaxdiv.bilevel.series import hypergradient
from jaxdiv.bilevel.storm import rate_at, storm
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.objectives.record import Option


class DoubleMomentumState(NamedTuple):
    """What is remembered beside x and y.

    Attributes:
        directions: The pair (u, d).
        last: The pair (x, y) at which they were taken.
        inner_tx: State of the transform of y.
        outer_tx: State of the transform of x.
    """

    directions: tuple[PyTree, PyTree]
    last: tuple[PyTree, PyTree]
    inner_tx: PyTree
    outer_tx: PyTree


def falling(step: Int[Array, ""]) -> Scalar:
    """e_k = (1 + k)^{−2/3}."""
    return (1.0 + step) ** (-2 / 3)


def double_momentum(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    terms: int,
    rate: Option,
    randomized: bool,
    sampler: Sampler,
) -> Algorithm:
    """Makes the algorithm.

    Args:
        problem: The problem.
        inner_tx: Moves y along u.
        outer_tx: Moves x along d.
        step_size: a of the series.
        terms: Its products, or the terms that one random product stands for. Static.
        rate: e.
        randomized: Whether the series is randomized.
        sampler: Draws the examples of a step and of each factor.

    Returns:
        ``(init, step)``.

    Raises:
        ValueError: If `terms` is negative, or 0 where randomized; if `step_size` is not positive.
    """
    checks.in_range("terms", terms, 1 if randomized else 0)
    checks.in_range("step_size", step_size, 0, open_low=True)

    def start(draws: Draws, x: PyTree, y: PyTree) -> DoubleMomentumState:
        zeros = (optax.tree.zeros_like(y), optax.tree.zeros_like(x))
        return DoubleMomentumState(zeros, (x, y), inner_tx.init(y), outer_tx.init(x))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: DoubleMomentumState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, DoubleMomentumState, Info]:
        new, old = (
            hypergradient(draws, 0, *point, terms=terms, step_size=step_size, randomized=randomized)
            for point in ((x, y), extra.last)
        )
        u, d = storm(
            extra.directions, (new.inner, new.direction), (old.inner, old.direction), rate_at(rate, step)
        )
        y_next, inner_state = apply(inner_tx, u, extra.inner_tx, y)
        x_next, outer_state = apply(outer_tx, d, extra.outer_tx, x)
        state = DoubleMomentumState((u, d), (x, y), inner_state, outer_state)
        info = report(new.value, d, gradients=4, products=new.products + old.products)
        return x_next, y_next, state, info

    return algorithm(problem, sampler, start, advance)
