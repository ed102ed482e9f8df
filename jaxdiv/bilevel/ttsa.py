"""TTSA: one inner step for each outer one, on two time scales.

    y ← y − β_k ∂G/∂y(x, y; b)
    v = Q a Π_{i=1}^{p} (I − a H(b_i)) ∂F/∂y,    p uniform on 0, …, Q − 1
    x ← x − α_k (∂F/∂x − J v)

It is `bsa` with T = 1. Because α_k / β_k → 0, y follows y*(x) all the same; the paper has β_k ~ k^{−2/5} and
α_k ~ k^{−3/5} where Φ is not convex.

References:
    Hong, Wai, Wang, Yang (2023), A two-timescale stochastic algorithm framework for bilevel optimization: complexity
    analysis and application to actor-critic, algorithm 1.
"""

import optax

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.bsa import bsa
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core.types import Numeric


def ttsa(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    terms: int = 10,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Two-timescale stochastic approximation.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y, such as ``optax.sgd(lambda k: beta * (1 + k) ** -0.4)``.
        outer_tx: Moves x along the hypergradient, such as ``optax.sgd(lambda k: alpha * (1 + k) ** -0.6)``.
        step_size: a, at most 1 over the largest eigenvalue of H.
        terms: Q. Static.
        sampler: Draws the examples of the inner step, each factor and each hypergradient; all by default.

    Returns:
        ``(init, step)``; a step takes two gradients and p + 1 products.

    Raises:
        ValueError: If `terms` is below 1, or `step_size` is not positive.

    References:
        Hong, Wai, Wang, Yang (2023), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> inner_tx, outer_tx = (optax.sgd(lambda k, p=p: 0.2 * (1 + k) ** -p) for p in (0.4, 0.6))
        >>> init, step = bilevel.ttsa(problem, inner_tx, outer_tx, step_size=0.4)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=400)
        >>> state.outer.round(1)
        Array([3., 3.], dtype=float32)
    """
    return bsa(problem, inner_tx, outer_tx, step_size=step_size, inner_steps=1, terms=terms, sampler=sampler)
