"""MA-SOBA: SOBA whose outer variable moves along a moving average of its directions.

    h ← (1 − θ) h + θ (∂F/∂x − J v),    x ← x − γ h,    h = 0 at first

and y and v as in SOBA. With the average, SOBA's rate holds where the losses have fewer derivatives. It is taken before
the move: h has the step's own direction in it.

References:
    Chen, Xiao, Balasubramanian (2023), Optimal algorithms for stochastic bilevel optimization under relaxed smoothness
    conditions, algorithm 1.
"""

import optax

from jaxdiv.bilevel.algorithm import Algorithm
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.bilevel.soba import soba
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def ma_soba(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    rate: Numeric = 0.5,
    adjoint_tx: optax.GradientTransformation | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Single-loop bilevel optimization with an averaged outer direction.

    Args:
        problem: The problem.
        inner_tx: Moves y along ∂G/∂y.
        outer_tx: Moves x along the average.
        rate: θ, the weight of the newest direction; 1 is `soba`. The average lags by 1/θ steps: in the paper θ and the
            outer step fall together, and a small θ with a large step oscillates. The default is not the paper's.
        adjoint_tx: Moves v along H v − ∂F/∂y; like `inner_tx` by default.
        sampler: Draws the examples of a step; all by default.

    Returns:
        ``(init, step)``; a step takes two gradients and one product, and reports the direction before averaging.

    Raises:
        ValueError: If `rate` leaves (0, 1].

    References:
        Chen, Xiao, Balasubramanian (2023), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.ma_soba(problem, optax.sgd(0.2), optax.sgd(0.05))
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=200)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    checks.in_range("rate", rate, 0, 1, open_low=True)
    averaged = optax.chain(optax.ema(1 - rate, debias=False), outer_tx)
    return soba(problem, inner_tx, averaged, adjoint_tx=adjoint_tx, sampler=sampler)
