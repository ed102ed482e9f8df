"""BO-REP: normalized momentum for outer losses of unbounded smoothness, a refined start, periodic inner updates.

    every I-th step:  y ← N steps of y ← P(y − γ ∂G/∂y),    P onto the ball of radius R around where they begin
    every step:       z ← z − ν (H z − ∂F/∂y),
                      m ← β m + (1 − β) (∂F/∂x − J z),    x ← x − η m / ‖m‖.

J is taken on a draw of its own, as z depends on that of H and F. z is never reset. At the start y is refined by epochs
of inner steps, each twice as long as the last, with half its step and ball. A step of length η, whatever ‖m‖, suits an
F whose curvature grows with its gradient, as that of recurrent networks does.

References:
    Hao, Gong, Liu (2024), Bilevel optimization under unbounded smoothness: a new algorithm and convergence analysis.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


class BoRepState(NamedTuple):
    """What BO-REP remembers.

    Attributes:
        adjoint: z, like y.
        momentum: m, like x.
        inner_tx: State of the transform of y.
        adjoint_tx: State of the transform of z.
        outer_tx: State of the transform of x.
    """

    adjoint: PyTree
    momentum: PyTree
    inner_tx: PyTree
    adjoint_tx: PyTree
    outer_tx: PyTree


def bo_rep(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    adjoint_tx: optax.GradientTransformation | None = None,
    momentum: Numeric = 0.9,
    period: int = 2,
    inner_steps: int = 3,
    radius: Numeric | None = None,
    refinement_epochs: int = 0,
    refinement_steps: int = 10,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Bilevel optimization by normalized momentum, initialization refinement and periodic inner updates.

    Args:
        problem: The problem; G strongly convex in y.
        inner_tx: Moves y along ∂G/∂y.
        outer_tx: Moves x along the direction of norm 1: ``optax.sgd(eta)`` makes steps of length η, in
            the authors' code 0.05.
        adjoint_tx: Moves z along H z − ∂F/∂y; ``optax.sgd(1e-2)`` by default, as the authors have it. Its step must be
            below 1 over the largest eigenvalue of H.
        momentum: β.
        period: I, steps between two updates of y. Static.
        inner_steps: N, inner steps of an update. Static.
        radius: R; no projection by default. The balls of the refinement begin with it.
        refinement_epochs: Epochs of the refinement; none by default. Static.
        refinement_steps: Steps of its first epoch. Static.
        sampler: Draws the examples of each inner step and of each hypergradient; all by default.

    Returns:
        ``(init, step)``; a step takes three gradients and two products, and at a refresh of y N gradients more.
        ``metrics["hypergradient"]`` is the norm of ∂F/∂x − J z, before the momentum.

    Raises:
        ValueError: If a count, a concrete `momentum` or a concrete `radius` is out of its range.

    Note:
        The theory averages the inner iterates; here as in the authors' code the last one goes on.

    References:
        Hao, Gong, Liu (2024).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum(jnp.cosh(y - 3.0))
        ... )
        >>> init, step = bilevel.bo_rep(problem, optax.sgd(0.3), optax.sgd(0.01), adjoint_tx=optax.sgd(0.2))
        >>> state = init(jnp.zeros(1), jnp.zeros(1), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=500)
        >>> bool(abs(state.outer[0] - 3.0) < 0.2)
        True
    """
    for name, number, low in (
        ("period", period, 1),
        ("inner_steps", inner_steps, 1),
        ("refinement_epochs", refinement_epochs, 0),
        ("refinement_steps", refinement_steps, 1),
    ):
        checks.in_range(name, number, low)
    checks.in_range("momentum", momentum, 0.0, 1.0, open_high=True)
    if radius is not None:
        checks.in_range("radius", radius, 0.0, open_low=True)
    adjoint_tx = optax.sgd(1e-2) if adjoint_tx is None else adjoint_tx

    def within(y: PyTree, center: PyTree, radius: Numeric | None) -> PyTree:
        if radius is None:
            return y
        gap = optax.tree.sub(y, center)
        norm = optax.tree.norm(gap)
        inside = norm <= radius
        shrunk = optax.tree.add_scale(center, radius / jnp.where(inside, 1.0, norm), gap)
        return optax.tree.where(inside, y, shrunk)

    def descend(
        draws: Draws, x: PyTree, y: PyTree, state: Any, first: int, length: int, epoch: int
    ) -> tuple[PyTree, Any]:
        """Inner steps within a ball around y; each epoch of the refinement halves both."""
        ball = None if radius is None else radius * 0.5**epoch

        def one(carry: tuple[PyTree, Any], i: Array) -> tuple[tuple[PyTree, Any], None]:
            current, state = carry
            moved, state = apply(inner_tx, draws(i).inner_gradient(x, current), state, current)
            shortened = jax.tree.map(lambda old, new: old + 0.5**epoch * (new - old), current, moved)
            new = within(shortened, y, ball), state
            return jax.tree.map(lambda new, old: new.astype(old.dtype), new, carry), None

        return jax.lax.scan(one, (y, state), first + jnp.arange(length))[0]

    def start(draws: Draws, x: PyTree, y: PyTree) -> BoRepState:
        z, m = optax.tree.zeros_like(y), optax.tree.zeros_like(x)
        return BoRepState(z, m, inner_tx.init(y), adjoint_tx.init(z), outer_tx.init(x))

    def refined(draws: Draws, x: PyTree, y: PyTree, state: Any) -> tuple[PyTree, Any]:
        # Draws far from those of the step itself.
        first = inner_steps + 2
        for epoch in range(refinement_epochs):
            length = refinement_steps * 2**epoch
            y, state = descend(draws, x, y, state, first, length, epoch)
            first += length
        return y, state

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: BoRepState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, BoRepState, Info]:
        inner_state = extra.inner_tx
        if refinement_epochs:
            y, inner_state = jax.lax.cond(
                step == 0, lambda: refined(draws, x, y, inner_state), lambda: (y, inner_state)
            )
        refresh = step % period == 0
        y, inner_state = jax.lax.cond(
            refresh,
            lambda: descend(draws, x, y, inner_state, 0, inner_steps, 0),
            lambda: (y, inner_state),
        )
        losses = draws(inner_steps)
        value, (f_x, f_y) = losses.outer_gradients(x, y)
        _, product = losses.inner_products(x, y)
        slope = optax.tree.sub(product(extra.adjoint)[0], f_y)
        z, adjoint_state = apply(adjoint_tx, slope, extra.adjoint_tx, extra.adjoint)
        _, fresh = draws(inner_steps + 1).inner_products(x, y)
        gradient = optax.tree.sub(f_x, fresh(z)[1])
        m = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, extra.momentum, gradient)
        norm = optax.tree.norm(m)
        x, outer_state = apply(
            outer_tx, optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), m), extra.outer_tx, x
        )
        first = jnp.where(step == 0, refinement_steps * (2**refinement_epochs - 1), 0)
        gradients = 3 + first + jnp.where(refresh, inner_steps, 0)
        info = report(value, gradient, gradients=gradients, products=2)
        return x, y, BoRepState(z, m, inner_state, adjoint_state, outer_state), info

    return algorithm(problem, sampler, start, advance)
