"""BOME: descent of the outer loss that also decreases the inner loss' gap, as a dynamic barrier demands.

z is T gradient steps on G from y, and q(x, y) = G(x, y) − G(x, z) with z a constant in ∇q. Among the directions with
⟨∇q, δ⟩ ≥ φ, the one nearest to ∇F is

    δ = ∇F + λ ∇q,    λ = max(0, (φ − ⟨∇F, ∇q⟩) / |∇q|²),    (x, y) ← (x, y) − ξ δ,

where φ = η |∇q|² or φ = η q.

References:
    Ye, Liu, Wright, Stone, Liu (2022), BOME! Bilevel optimization made easy: a simple first-order approach,
    algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.make_step import Inner
from jaxdiv.bilevel.penalty import combine, descend, inner_projection, terms
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


class BomeState(NamedTuple):
    """What BOME remembers.

    Attributes:
        outer_tx: State of the transform of the pair (x, y).
    """

    outer_tx: PyTree


def bome(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    eta: Numeric = 0.5,
    barrier: str = "gradient",
    inner_steps: int = 10,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Bilevel optimization made easy.

    Args:
        problem: The problem.
        inner_tx: Moves z along ∂G/∂y, with a new state in each step.
        outer_tx: Moves the pair (x, y) along δ, jointly: the barrier is a condition on the joint direction.
        eta: η > 0.
        barrier: ``"gradient"`` for φ = η |∇q|², ``"value"`` for φ = η q.
        inner_steps: T, from y to z; what G does not decrease in them is not seen, so they set the bias. Static.
        project_inner: Projection onto Y after each step of z; by default the second part of the problem's own.
        sampler: Draws the examples of a step, for each step of z and for the joint one; all by default.

    Returns:
        ``(init, step)``; a step takes ``inner_steps + 3`` gradients. ``metrics["penalty"]`` is λ, 0 where ∇q is, and
        ``metrics["gap"]`` is q.

    Raises:
        ValueError: If an option is out of range.

    References:
        Ye, Liu, Wright, Stone, Liu (2022), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.bome(problem, optax.sgd(0.2), optax.sgd(0.05))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=500)
        >>> state.outer.round(1)
        Array([3., 3.], dtype=float32)
    """
    checks.in_range("eta", eta, 0.0, open_low=True)
    checks.one_of("barrier", barrier, ("gradient", "value"))
    checks.in_range("inner_steps", inner_steps, 1)
    project = inner_projection(problem, project_inner)

    def start(draws: Draws, x: PyTree, y: PyTree) -> BomeState:
        return BomeState(outer_tx.init((x, y)))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: BomeState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, BomeState, Info]:
        z = descend(inner_tx, project, draws, x, Inner(y, inner_tx.init(y)), inner_steps)
        at = terms(draws(inner_steps), x, y, z.value)
        square = optax.tree.norm(at.inner, squared=True)
        phi = eta * (square if barrier == "gradient" else at.gap)
        wanted = phi - optax.tree.vdot(at.outer, at.inner)
        # Where ∇q vanishes, so does its share of the direction.
        penalty = jnp.where(square > 0, jnp.maximum(wanted / jnp.where(square > 0, square, 1), 0), 0)
        direction = combine(at.outer, penalty, at.inner)
        (x, y), outer_state = apply(outer_tx, direction, extra.outer_tx, (x, y))
        info = report(at.value, direction[0], gradients=inner_steps + 3, penalty=penalty, gap=at.gap)
        return x, y, BomeState(outer_state), info

    return algorithm(problem, sampler, start, advance)
