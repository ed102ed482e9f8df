"""V-PBGD: gradient descent on the outer loss plus a fixed multiple of the inner loss' gap to its minimum.

z follows the minimizer of G, T steps at a time from where it was:

    z ← Proj_Y(z − τ ∂G/∂y(x, z)),
    (x, y) ← Proj((x, y) − α ∇(F + γ q)),    q(x, y) = G(x, y) − G(x, z),

z being a constant in ∇q. With γ of the order δ^(-1/2), minimizers of F + γ q have q ≤ δ.

References:
    Shen, Chen (2023), On penalty-based bilevel gradient descent method, algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.make_step import Inner
from jaxdiv.bilevel.penalty import combine, copy, descend, inner_projection, positive, terms
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks
from jaxdiv.objectives.record import Option, resolve


class PbgdState(NamedTuple):
    """What V-PBGD remembers.

    Attributes:
        z: Follows the minimizer of G, like y.
        inner_tx: State of the transform of z.
        outer_tx: State of the transform of the pair (x, y).
    """

    z: PyTree
    inner_tx: PyTree
    outer_tx: PyTree


def pbgd(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    penalty: Option = 10.0,
    inner_steps: int = 10,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Penalty-based bilevel gradient descent with the value function.

    Args:
        problem: The problem.
        inner_tx: Moves z along ∂G/∂y.
        outer_tx: Moves the pair (x, y) along the gradient of F + γ q, jointly; its step must suit a curvature that
            grows with γ.
        penalty: γ > 0, a number or a schedule; the bias falls as 1/γ.
        inner_steps: T, steps of z before each joint step. Static.
        project_inner: Projection onto Y after each step of z; by default the second part of the problem's own.
        sampler: Draws the examples of a step, for each step of z and for the joint one; all by default.

    Returns:
        ``(init, step)``; a step takes ``inner_steps + 3`` gradients, and ``metrics["gap"]`` is q.

    Raises:
        ValueError: If an option is not positive.

    References:
        Shen, Chen (2023), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.pbgd(problem, optax.sgd(0.2), optax.sgd(0.04))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    positive("penalty", penalty)
    checks.in_range("inner_steps", inner_steps, 1)
    project = inner_projection(problem, project_inner)

    def start(draws: Draws, x: PyTree, y: PyTree) -> PbgdState:
        return PbgdState(copy(y), inner_tx.init(y), outer_tx.init((x, y)))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: PbgdState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, PbgdState, Info]:
        z = descend(inner_tx, project, draws, x, Inner(extra.z, extra.inner_tx), inner_steps)
        at = terms(draws(inner_steps), x, y, z.value)
        direction = combine(at.outer, resolve(penalty, step), at.inner)
        (x, y), outer_state = apply(outer_tx, direction, extra.outer_tx, (x, y))
        info = report(at.value, direction[0], gradients=inner_steps + 3, gap=at.gap)
        return x, y, PbgdState(z.value, z.tx, outer_state), info

    return algorithm(problem, sampler, start, advance)
