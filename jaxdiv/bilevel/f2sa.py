"""F2SA: the penalty function is minimized by first-order steps of two inner variables and one outer.

y follows the minimizer of h = σF + G and z that of G; a step of the algorithm is T times

    u ← Proj_Y(u − τ (σ ∂F/∂y(x, u) + ∂G/∂y(x, u) + (u − y) / ρ)),    w ← Proj_Y(w − τ (∂G/∂y(x, w) + (w − z) / ρ))

from u = y, w = z, then

    y ← (1 − β) y + β u,    z ← (1 − β) z + β w,
    x ← Proj_X(x − α (∂F/∂x(x, y) + (∂G/∂x(x, y) − ∂G/∂x(x, z)) / σ)).

Without ρ and β these are plain steps. 1/σ is the penalty λ. The first paper's direction for y is ∂F/∂y + λ ∂G/∂y; here
it is divided by λ, so that one step size suits y and z while λ grows.

References:
    Kwon, Kwon, Wright, Nowak (2023), A fully first-order method for stochastic bilevel optimization, algorithm 1.
    Kwon, Kwon, Wright, Nowak (2024), On penalty methods for nonconvex bilevel optimization and first-order stochastic
    approximation, algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.make_step import Inner
from jaxdiv.bilevel.penalty import combine, copy, inner_projection, positive, power, terms
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.objectives.record import Option, resolve

GROWTH = power(1 / 3)


class F2saState(NamedTuple):
    """What F2SA remembers.

    Attributes:
        z: Follows the minimizer of G, like y.
        inner_tx: States of the transforms of y and of z.
        outer_tx: State of the transform of x.
    """

    z: PyTree
    inner_tx: tuple[PyTree, PyTree]
    outer_tx: PyTree


def f2sa(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    penalty: Option = GROWTH,
    inner_steps: int = 10,
    prox_rho: Numeric | None = None,
    beta: Option = 1.0,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """The fully first-order stochastic approximation of Kwon et al.

    Args:
        problem: The problem.
        inner_tx: Moves y along σ ∂F/∂y + ∂G/∂y and z along ∂G/∂y, each with its own state; a step of 1/L suits both
            if L bounds the curvature of σF + G, and with `prox_rho` that plus 1/ρ.
        outer_tx: Moves x along the gradient of the penalty function.
        penalty: λ = 1/σ > 0, a number or a schedule. The bias falls as 1/λ. The default (k + 1)^(1/3) is the paper's
            for exact gradients; (k + 1)^(1/7) if those of both losses are noisy.
        inner_steps: T, steps of y and z before each step of x. Static.
        prox_rho: ρ; if given, the inner steps minimize with the proximal term, for inner losses without strong
            convexity.
        beta: β, a number or a schedule: how far y and z move towards the end of their steps.
        project_inner: Projection onto Y after each inner step; by default the second part of the problem's own.
        sampler: Draws the examples of a step; y and z share each draw, as do both gradients of G for x.

    Returns:
        ``(init, step)``; a step takes ``3 * inner_steps + 3`` gradients.

    Raises:
        ValueError: If an option is not positive.

    References:
        Kwon, Kwon, Wright, Nowak (2024), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.f2sa(problem, optax.sgd(0.2), optax.sgd(0.1), penalty=10.0)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=100)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    positive("penalty", penalty)
    positive("beta", beta)
    checks.in_range("inner_steps", inner_steps, 1)
    checks.in_range("prox_rho", 1.0 if prox_rho is None else prox_rho, 0.0, open_low=True)
    project = inner_projection(problem, project_inner)

    def start(draws: Draws, x: PyTree, y: PyTree) -> F2saState:
        return F2saState(copy(y), (inner_tx.init(y), inner_tx.init(y)), outer_tx.init(x))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: F2saState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, F2saState, Info]:
        sigma = 1 / resolve(penalty, step)

        def move(gradient: PyTree, inner: Inner, anchor: PyTree) -> Inner:
            if prox_rho is not None:
                gradient = combine(gradient, 1 / prox_rho, optax.tree.sub(inner.value, anchor))
            value, tx = apply(inner_tx, gradient, inner.tx, inner.value)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), Inner(project(x, value), tx), inner)

        def one(pair: tuple[Inner, Inner], i: Int[Array, ""]) -> tuple[tuple[Inner, Inner], None]:
            u, w = pair
            losses = draws(i)
            f_y = losses.outer_gradients(x, u.value)[1][1]
            h_y = combine(losses.inner_gradient(x, u.value), sigma, f_y)
            return (move(h_y, u, y), move(losses.inner_gradient(x, w.value), w, extra.z)), None

        first = Inner(y, extra.inner_tx[0]), Inner(extra.z, extra.inner_tx[1])
        (u, w), _ = jax.lax.scan(one, first, jnp.arange(inner_steps))
        b = resolve(beta, step)
        y, z = (
            jax.tree.map(lambda old, new: ((1 - b) * old + b * new).astype(old.dtype), *pair)
            for pair in ((y, u.value), (extra.z, w.value))
        )

        at = terms(draws(inner_steps), x, y, z)
        direction = combine(at.outer[0], 1 / sigma, at.inner[0])
        x, outer_state = apply(outer_tx, direction, extra.outer_tx, x)
        info = report(at.value, direction, gradients=3 * inner_steps + 3)
        return x, y, F2saState(z, (u.tx, w.tx), outer_state), info

    return algorithm(problem, sampler, start, advance)
