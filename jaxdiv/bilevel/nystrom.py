"""The hypergradient with a Nyström sketch in the place of the Hessian: no linear system is iterated.

    v = (U Λ Uᵀ + ρ I)⁻¹ ∂F/∂y,    ∇Φ ≈ ∂F/∂x − J v,

with U Λ Uᵀ a sketch of H from as many products as it has columns, taken side by side and drawn anew each step. It is
exact for H + ρ I where the rank of H is at most that number, and the ridge alone acts on what the sketch has not seen.

References:
    Hataya, Yamada (2023), Nyström method for accurate and scalable implicit differentiation, eq. (6).
"""

import optax
from jaxtyping import PyTree

from jaxdiv import linalg
from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def nystrom(*, rank: int = 10, ridge: Numeric = 1e-2) -> Estimator:
    """Inverts a sketch of the Hessian.

    Args:
        rank: Columns of the sketch, at most the number of inner variables. Static.
        ridge: ρ > 0; the authors take 1e-2.

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `rank` is below 1 or a concrete `ridge` is not positive.

    Note:
        H is taken to be positive semidefinite; see `linalg.nystrom` for what the sketch does with the rest.

    References:
        Hataya, Yamada (2023), eq. (6).

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.nystrom(rank=5)._fields
        ('init', 'estimate')
    """
    checks.in_range("rank", rank, 1)
    checks.in_range("ridge", ridge, 0.0, open_low=True)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)
        losses = loop.final
        value, (f_x, f_y) = losses.outer_gradients(x, inner.value)
        _, product = losses.inner_products(x, inner.value)
        hvp = lambda u: product(u)[0]  # noqa: E731
        sketch = linalg.nystrom(hvp, f_y, loop.draws.own_key, rank=rank, ridge=ridge)
        hypergradient = optax.tree.sub(f_x, product(sketch.inverse(f_y))[1])
        counts = {"gradients": loop.length + 1, "products": rank + 1}
        return Estimate(inner, value, hypergradient, state, counts)

    return Estimator(lambda x, y: (), estimate)
