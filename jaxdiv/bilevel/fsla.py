"""FSLA: y, v and x one after the other, a fresh draw for each, and a recursive direction for x.

    y ← y − β ∂G/∂y(x, y; b₁)
    v ← v − ρ (H(b₂) v − ∂F/∂y(b₂)),    at the new y
    d_k = g(x_k, y_{k+1}, v_{k+1}; b₃) + (1 − e_k) (d_{k−1} − g(x_{k−1}, y_k, v_k; b₃)),    g = ∂F/∂x − J v
    x ← x − α d_k

All rates fall as k^{−1/2}.

References:
    Li, Gu, Huang (2022), A fully single loop algorithm for bilevel optimization without Hessian inverse, algorithm 1.
"""

from typing import NamedTuple

import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.joint import Joint, JointState, directions
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.bilevel.storm import rate_at, storm
from jaxdiv.core.types import Scalar
from jaxdiv.objectives.record import Option


class FslaState(NamedTuple):
    """What FSLA remembers.

    Attributes:
        joint: v and the states of the three transforms.
        direction: d, like x.
        last: The pair (x, y) at which d was taken.
    """

    joint: JointState
    direction: PyTree
    last: tuple[PyTree, PyTree]


def _falling(step: Int[Array, ""]) -> Scalar:
    return (1.0 + step) ** -0.5


def fsla(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    rate: Option = _falling,
    adjoint_tx: optax.GradientTransformation | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Fully single loop algorithm.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y, such as ``optax.sgd(lambda k: beta / jnp.sqrt(1 + k))``.
        outer_tx: Moves x along d, alike.
        rate: e, a number in [0, 1] or a schedule of the step, ``(1 + k) ** -0.5`` by default; 1 at the first step.
        adjoint_tx: Moves v along H v − ∂F/∂y; like `inner_tx` by default.
        sampler: Draws the examples of each of the three moves; all by default.

    Returns:
        ``(init, step)``; a step takes four gradients and three products.

    References:
        Li, Gu, Huang (2022), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.fsla(problem, optax.sgd(0.2), optax.sgd(0.1))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    joint = Joint(inner_tx, inner_tx if adjoint_tx is None else adjoint_tx, outer_tx)

    def start(draws: Draws, x: PyTree, y: PyTree) -> FslaState:
        return FslaState(joint.init(x, y), optax.tree.zeros_like(x), (x, y))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: FslaState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, FslaState, Info]:
        (v, inner_state, adjoint_state, outer_state), last, (x_last, y_last) = extra
        y, inner_state = apply(inner_tx, draws(0).inner_gradient(x, y), inner_state, y)
        _, along = directions(draws(1), x, y, v)
        v_last = v
        v, adjoint_state = apply(joint.adjoint_tx, along.adjoint, adjoint_state, v)

        value, new = directions(draws(2), x, y, v)
        _, old = directions(draws(2), x_last, y_last, v_last)
        direction = storm(last, new.outer, old.outer, rate_at(rate, step))
        moved, outer_state = apply(outer_tx, direction, outer_state, x)
        state = FslaState(JointState(v, inner_state, adjoint_state, outer_state), direction, (x, y))
        return moved, y, state, report(value, direction, gradients=4, products=3)

    return algorithm(problem, sampler, start, advance)
