r"""Limited-memory BFGS ascent of a concave objective that may have kinks.

The direction d is that of L-BFGS; a length t is accepted when

    D(y + t d) >= D(y) + c1 t D'(y; d)   and   D'(y + t d; d) <= c2 D'(y; d),

found by bisection and doubling, which ends at kinks as well, where a search for a small slope does not. A
change of D within its own rounding decides nothing; there ``D'(y + t d; d) >= (2 c1 - 1) D'(y; d)`` does.
What is reported is the point of largest objective, and among those that rounding cannot tell apart the one of
least error.

References:
    Lewis, Overton (2013), Nonsmooth optimization via quasi-Newton methods, for the search.
    Hager, Zhang (2005), A new conjugate gradient method with guaranteed descent and an efficient line search,
    for the approximate Wolfe condition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.core import RUNNING, Status
from jaxdiv.core.types import Numeric

ARMIJO, CURVATURE = 1e-4, 0.9
# Lengths that a line search tries, and steps without progress before the solver stops.
TRIALS, PATIENCE = 30, 50


class Point(NamedTuple):
    """An objective where it was evaluated.

    Attributes:
        y: The variables.
        value: What the solver reports there.
        error: Its measure of error.
        objective: D(y).
        gradient: grad D(y), like y.
        rounding: Size of the rounding error of D(y).
    """

    y: PyTree
    value: PyTree
    error: Float[Array, ""]
    objective: Float[Array, ""]
    gradient: PyTree
    rounding: Float[Array, ""]


class AscentState(NamedTuple):
    """State of an ascent.

    Attributes:
        value: What the solver reports at the best point so far.
        error: The error there.
        status: A status code.
        best: The best point so far.
        point: The last accepted point.
        memory: State of `optax.scale_by_lbfgs`.
        idle: Steps since there was a better point.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    best: Point
    point: Point
    memory: Any
    idle: Int[Array, ""]


class _Search(NamedTuple):
    low: Float[Array, ""]
    high: Float[Array, ""]
    length: Float[Array, ""]
    kept: Point  # at `low`
    trials: Int[Array, ""]
    done: Bool[Array, ""]


def start(point: Point, tol: Numeric, memory: int) -> AscentState:
    """The state at a first point."""
    return _state(point, point, _empty(point.y, memory), jnp.zeros((), jnp.int32), jnp.array(False), tol)


def advance(
    evaluate: Callable[[PyTree], Point], state: AscentState, tol: Numeric, memory: int
) -> AscentState:
    """One step.

    Args:
        evaluate: The objective at some variables.
        state: The state before it.
        tol: Error at which the state is CONVERGED.
        memory: Past steps that the directions are made of.
    """
    point = state.point
    descent = jax.tree.map(jnp.negative, point.gradient)
    direction, remembered = optax.scale_by_lbfgs(memory).update(descent, state.memory, point.y)
    direction = jax.tree.map(jnp.negative, direction)
    # Where rounding or a kink has spoiled the curvature, start again along the gradient.
    empty = _empty(point.y, memory)
    first = empty._replace(count=empty.count + 1, params=point.y, updates=descent)
    steepest = optax.tree.scale(1.0 / jnp.maximum(optax.tree.norm(descent), 1.0), point.gradient)
    ascends = optax.tree.vdot(direction, point.gradient) > 0
    direction = optax.tree.where(ascends, direction, steepest)
    remembered = optax.tree.where(ascends, remembered, first)

    new, moved = _search(evaluate, point, direction)
    better = (new.objective > state.best.objective + new.rounding) | (new.error < state.best.error)
    best = optax.tree.where(better, new, state.best)
    idle = jnp.where(better, 0, state.idle + 1).astype(jnp.int32)
    # Without a step along the gradient itself there is none at all.
    stalled = (idle >= PATIENCE) | (~moved & (remembered.count <= 1))
    return _state(best, new, optax.tree.where(moved, remembered, empty), idle, stalled, tol)


def _search(
    evaluate: Callable[[PyTree], Point], point: Point, direction: PyTree
) -> tuple[Point, Bool[Array, ""]]:
    """The accepted point, and whether there is one."""
    slope = optax.tree.vdot(direction, point.gradient)

    def searching(search: _Search) -> Bool[Array, ""]:
        return ~search.done & (search.trials < TRIALS)

    def attempt(search: _Search) -> _Search:
        low, high, length = search.low, search.high, search.length
        new = evaluate(optax.tree.add_scale(point.y, length, direction))
        gain, now = new.objective - point.objective, optax.tree.vdot(direction, new.gradient)
        flat = jnp.abs(gain) <= point.rounding
        enough = jnp.where(flat, now >= (2 * ARMIJO - 1) * slope, gain >= ARMIJO * length * slope)
        steep = now > CURVATURE * slope
        low, high = jnp.where(enough, length, low), jnp.where(enough, high, length)
        kept = optax.tree.where(enough, new, search.kept)
        length = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * length)
        return _Search(low, high, length, kept, search.trials + 1, enough & ~steep)

    zero, one = jnp.zeros_like(slope), jnp.ones_like(slope)
    first = _Search(zero, jnp.inf * one, one, point, jnp.zeros((), jnp.int32), ~(slope > 0))
    found = jax.lax.while_loop(searching, attempt, first)
    return found.kept, found.low > 0


def _empty(y: PyTree, memory: int) -> Any:
    state = optax.scale_by_lbfgs(memory).init(y)
    # optax takes the default dtype here, whatever that of y.
    return state._replace(weights_memory=state.weights_memory.astype(optax.tree.dtype(y)))


def _state(
    best: Point, point: Point, memory: Any, idle: Int[Array, ""], stalled: Bool[Array, ""], tol: Numeric
) -> AscentState:
    status = jnp.where(stalled, Status.STALLED, RUNNING)
    status = jnp.where(best.error <= tol, Status.CONVERGED, status).astype(jnp.int32)
    return AscentState(best.value, best.error, status, best, point, memory, idle)
