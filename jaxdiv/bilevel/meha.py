"""MEHA: single-loop first-order steps on the Moreau envelope of the inner loss.

With v_γ(x, y) = min_θ G(x, θ) + |θ − y|² / 2γ, y solves the inner problem where G(x, y) ≤ v_γ(x, y). A step is

    θ ← Proj_Y(θ − η (∂G/∂y(x, θ) + (θ − y) / γ)),
    d_x = ∂F/∂x / c + ∂G/∂x(x, y) − ∂G/∂x(x, θ),    d_y = ∂F/∂y / c + ∂G/∂y(x, y) − (y − θ) / γ,
    (x, y) ← Proj((x, y) − α (d_x, d_y)),

with a growing penalty c: LV-HBA without constraints.

References:
    Liu, Liu, Yao, Zeng, Zhang (2024), Moreau envelope for nonconvex bi-level optimization: a single-loop and
    Hessian-free solution strategy, algorithm 1.
"""

from collections.abc import Callable

import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.lv_hba import lv_hba
from jaxdiv.bilevel.penalty import power
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core.types import Numeric
from jaxdiv.objectives.record import Option

GROWTH = power(0.45)


def meha(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    penalty: Option = GROWTH,
    gamma1: Numeric = 10.0,
    inner_steps: int = 1,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """The Moreau envelope based Hessian-free algorithm.

    Args:
        problem: The problem.
        inner_tx: Moves θ; a step of 1/(L + 1/γ) suits if L bounds the curvature of G.
        outer_tx: Moves the pair (x, y), jointly.
        penalty: c > 0, a number or a schedule; (k + 1)^p with p < 1/2 in the paper. The bias falls as 1/c.
        gamma1: γ > 0, less than the inverse of G's weak convexity.
        inner_steps: Steps of θ before each joint one. Static.
        project_inner: Projection onto Y after each step of θ; by default the second part of the problem's own.
        sampler: Draws the examples of a step, for each step of θ and for the joint one; all by default.

    Returns:
        ``(init, step)``; a step takes ``inner_steps + 3`` gradients. State and report are those of `lv_hba`.

    Raises:
        ValueError: If an option is out of range or the problem has a constraint.

    References:
        Liu, Liu, Yao, Zeng, Zhang (2024), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.meha(problem, optax.sgd(0.4), optax.sgd(0.2))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=1000)
        >>> state.outer.round(1)
        Array([3., 3.], dtype=float32)
    """
    if problem.constraint is not None:
        raise ValueError(
            "problem must have no constraint; got one; use lv_hba, which is this method with constraints."
        )
    return lv_hba(
        problem,
        inner_tx,
        outer_tx,
        penalty=penalty,
        gamma1=gamma1,
        inner_steps=inner_steps,
        project_inner=project_inner,
        sampler=sampler,
    )
