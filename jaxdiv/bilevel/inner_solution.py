"""The inner problem solved to a given distance from its solution.

G(x, ·) is μ-strongly convex, so that ‖∂G/∂y‖ ≤ μ ε implies ‖y − y*(x)‖ ≤ ε.

References:
    Salehi, Mukherjee, Roberts, Ehrhardt (2025), An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from jaxdiv.bilevel.algorithm import apply, like
from jaxdiv.bilevel.problem import Losses
from jaxdiv.core.types import Numeric, Scalar

InnerTransform: TypeAlias = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]
"""What moves y, or a function of x that returns it."""
StrongConvexity: TypeAlias = Numeric | Callable[[PyTree], Numeric]
"""μ, or a function of x that returns it."""

_PATIENCE = 10  # a solve may pass one such part of its steps without progress


class InnerSolution(NamedTuple):
    """An approximate inner solution.

    Attributes:
        y: The variable, where the gradient was smallest.
        error: ‖∂G/∂y‖ / μ there.
        reached: Whether that is at most ε.
        gradients: Gradients taken.
    """

    y: PyTree
    error: Scalar
    reached: Bool[Array, ""]
    gradients: Int[Array, ""]


class _State(NamedTuple):
    """Where the solve is, the best so far, steps since then and all of them."""

    y: PyTree
    tx: PyTree
    gradient: PyTree
    norm: Scalar
    best: PyTree
    smallest: Scalar
    idle: Int[Array, ""]
    steps: Int[Array, ""]


def at(strong_convexity: StrongConvexity, x: PyTree) -> Numeric:
    """μ at x."""
    return strong_convexity(x) if callable(strong_convexity) else strong_convexity


def inner_solution(
    losses: Losses,
    x: PyTree,
    y: PyTree,
    epsilon: Scalar,
    *,
    inner_tx: InnerTransform,
    strong_convexity: StrongConvexity,
    max_steps: int,
) -> InnerSolution:
    """Moves y from where it is, with a fresh state of the transform, until ‖∂G/∂y‖ ≤ μ ε.

    Args:
        losses: The losses.
        x: Outer variable.
        y: First inner variable.
        epsilon: ε.
        inner_tx: Moves y.
        strong_convexity: μ.
        max_steps: Most steps; the solve also ends when a tenth of them brought no smaller gradient, or one without a
            value. Static.

    Returns:
        The solution; never worse than y.
    """
    tx = inner_tx(x) if callable(inner_tx) else inner_tx
    mu = at(strong_convexity, x)
    patience = -(-max_steps // _PATIENCE)

    def running(s: _State) -> Bool[Array, ""]:
        unfinished = (s.smallest > mu * epsilon) & jnp.isfinite(s.norm)
        return unfinished & (s.steps < max_steps) & (s.idle < patience)

    def step(s: _State) -> _State:
        y, state = apply(tx, s.gradient, s.tx, s.y)
        gradient = losses.inner_gradient(x, y)
        norm = optax.tree.norm(gradient)
        better = norm < s.smallest
        best, smallest = optax.tree.where(better, (y, norm), (s.best, s.smallest))
        idle = jnp.where(better, 0, s.idle + 1)
        new: _State = like(s, _State(y, state, gradient, norm, best, smallest, idle, s.steps + 1))
        return new

    gradient, zero = losses.inner_gradient(x, y), jnp.zeros((), jnp.int32)
    norm = optax.tree.norm(gradient)
    end = jax.lax.while_loop(running, step, _State(y, tx.init(y), gradient, norm, y, norm, zero, zero))
    return InnerSolution(end.best, end.smallest / mu, end.smallest <= mu * epsilon, end.steps + 1)
