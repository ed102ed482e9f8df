"""MAID: inexact hypergradients, a line search on inexact values, and accuracies that adapt to both.

A step at x with the accuracies ε, δ and the step size α:

1. Solve the inner problem to ‖y − y*(x)‖ ≤ ε and the adjoint system to the residual δ. As long as the error bound ω of
   `inexact_hypergradient` has ω > (1 − η) ‖z‖, tighten: (ε, δ) ← ν₋ (ε, δ). Then ⟨z, ∇Φ⟩ ≥ η ‖z‖².
2. For a = α, ρ α, ρ² α, …: solve the inner problem at x₊ = x − a z to ε. With F, s = ‖∂F/∂y‖ and e = ‖∂G/∂y‖ / μ
   at y and, with a plus, at y₊,

       ψ(a) = F₊ + s₊ e₊ + L_F e₊² / 2 − F + s e + L_F e² / 2,    accept if ψ(a) ≤ −η² a ‖z‖².

   ψ(a) is no smaller than Φ(x₊) − Φ(x), so that what is accepted decreases Φ itself.
3. Accepted: x ← x₊, α ← a ρ₊, (ε, δ) ← ν₊ (ε, δ). Else x stays, (ε, δ) ← ν₋ (ε, δ), and the next step, at the
   same x, tries one step size more.

ψ does not ask F to be convex in y, for which the paper leaves out L_F e² / 2, and adds the rounding of the two values.
F may depend on x.

References:
    Salehi, Mukherjee, Roberts, Ehrhardt (2025), An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, like, report
from jaxdiv.bilevel.inexact_hypergradient import (
    BoundedEstimate,
    BoundState,
    ConstantsOf,
    inexact_hypergradient,
)
from jaxdiv.bilevel.inner_solution import (
    InnerSolution,
    InnerTransform,
    StrongConvexity,
    inner_solution,
)
from jaxdiv.bilevel.problem import Losses, Problem
from jaxdiv.bilevel.sampler import full_batch
from jaxdiv.core import Status, checks
from jaxdiv.core.types import Numeric, Scalar

_TIGHTENINGS = 60  # of one step


class MaidState(NamedTuple):
    """What MAID remembers.

    Attributes:
        epsilon: ε, the accuracy of inner solutions.
        delta: δ, that of adjoints.
        step_size: α, the first step size to try.
        tries: How many the next line search may try.
        bound: State of the hypergradient's estimate.
    """

    epsilon: Scalar
    delta: Scalar
    step_size: Scalar
    tries: Int[Array, ""]
    bound: BoundState


class _Certifying(NamedTuple):
    """The loop that makes the hypergradient exact enough."""

    y: PyTree
    epsilon: Scalar
    delta: Scalar
    reached: Bool[Array, ""]
    out: BoundedEstimate
    rounds: Int[Array, ""]
    again: Bool[Array, ""]


class _Searching(NamedTuple):
    """The line search."""

    x: PyTree
    y: PyTree
    step_size: Scalar
    excess: Scalar
    accepted: Bool[Array, ""]
    reached: Bool[Array, ""]
    rounds: Int[Array, ""]
    gradients: Int[Array, ""]


def maid(
    problem: Problem,
    inner_tx: InnerTransform,
    *,
    strong_convexity: StrongConvexity,
    outer_lipschitz: Numeric = 1.0,
    constants: ConstantsOf | None = None,
    epsilon: Numeric = 0.1,
    delta: Numeric = 0.1,
    step_size: Numeric = 0.1,
    eta: Numeric = 1e-4,
    backtrack: Numeric = 0.9,
    tighten: Numeric = 0.5,
    loosen: Numeric = 1.05,
    grow: Numeric = 10 / 9,
    max_backtracks: int = 10,
    max_inner_steps: int = 10_000,
    max_adjoint_steps: int | None = None,
) -> Algorithm:
    """The method of adaptive inexact descent. It takes all data, and finds its own outer step sizes.

    Args:
        problem: The problem, smooth, G strongly convex in y, without projection.
        inner_tx: Moves y along ∂G/∂y, such as ``optax.sgd(1 / L, momentum=beta, nesterov=True)``; or a function of x
            that returns such a transform, where the curvature of G changes with x. Each inner solve starts with a fresh
            state of it.
        strong_convexity: μ, by which G is strongly convex in y; a number or a function of x.
        outer_lipschitz: L_F, a Lipschitz constant of y ↦ ∂F/∂y; a sum over examples has another than a mean.
        constants: The other constants of the error bound; see `inexact_hypergradient`. By default they are estimated.
        epsilon: ε at the start; this and the next five are the authors' code's.
        delta: δ at the start.
        step_size: α at the start.
        eta: η in (0, 1).
        backtrack: ρ in (0, 1); the authors' experiments take 0.5 as well.
        tighten: ν₋ in (0, 1]; 1, with ``loosen=1``, keeps the accuracies as they are.
        loosen: ν₊ at least 1.
        grow: ρ₊ at least 1.
        max_backtracks: Step sizes that a line search tries; one more after each that failed, until one succeeds.
            Static.
        max_inner_steps: Most steps of an inner solve, which also ends when a tenth of them brought no smaller
            gradient. Static.
        max_adjoint_steps: Most steps of conjugate gradients; `linalg.solve`'s default.

    Returns:
        ``(init, step)``. A step is one line search. Its metrics are also ``"error_bound"`` (ω), ``"step_size"`` (a; 0
        if x has stayed), ``"epsilon"`` and ``"delta"`` as z had them, ``"accepted"`` (0 or 1) and ``"decrease"``, which
        Φ has lost at least. Its status is CONVERGED if x has moved, STALLED if it has not and a solve has not reached
        its accuracy, such as in float32 near a solution, and MAX_STEPS if a more accurate search may succeed.

    Raises:
        ValueError: If an option is out of its range or the problem has a projection.

    Note:
        The decrease is certified where `strong_convexity` and `outer_lipschitz` are right, whether the constants of ω
        are given or estimated.

    References:
        Salehi, Mukherjee, Roberts, Ehrhardt (2025).

    Example:
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: 0.5 * jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.maid(problem, optax.sgd(0.3), strong_convexity=2.0)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=30)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    for name, option in (("epsilon", epsilon), ("delta", delta), ("step_size", step_size)):
        checks.in_range(name, option, 0.0, open_low=True)
    for name, option in (("eta", eta), ("backtrack", backtrack)):
        checks.in_range(name, option, 0.0, 1.0, open_low=True, open_high=True)
    checks.in_range("tighten", tighten, 0.0, 1.0, open_low=True)
    for name, option in (
        ("loosen", loosen), ("grow", grow), ("max_backtracks", max_backtracks), ("max_inner_steps", max_inner_steps)
    ):  # fmt: skip
        checks.in_range(name, option, 1)
    if problem.project is not None:
        raise ValueError(
            "problem must have no projection, which the certified line search does not know; got one; "
            "reparametrize the outer variable."
        )
    certified = inexact_hypergradient(
        strong_convexity=strong_convexity,
        outer_lipschitz=outer_lipschitz,
        constants=constants,
        max_steps=max_adjoint_steps,
    )

    def solve(losses: Losses, x: PyTree, y: PyTree, epsilon: Scalar) -> InnerSolution:
        return inner_solution(
            losses, x, y, epsilon, inner_tx=inner_tx, strong_convexity=strong_convexity, max_steps=max_inner_steps
        )  # fmt: skip

    def start(draws: Draws, x: PyTree, y: PyTree) -> MaidState:
        dtype = jnp.result_type(*jax.tree.leaves(y))
        eps, dlt, alpha = (jnp.asarray(number, dtype) for number in (epsilon, delta, step_size))
        return MaidState(
            eps, dlt, alpha, jnp.asarray(max_backtracks, jnp.int32), certified.init(x, y, draws.key)
        )

    def certify(losses: Losses, x: PyTree, y: PyTree, extra: MaidState) -> _Certifying:
        def one(c: _Certifying) -> _Certifying:
            factor = jnp.where(c.rounds > 0, tighten, 1.0)
            eps, dlt = factor * c.epsilon, factor * c.delta
            inner = solve(losses, x, c.y, eps)
            out = certified.estimate(losses, x, inner.y, dlt, c.out.state)
            # Where both solves end early, or the accuracies are fixed, there is nothing to tighten.
            short = out.error_bound > (1 - eta) * optax.tree.norm(out.hypergradient)
            useful = (inner.reached | (out.status == Status.CONVERGED)) & (jnp.asarray(tighten) < 1)
            again = short & useful & (c.rounds < _TIGHTENINGS)
            out = out._replace(
                gradients=c.out.gradients + inner.gradients + out.gradients,
                products=c.out.products + out.products,
            )
            reached = inner.reached & (out.status == Status.CONVERGED)
            return like(c, _Certifying(inner.y, eps, dlt, reached, out, c.rounds + 1, again))

        shapes = jax.eval_shape(lambda: certified.estimate(losses, x, y, extra.delta, extra.bound))
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)._replace(
            state=extra.bound
        )
        zero, true = jnp.zeros((), jnp.int32), jnp.asarray(True)
        first = _Certifying(y, extra.epsilon, extra.delta, true, blank, zero, true)
        return jax.lax.while_loop(lambda c: c.again, one, first)

    def search(losses: Losses, x: PyTree, at: _Certifying, extra: MaidState) -> _Searching:
        z, here = at.out.hypergradient, at.out
        norm = optax.tree.norm(z)
        below = here.value - _margin(here.slope, here.inner_error)

        def one(c: _Searching) -> _Searching:
            a = extra.step_size * jnp.asarray(backtrack, c.step_size.dtype) ** c.rounds
            moved = optax.tree.add_scale(x, -a, z)
            inner = solve(losses, moved, at.y, at.epsilon)
            value, (_, f_y) = losses.outer_gradients(moved, inner.y)
            rounding = jnp.finfo(value.dtype).eps * (jnp.abs(value) + jnp.abs(here.value))
            excess = value + _margin(optax.tree.norm(f_y), inner.error) + rounding - below
            accepted = excess <= -(eta**2) * a * norm**2
            new = _Searching(
                moved, inner.y, a, excess, accepted, c.reached & inner.reached,
                c.rounds + 1, c.gradients + inner.gradients + 1,
            )  # fmt: skip
            return like(c, new)

        def running(c: _Searching) -> Bool[Array, ""]:
            visible = c.step_size * norm > jnp.finfo(norm.dtype).eps * optax.tree.norm(x)
            return ~c.accepted & (c.rounds < extra.tries) & visible & jnp.isfinite(norm)

        zero, false = jnp.zeros((), jnp.int32), jnp.asarray(False)
        first = _Searching(x, at.y, extra.step_size, here.value, false, at.reached, zero, zero)
        return jax.lax.while_loop(running, one, first)

    def _margin(slope: Scalar, error: Scalar) -> Float[Array, ""]:
        """How far the value at y may be from that at y*(x)."""
        return slope * error + outer_lipschitz / 2 * error**2

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: MaidState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, MaidState, Info]:
        losses = draws(0)
        at = certify(losses, x, y, extra)
        found = search(losses, x, at, extra)
        moved = found.accepted
        x, y = optax.tree.where(moved, (found.x, found.y), (x, at.y))
        # Above zero, from where they could not grow again.
        least = jnp.sqrt(jnp.finfo(at.epsilon.dtype).tiny)
        factor = jnp.where(moved, loosen, tighten)
        eps, dlt = (jnp.maximum(factor * accuracy, least) for accuracy in (at.epsilon, at.delta))
        alpha = jnp.where(moved, grow * found.step_size, extra.step_size)
        reached = at.reached & found.reached
        # A longer search cannot make up for values that are not more accurate.
        tries = jnp.where(moved, max_backtracks, extra.tries + reached)
        stopped = jnp.where(reached, Status.MAX_STEPS, Status.STALLED)
        info = report(
            at.out.value,
            at.out.hypergradient,
            gradients=at.out.gradients + found.gradients,
            products=at.out.products,
            residual=at.out.residual,
            status=jnp.where(moved, Status.CONVERGED, stopped),
            error_bound=at.out.error_bound,
            step_size=jnp.where(moved, found.step_size, 0),
            epsilon=at.epsilon,
            delta=at.delta,
            accepted=moved.astype(jnp.int32),
            decrease=jnp.where(moved, -found.excess, 0),
        )
        return x, y, MaidState(eps, dlt, alpha, tries, at.out.state), info

    return algorithm(problem, full_batch, start, advance)
