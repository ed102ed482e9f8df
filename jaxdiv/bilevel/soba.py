"""SOBA: inner variable, adjoint and outer variable move together, one draw a step.

At the point (x, y, v), with directions all taken there,

    y ← y − ρ ∂G/∂y,    v ← v − ρ (H v − ∂F/∂y),    x ← x − γ (∂F/∂x − J v).

At a fixed point v = H⁻¹ ∂F/∂y, and the last direction is the hypergradient.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, algorithm 1.
"""

from typing import NamedTuple

import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch


class SobaState(NamedTuple):
    """What SOBA remembers.

    Attributes:
        adjoint: v, like y.
        inner_tx: State of the transform of y.
        adjoint_tx: State of the transform of v.
        outer_tx: State of the transform of x.
    """

    adjoint: PyTree
    inner_tx: PyTree
    adjoint_tx: PyTree
    outer_tx: PyTree


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
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=100)
        >>> state.outer.round(3)
        Array([3., 3.], dtype=float32)
    """
    adjoint_tx = inner_tx if adjoint_tx is None else adjoint_tx

    def start(draws: Draws, x: PyTree, y: PyTree) -> SobaState:
        v = optax.tree.zeros_like(y)
        return SobaState(v, inner_tx.init(y), adjoint_tx.init(v), outer_tx.init(x))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: SobaState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, SobaState, Info]:
        losses = draws(0)
        value, (f_x, f_y) = losses.outer_gradients(x, y)
        g_y, product = losses.inner_products(x, y)
        h_v, j_v = product(extra.adjoint)
        direction = optax.tree.sub(f_x, j_v)

        y, inner_state = apply(inner_tx, g_y, extra.inner_tx, y)
        v, adjoint_state = apply(adjoint_tx, optax.tree.sub(h_v, f_y), extra.adjoint_tx, extra.adjoint)
        x, outer_state = apply(outer_tx, direction, extra.outer_tx, x)
        info = report(value, direction, gradients=2, products=1)
        return x, y, SobaState(v, inner_state, adjoint_state, outer_state), info

    return algorithm(problem, sampler, start, advance)
