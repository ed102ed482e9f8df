"""The hypergradient without its second term, ∂F/∂x alone: alternating descent, first-order DARTS.

What x does through y is ignored. It serves where that is small, and as the lower control of every other estimator.

References:
    Liu, Simonyan, Yang (2019), DARTS: Differentiable architecture search, section 2.3 (first-order approximation).
"""

import jax
from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop


def first_order() -> Estimator:
    """Takes ∂F/∂x at the end of the inner loop.

    Returns:
        The estimator. It has no state.

    References:
        Liu, Simonyan, Yang (2019), section 2.3.

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.first_order()._fields
        ('init', 'estimate')
    """

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)
        value, hypergradient = jax.value_and_grad(loop.final.outer)(x, inner.value)
        return Estimate(inner, value, hypergradient, state, {"gradients": loop.length + 1})

    return Estimator(lambda x, y: (), estimate)
