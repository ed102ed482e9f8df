"""The hypergradient by the implicit function theorem, its linear system solved by any method of `linalg.solve`.

After the inner loop, at y ≈ y*(x),

    H v = ∂F/∂y,    ∇Φ ≈ ∂F/∂x − J v,

with H v and J v products of one linearization of ∂G/∂y. The system is warm-started from the last step's v.

References:
    Pedregosa (2016), Hyperparameter optimization with approximate gradient, algorithm 1 (conjugate gradients).
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithm 1 (AID).
"""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv import linalg
from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core.types import Numeric


def implicit_gradient(
    *,
    method: str = "cg",
    rtol: Numeric = 1e-5,
    max_steps: int | None = None,
    ridge: Numeric = 0.0,
    warm_start: bool = True,
) -> Estimator:
    """Solves the adjoint system by a Krylov or a dense method.

    Args:
        method: Of `linalg.solve`: ``"cg"`` where G is strictly convex, ``"minres"`` where H may be indefinite or
            singular, ``"cholesky"`` and ``"lu"`` for few variables.
        rtol: Relative residual at which the system counts as solved.
        max_steps: Most products; `linalg.solve`'s default.
        ridge: Added to the diagonal of H; a singular H, which ends STALLED, needs one or ``"minres"``.
        warm_start: Whether the last step's v is the first guess.

    Returns:
        The estimator. Its state is v.

    References:
        Pedregosa (2016), algorithm 1.

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.implicit_gradient(method="minres", rtol=1e-3)._fields
        ('init', 'estimate')
    """

    def init(x: PyTree, y: PyTree) -> PyTree:
        return optax.tree.zeros_like(y)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)
        value, (f_x, f_y) = loop.final.outer_gradients(x, inner.value)
        _, product = loop.final.inner_products(x, inner.value)
        options: dict[str, Any] = {"rtol": rtol, "max_steps": max_steps, "ridge": ridge, "method": method}
        guess = state if warm_start else None
        v, info = linalg.solve(lambda u: product(u)[0], f_y, symmetric=True, init=guess, **options)
        # A lane without a solution keeps its last adjoint.
        kept = jnp.isfinite(optax.tree.norm(v))
        counts = {
            "gradients": loop.length + 1,
            "products": info.steps + 1,
            "residual": info.residual,
            "status": info.status,
        }
        hypergradient = optax.tree.sub(f_x, product(v)[1])
        return Estimate(inner, value, hypergradient, optax.tree.where(kept, v, state), counts)

    return Estimator(init, estimate)
