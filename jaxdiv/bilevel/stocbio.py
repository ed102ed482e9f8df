"""stocBiO: inner steps of stochastic gradient descent, then a Neumann series with a fresh draw for each factor.

    T times: y ← y − β ∂G/∂y(x, y; b)
    v = a Σ_{k=0}^{Q} Π_{i=1}^{k} (I − a H(b_i)) ∂F/∂y
    x ← x − α (∂F/∂x − J v)

The steps are constant; the truncated series leaves a bias of the order (1 − a μ)^{Q+1}.

References:
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithms 2 and 3.
"""

import optax

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.make_step import make_step
from jaxdiv.bilevel.neumann import neumann
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core.types import Numeric


def stocbio(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    inner_steps: int = 10,
    terms: int = 10,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Stochastic bilevel optimizer with a Neumann series.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y.
        outer_tx: Moves x along the hypergradient.
        step_size: a, at most 1 over the largest eigenvalue of H.
        inner_steps: T. Static.
        terms: Q. Static.
        sampler: Draws the examples of each inner step, each factor and each hypergradient; all by default.

    Returns:
        ``(init, step)``; a step takes T + 1 gradients and Q + 1 products.

    Raises:
        ValueError: If `inner_steps` is below 1, `terms` negative, or `step_size` not positive.

    References:
        Ji, Yang, Liang (2021), algorithms 2 and 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.stocbio(problem, optax.sgd(0.2), optax.sgd(0.1), step_size=0.2)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=50)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    estimator = neumann(terms=terms, step_size=step_size)
    return make_step(problem, estimator, inner_tx, outer_tx, inner_steps=inner_steps, sampler=sampler)
