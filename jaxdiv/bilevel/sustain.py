"""SUSTAIN: recursive momentum on the direction of y and on a randomized hypergradient.

    u_k = ∂G/∂y(w_k; b) + (1 − e_k) (u_{k−1} − ∂G/∂y(w_{k−1}; b)),    w = (x, y)
    d_k = g(w_k; b) + (1 − e_k) (d_{k−1} − g(w_{k−1}; b))
    y ← y − β_k u_k,    x ← x − α_k d_k
    g = ∂F/∂x − J v,    v = Q a Π_{i=1}^{p} (I − a H(b_i)) ∂F/∂y,    p uniform on 0, …, Q − 1

The first directions are plain. The step sizes fall as k^{−1/3}, e as k^{−2/3}; both moves start from the same point.

References:
    Khanduri, Zeng, Hong, Wai, Wang, Yang (2021), A near-optimal algorithm for stochastic bilevel optimization via
    double-momentum, algorithm 1.
"""

import optax

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.double_momentum import double_momentum, falling
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core.types import Numeric
from jaxdiv.objectives.record import Option


def sustain(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    step_size: Numeric,
    terms: int = 10,
    rate: Option = falling,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Single-timescale double-momentum stochastic approximation.

    Args:
        problem: The problem.
        inner_tx: Moves y along u, such as ``optax.sgd(lambda k: beta * (1 + k) ** (-1 / 3))``.
        outer_tx: Moves x along d, alike.
        step_size: a, at most 1 over the largest eigenvalue of H.
        terms: Q, the terms that one product stands for. Static.
        rate: e, a number in [0, 1] or a schedule of the step, ``(1 + k) ** (-2 / 3)`` by default; 1 at the first step.
        sampler: Draws the examples of a step and of each factor; all by default.

    Returns:
        ``(init, step)``; a step takes four gradients and 2 p + 2 products.

    Raises:
        ValueError: If `terms` is below 1, or `step_size` is not positive.

    References:
        Khanduri, Zeng, Hong, Wai, Wang, Yang (2021), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.sustain(problem, optax.sgd(0.2), optax.sgd(0.1), step_size=0.4)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    return double_momentum(
        problem,
        inner_tx,
        outer_tx,
        step_size=step_size,
        terms=terms,
        rate=rate,
        randomized=True,
        sampler=sampler,
    )
