"""PZOBO: the response of y to x from a few perturbed inner loops, without second derivatives.

With directions u_j ~ N(0, I) and y_j the end of the inner loop at x + μ u_j, from the same start on the same draws,

    ∇Φ ≈ ∂F/∂x + (1/Q) Σ_j u_j ⟨(y_j − y) / μ, ∂F/∂y⟩.

References:
    Sow, Ji, Liang (2022), On the convergence theory for Hessian-free bilevel algorithms, algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric


def pzobo(*, directions: int = 10, radius: Numeric = 0.1) -> Estimator:
    """Estimates the hypergradient from perturbed inner loops, which run side by side.

    Args:
        directions: Q. Static.
        radius: μ, the size of the perturbations.

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `directions` is below 1.

    Note:
        The benchmark of Dagréou et al. takes 10 directions and a radius of 0.1.

    References:
        Sow, Ji, Liang (2022), algorithm 1.

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.pzobo(directions=4)._fields
        ('init', 'estimate')
    """
    checks.in_range("directions", directions, 1)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)
        value, (f_x, f_y) = loop.final.outer_gradients(x, inner.value)

        def response(key: Key) -> PyTree:
            u = optax.tree.random_like(key, x)
            moved = loop.solve(optax.tree.add_scale(x, radius, u)).value
            slope = optax.tree.vdot(optax.tree.sub(moved, inner.value), f_y) / radius
            return optax.tree.scale(slope, u)

        responses = jax.vmap(response)(jax.random.split(loop.draws.own_key, directions))
        hypergradient = jax.tree.map(lambda f, r: f + jnp.mean(r, 0), f_x, responses)
        counts = {"gradients": (directions + 1) * loop.length + 1}
        return Estimate(inner, value, hypergradient, state, counts)

    return Estimator(lambda x, y: (), estimate)
