"""Two-point differences of the whole hyperobjective: it needs values alone.

With directions u_j ~ N(0, I) and Φ_T(x) = F(x, y_T(x)) on the same draws,

    ∇Φ ≈ (1/Q) Σ_j u_j [Φ_T(x + μ u_j) − Φ_T(x − μ u_j)] / (2 μ).

References:
    Nesterov, Spokoiny (2017), Random gradient-free minimization of convex functions, eq. (26).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric


def zeroth_order(*, directions: int = 10, radius: Numeric = 0.1) -> Estimator:
    """Estimates the hypergradient from values at perturbed x; the loops run side by side.

    Args:
        directions: Q. Static.
        radius: μ, the size of the perturbations.

    Returns:
        The estimator. It has no state. Its variance grows with the number of outer variables.

    Raises:
        ValueError: If `directions` is below 1.

    References:
        Nesterov, Spokoiny (2017), eq. (26).

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.zeroth_order(directions=4)._fields
        ('init', 'estimate')
    """
    checks.in_range("directions", directions, 1)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)

        def reached(x: PyTree) -> jax.Array:
            return loop.final.outer(x, loop.solve(x).value)

        def slope(key: Key) -> PyTree:
            u = optax.tree.random_like(key, x)
            ahead, behind = (reached(optax.tree.add_scale(x, s * radius, u)) for s in (1, -1))
            return optax.tree.scale((ahead - behind) / (2 * radius), u)

        slopes = jax.vmap(slope)(jax.random.split(loop.draws.own_key, directions))
        hypergradient = jax.tree.map(lambda s: jnp.mean(s, 0), slopes)
        value = loop.final.outer(x, inner.value)
        counts = {"gradients": (2 * directions + 1) * loop.length}
        return Estimate(inner, value, hypergradient, state, counts)

    return Estimator(lambda x, y: (), estimate)
