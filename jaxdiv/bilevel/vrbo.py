"""VRBO: recursive directions of y and x that go along an inner loop and restart on all examples.

    if k is a multiple of the period: u = ∂G/∂y, d = g at (x_k, y_k), on all examples
    x_{k+1} = x_k − α d
    for t = 0, …, T:
        u ← u + ∂G/∂y(w_t; b) − ∂G/∂y(w_{t−1}; b),    d ← d + g(w_t; b) − g(w_{t−1}; b)
        y_{t+1} = y_t − β u, but for t = T
    y_{k+1} = y_T

with w_t = (x_{k+1}, y_t), w_{−1} = (x_k, y_k), y_0 = y_k, and g the hypergradient by a Neumann series of Q products
whose factors have draws of their own. After the loop both directions belong to (x_{k+1}, y_{k+1}).

References:
    Yang, Ji, Liang (2021), Provably faster algorithms for bilevel optimization, algorithm 2. The
    benchmark_bilevel code has x_{k+1} in w_{−1} too, so that moves of x do not enter its directions until a restart;
    here they do, as in the paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.bilevel.series import Hypergradient, hypergradient
from jaxdiv.bilevel.storm import storm
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


class VrboState(NamedTuple):
    """What VRBO remembers.

    Attributes:
        directions: The pair (u, d).
        last: The pair (x, y) to which they belong.
        inner_tx: State of the transform of y.
        outer_tx: State of the transform of x.
    """

    directions: tuple[PyTree, PyTree]
    last: tuple[PyTree, PyTree]
    inner_tx: PyTree
    outer_tx: PyTree


class _Inner(NamedTuple):
    directions: tuple[PyTree, PyTree]
    last: tuple[PyTree, PyTree]
    y: PyTree
    tx: PyTree


def vrbo(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    period: int | Int[Array, ""],
    inner_steps: int = 10,
    terms: int = 10,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Variance-reduced bilevel optimizer.

    Args:
        problem: The problem.
        inner_tx: Moves y along u. Constant steps serve.
        outer_tx: Moves x along d.
        step_size: a, at most 1 over the largest eigenvalue of H.
        period: Outer steps from one restart to the next.
        inner_steps: T, the moves of y in a step. Static.
        terms: Q. Static.
        sampler: Draws the examples of each t and of each factor; all by default.

    Returns:
        ``(init, step)``; a step takes 4 (T + 1) gradients and 2 (T + 1) (Q + 1) products, and one that restarts two and
        Q + 1 more, on all examples. The metric ``"restart"`` tells which it was.

    Raises:
        ValueError: If `period` or `inner_steps` is below 1, `terms` negative, or `step_size` not positive.

    References:
        Yang, Ji, Liang (2021), algorithm 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.vrbo(problem, optax.sgd(0.2), optax.sgd(0.1), step_size=0.2, period=5)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=50)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    checks.in_range("period", period, 1)
    checks.in_range("inner_steps", inner_steps, 1)
    checks.in_range("terms", terms, 0)
    checks.in_range("step_size", step_size, 0, open_low=True)

    def at(draws: Draws, t: int | Int[Array, ""], point: tuple[PyTree, PyTree]) -> Hypergradient:
        return hypergradient(draws, t * (terms + 1), *point, terms=terms, step_size=step_size)

    def start(draws: Draws, x: PyTree, y: PyTree) -> VrboState:
        zeros = (optax.tree.zeros_like(y), optax.tree.zeros_like(x))
        return VrboState(zeros, (x, y), inner_tx.init(y), outer_tx.init(x))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: VrboState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, VrboState, Info]:
        def restarted() -> tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree]]:
            found = at(draws._replace(sampler=full_batch), inner_steps + 1, (x, y))
            return (found.inner, found.direction), (x, y)

        restart = step % period == 0
        begins, last = jax.lax.cond(restart, restarted, lambda: (extra.directions, extra.last))
        x, outer_state = apply(outer_tx, begins[1], extra.outer_tx, x)
        if problem.project is not None:
            # y follows the x that stays.
            x = problem.project(x, y)[0]

        def one(inner: _Inner, t: Int[Array, ""]) -> tuple[_Inner, Scalar]:
            new, old = at(draws, t, (x, inner.y)), at(draws, t, inner.last)
            along = storm(inner.directions, (new.inner, new.direction), (old.inner, old.direction), 0.0)
            moved = apply(inner_tx, along[0], inner.tx, inner.y)
            # The last directions belong to the last y, which stays.
            y, tx = optax.tree.where(t == inner_steps, (inner.y, inner.tx), moved)
            after = _Inner(along, (x, inner.y), y, tx)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), after, inner), new.value

        inner, values = jax.lax.scan(
            one, _Inner(begins, last, y, extra.inner_tx), jnp.arange(inner_steps + 1)
        )
        info = report(
            values[-1],
            begins[1],
            gradients=4 * (inner_steps + 1) + 2 * restart,
            products=(terms + 1) * (2 * (inner_steps + 1) + restart),
            restart=restart,
        )
        return x, inner.y, VrboState(inner.directions, inner.last, inner.tx, outer_state), info

    return algorithm(problem, sampler, start, advance)
