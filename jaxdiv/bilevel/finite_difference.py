"""DARTS: one look-ahead step, its derivative by a difference of two gradients.

The last inner step is y' = y − ξ ∂G/∂y(x, y), and

    ∇Φ ≈ ∂F/∂x(x, y') − ξ [∂G/∂x(x, y⁺) − ∂G/∂x(x, y⁻)] / (2 e),
    y^± = y ± e ∂F/∂y(x, y'),    e = 0.01 / ‖∂F/∂y(x, y')‖,

which is `unrolled` with ``truncate=1`` up to O(e²), without second derivatives.

References:
    Liu, Simonyan, Yang (2019), DARTS: Differentiable architecture search, eqs. (7)-(8).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core.types import Numeric


def finite_difference(step: Numeric, *, radius: Numeric = 0.01) -> Estimator:
    """Differentiates the last inner step by differences.

    Args:
        step: ξ, the learning rate of the inner transform, whose step must be that of plain descent where the
            derivative is to be exact.
        radius: ``e ‖∂F/∂y‖``, by how much y is moved; DARTS takes 0.01.

    Returns:
        The estimator. It has no state; the look-ahead step is kept as the inner step.

    References:
        Liu, Simonyan, Yang (2019), eqs. (7)-(8).

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.finite_difference(0.025)._fields
        ('init', 'estimate')
    """

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        last = loop.length - 1
        before = jax.lax.stop_gradient(loop.run(x, loop.start, 0, last))
        inner = jax.lax.stop_gradient(loop.run(x, before, last, 1))
        value, (f_x, f_y) = loop.final.outer_gradients(x, inner.value)
        norm = optax.tree.norm(f_y)
        e = radius / jnp.where(norm > 0, norm, 1)
        by_x = jax.grad(loop.draws(last).inner)
        ahead, behind = (by_x(x, optax.tree.add_scale(before.value, s * e, f_y)) for s in (1, -1))
        mixed = optax.tree.scale(step / (2 * e), optax.tree.sub(ahead, behind))
        counts = {"gradients": loop.length + 3}
        return Estimate(inner, value, optax.tree.sub(f_x, mixed), state, counts)

    return Estimator(lambda x, y: (), estimate)
