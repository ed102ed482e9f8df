"""SOBA: inner variable, adjoint and outer variable move together, one draw a step.

At the point (x, y, v), with directions all taken there,

    y ← y − ρ ∂G/∂y,    v ← v − ρ (H v − ∂F/∂y),    x ← x − γ (∂F/∂x − J v).

At a fixed point v = H⁻¹ ∂F/∂y, and the last direction is the hypergradient.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, algorithm 1.
"""

import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, report
from jaxdiv.bilevel.joint import Joint, JointState, directions
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch


def soba(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    adjoint_tx: optax.GradientTransformation | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Single-loop stochastic bilevel optimization.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y, such as ``optax.sgd(rho)``; its step must suit the curvature of G.
        outer_tx: Moves x along its direction. The paper's rates of both decay as the root of the step.
        adjoint_tx: Moves v along H v − ∂F/∂y; like `inner_tx` by default.
        sampler: Draws the examples of a step; all by default.

    Returns:
        ``(init, step)``; a step takes two gradients and one product.

    References:
        Dagréou, Ablin, Vaiter, Moreau (2022), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.soba(problem, optax.sgd(0.2), optax.sgd(0.1))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    joint = Joint(inner_tx, inner_tx if adjoint_tx is None else adjoint_tx, outer_tx)

    def start(draws: Draws, x: PyTree, y: PyTree) -> JointState:
        return joint.init(x, y)

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: JointState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, JointState, Info]:
        value, along = directions(draws(0), x, y, extra.adjoint)
        x, y, extra = joint.move(x, y, extra, along)
        return x, y, extra, report(value, along.outer, gradients=2, products=1)

    return algorithm(problem, sampler, start, advance)
