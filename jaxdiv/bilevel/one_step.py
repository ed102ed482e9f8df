"""Jacobian-free and phantom gradients: a few steps beyond the end of the inner loop carry the derivative.

With S(x, y) one inner step and y⁰ = y_T a constant,

    y^{j+1} = (1 − λ) y^j + λ S(x, y^j),  j < k,      ∇Φ ≈ d F(x, y^k(x)) / dx.

k = 1, λ = 1 is the Jacobian-free (one-step) gradient: the Neumann series without its first term's successors.

References:
    Fung, Heaton, Li, McKenzie, Osher, Yin (2022), JFB: Jacobian-free backpropagation for implicit networks.
    Geng, Zhang, Bai, Wang, Lin (2021), On training implicit models, eq. (9).
    Bolte, Pauwels, Vaiter (2023), One-step differentiation of iterative algorithms.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


def one_step(*, steps: int = 1, damping: Numeric = 1.0) -> Estimator:
    """Differentiates a few damped steps from the loop's end, which themselves are not kept.

    Args:
        steps: k. Static.
        damping: λ, in (0, 1].

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `steps` is below 1 or a concrete `damping` is outside (0, 1].

    References:
        Geng, Zhang, Bai, Wang, Lin (2021), eq. (9).

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.one_step(steps=5, damping=0.5)._fields
        ('init', 'estimate')
    """
    checks.in_range("steps", steps, 1)
    checks.in_range("damping", damping, 0.0, 1.0, open_low=True)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)

        def beyond(x: PyTree) -> Scalar:
            def damped(y: PyTree, i: Array) -> tuple[PyTree, None]:
                # Every step with the transform's state that the next inner step would have.
                after = loop.run(x, inner._replace(value=y), i, 1).value
                return jax.tree.map(lambda old, new: old + damping * (new - old), y, after), None

            following = loop.length + 1 + jnp.arange(steps)
            return loop.final.outer(x, jax.lax.scan(damped, inner.value, following)[0])

        value, hypergradient = jax.value_and_grad(beyond)(x)
        counts = {"gradients": loop.length + steps + 1, "products": steps}
        return Estimate(inner, value, hypergradient, state, counts)

    return Estimator(lambda x, y: (), estimate)
