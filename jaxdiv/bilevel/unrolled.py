"""The hypergradient of what the inner loop computes: the loop itself is differentiated.

With y_{t+1} = y_t − a ∂G/∂y(x, y_t) or any other update, Φ_T(x) = F(x, y_T(x)) and its gradient is exact for the
truncated problem. In reverse mode the loop's states are stored and each step is computed again; keeping only the last K
steps differentiable costs the memory of K. In forward mode the Jacobian ∂y_t/∂x goes along with y_t: memory of one step
for every number in x.

References:
    Franceschi, Donini, Frasconi, Pontil (2017), Forward and reverse gradient-based hyperparameter optimization.
    Shaban, Cheng, Hatch, Boots (2019), Truncated back-propagation for bilevel optimization.
"""

import jax
import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Inner, Loop
from jaxdiv.core import checks
from jaxdiv.core.types import Scalar


def unrolled(*, truncate: int | None = None, mode: str = "reverse") -> Estimator:
    """Differentiates the inner loop.

    Args:
        truncate: How many of the last inner steps carry derivatives; all by default. Static.
        mode: ``"reverse"``, or ``"forward"`` for few outer variables.

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `mode` is unknown or `truncate` is below 1.

    References:
        Shaban, Cheng, Hatch, Boots (2019), section 3.

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.unrolled(truncate=5)._fields
        ('init', 'estimate')
    """
    checks.one_of("mode", mode, ("reverse", "forward"))
    checks.in_range("truncate", 1 if truncate is None else truncate, 1)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        followed = loop.length if truncate is None else min(truncate, loop.length)
        begin = jax.lax.stop_gradient(loop.run(x, loop.start, 0, loop.length - followed))

        def reached(x: PyTree) -> tuple[Scalar, tuple[Scalar, Inner]]:
            inner = loop.run(x, begin, loop.length - followed, followed)
            value = loop.final.outer(x, inner.value)
            return value, (value, inner)

        derivative = jax.jacrev if mode == "reverse" else jax.jacfwd
        hypergradient, (value, inner) = derivative(reached, has_aux=True)(x)
        products = followed * (1 if mode == "reverse" else optax.tree.size(x))
        counts = {"gradients": loop.length + 1, "products": products}
        return Estimate(inner, value, hypergradient, state, counts)

    return Estimator(lambda x, y: (), estimate)
