"""BSA: inner steps of stochastic gradient descent, then one randomized product in the place of H⁻¹.

    T times: y ← y − β ∂G/∂y(x, y; b)
    v = Q a Π_{i=1}^{p} (I − a H(b_i)) ∂F/∂y,    p uniform on 0, …, Q − 1
    x ← x − α (∂F/∂x − J v)

In the mean v is the Neumann series of Q terms.

References:
    Ghadimi, Wang (2018), Approximation methods for bilevel programming, algorithms 2 and 3. There the inner loops grow
    with the outer step; here their length is fixed and y goes on from where it is, as in the benchmark_bilevel code.
"""

import optax

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.make_step import make_step
from jaxdiv.bilevel.neumann import neumann
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core.types import Numeric


def bsa(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    inner_steps: int = 10,
    terms: int = 10,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Bilevel stochastic approximation.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y. Its schedules count inner steps.
        outer_tx: Moves x along the hypergradient. As the estimate stays noisy, also on all data, its steps must fall:
            ``optax.sgd(lambda k: alpha / jnp.sqrt(1 + k))``.
        step_size: a, at most 1 over the largest eigenvalue of H.
        inner_steps: T. Static.
        terms: Q. Static.
        sampler: Draws the examples of each inner step, each factor and each hypergradient; all by default.

    Returns:
        ``(init, step)``; a step takes T + 1 gradients and p + 1 products.

    Raises:
        ValueError: If `inner_steps` or `terms` is below 1, or `step_size` is not positive.

    References:
        Ghadimi, Wang (2018), algorithms 2 and 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.bsa(problem, optax.sgd(0.2), optax.sgd(0.1), step_size=0.4)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    estimator = neumann(terms=terms, step_size=step_size, randomized=True)
    return make_step(problem, estimator, inner_tx, outer_tx, inner_steps=inner_steps, sampler=sampler)
