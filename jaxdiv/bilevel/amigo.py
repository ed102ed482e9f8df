"""AmIGO: inner steps on y, then steps on the linear system, both from where the last ones ended.

    T times: y ← y − β ∂G/∂y(x, y; b)
    Q times: v ← v − ρ (H(b) v − ∂F/∂y)
    x ← x − α (∂F/∂x − J v)

The warm start of v lets its error vanish with that of y: constant T and Q leave no bias. ∂F/∂y is taken once for the Q
steps.

References:
    Arbel, Mairal (2022), Amortized implicit differentiation for stochastic bilevel optimization, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, apply
from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop, make_step
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks


class AdjointState(NamedTuple):
    """What the linear system goes on from.

    Attributes:
        adjoint: v, like y.
        tx: State of its transform.
    """

    adjoint: PyTree
    tx: PyTree


def amigo(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    inner_steps: int = 10,
    adjoint_steps: int = 10,
    adjoint_tx: optax.GradientTransformation | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Amortized implicit gradient optimization.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y.
        outer_tx: Moves x along the hypergradient.
        inner_steps: T. Static.
        adjoint_steps: Q. Static.
        adjoint_tx: Moves v along H v − ∂F/∂y; like `inner_tx` by default.
        sampler: Draws the examples of each step of y and of v, and of each hypergradient; all by default.

    Returns:
        ``(init, step)``; a step takes T + 1 gradients and Q + 1 products.

    Raises:
        ValueError: If `inner_steps` or `adjoint_steps` is below 1.

    References:
        Arbel, Mairal (2022), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.amigo(problem, optax.sgd(0.2), optax.sgd(0.1))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=50)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    checks.in_range("adjoint_steps", adjoint_steps, 1)
    estimator = _descent(inner_tx if adjoint_tx is None else adjoint_tx, adjoint_steps)
    return make_step(problem, estimator, inner_tx, outer_tx, inner_steps=inner_steps, sampler=sampler)


def _descent(tx: optax.GradientTransformation, steps: int) -> Estimator:
    def init(x: PyTree, y: PyTree) -> AdjointState:
        v = optax.tree.zeros_like(y)
        return AdjointState(v, tx.init(v))

    def estimate(loop: Loop, x: PyTree, state: AdjointState) -> Estimate:
        inner = loop.solve(x)
        y = inner.value
        value, (f_x, f_y) = loop.final.outer_gradients(x, y)

        def one(state: AdjointState, i: Int[Array, ""]) -> tuple[AdjointState, None]:
            h_v, _ = loop.draws(i).inner_products(x, y)[1](state.adjoint)
            moved = AdjointState(*apply(tx, optax.tree.sub(h_v, f_y), state.tx, state.adjoint))
            return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, state), None

        state, _ = jax.lax.scan(one, state, loop.length + 1 + jnp.arange(steps))
        _, j_v = loop.final.inner_products(x, y)[1](state.adjoint)
        counts = {"gradients": loop.length + 1, "products": steps + 1}
        return Estimate(inner, value, optax.tree.sub(f_x, j_v), state, counts)

    return Estimator(init, estimate)
