"""F3SA: the penalty function is minimized in a single loop, with recursive estimates of the three directions.

At the point w = (x, y, z, σ), with all gradients taken there on one draw,

    g_y = σ ∂F/∂y(x, y) + ∂G/∂y(x, y),    g_z = ∂G/∂y(x, z),
    g_x = ∂F/∂x(x, y) + (∂G/∂x(x, y) − ∂G/∂x(x, z)) / σ,

and y, z and x each move along their part of d_k = g(w_k; b_k) + (1 − e_k) (d_{k−1} − g(w_{k−1}; b_k)). The papers take
g_x at the new y and z; here all three share one point, which halves the gradients. With one inner step a proximal term
would vanish where it is evaluated, so there is none.

References:
    Kwon, Kwon, Wright, Nowak (2023), A fully first-order method for stochastic bilevel optimization, algorithm 2.
    Kwon, Kwon, Wright, Nowak (2024), On penalty methods for nonconvex bilevel optimization and first-order stochastic
    approximation, algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.penalty import combine, copy, inner_projection, positive, power, terms
from jaxdiv.bilevel.problem import Losses, Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.bilevel.storm import rate_at, storm
from jaxdiv.core import checks
from jaxdiv.core.types import Scalar
from jaxdiv.objectives.record import Option, resolve

PENALTY, RATE = power(1 / 3), power(-2 / 3)


class Point(NamedTuple):
    """Where directions are taken."""

    x: PyTree
    y: PyTree
    z: PyTree
    sigma: Scalar


class F3saState(NamedTuple):
    """What F3SA remembers.

    Attributes:
        z: Follows the minimizer of G, like y.
        last: Last point.
        directions: d of y, z and x there.
        inner_tx: States of the transforms of y and of z.
        outer_tx: State of the transform of x.
    """

    z: PyTree
    last: Point
    directions: tuple[PyTree, PyTree, PyTree]
    inner_tx: tuple[PyTree, PyTree]
    outer_tx: PyTree


def f3sa(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    penalty: Option = PENALTY,
    rate: Option = RATE,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """The faster fully first-order stochastic approximation of Kwon et al.

    Args:
        problem: The problem.
        inner_tx: Moves y along the estimate of g_y and z along that of g_z, each with its own state; a step of 1/L
            suits both if L bounds the curvature of σF + G.
        outer_tx: Moves x along the estimate of g_x; a step must leave y and z the time to follow.
        penalty: λ = 1/σ > 0, a number or a schedule; the bias falls as 1/λ.
        rate: e in [0, 1], a number or a schedule, by default (k + 1)^(-2/3); 1 is the plain gradient. The first step
            takes 1.
        project_inner: Projection onto Y of y and z; by default the second part of the problem's own.
        sampler: Draws the examples of a step; all by default.

    Returns:
        ``(init, step)``; a step takes six gradients.

    Raises:
        ValueError: If an option is out of range.

    References:
        Kwon, Kwon, Wright, Nowak (2024), algorithm 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.f3sa(problem, optax.sgd(0.2), optax.sgd(0.02), penalty=10.0)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=500)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    positive("penalty", penalty)
    if not callable(rate):
        checks.in_range("rate", rate, 0.0, 1.0)
    project = inner_projection(problem, project_inner)

    def start(draws: Draws, x: PyTree, y: PyTree) -> F3saState:
        # The first step's rate is 1 and drops what stands here.
        last = Point(
            copy(x), copy(y), copy(y), jnp.ones((), jnp.result_type(*jax.tree.leaves(x), jnp.float32))
        )
        states = (inner_tx.init(y), inner_tx.init(y))
        return F3saState(copy(y), last, copy((y, y, x)), states, outer_tx.init(x))

    def directions(losses: Losses, at: Point) -> tuple[Scalar, tuple[PyTree, PyTree, PyTree]]:
        x, y, z, sigma = at
        value, (f_x, f_y), _, (q_x, g_y), g_z = terms(losses, x, y, z)
        return value, (combine(g_y, sigma, f_y), g_z, combine(f_x, 1 / sigma, q_x))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: F3saState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, F3saState, Info]:
        sigma = jnp.asarray(1 / resolve(penalty, step), extra.last.sigma.dtype)
        here, losses = Point(x, y, extra.z, sigma), draws(0)
        value, new = directions(losses, here)
        moved = storm(extra.directions, new, directions(losses, extra.last)[1], rate_at(rate, step))

        y, y_state = apply(inner_tx, moved[0], extra.inner_tx[0], y)
        z, z_state = apply(inner_tx, moved[1], extra.inner_tx[1], extra.z)
        x, outer_state = apply(outer_tx, moved[2], extra.outer_tx, x)
        y, z = project(x, y), project(x, z)
        info = report(value, moved[2], gradients=6)
        return x, y, F3saState(z, here, moved, (y_state, z_state), outer_state), info

    return algorithm(problem, sampler, start, advance)
