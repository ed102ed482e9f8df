"""How far the derivative at an approximate root is from the derivative of the root.

Let J(y) = −A(y)⁻¹ B(y) with A = ∂₁F, B = ∂₂F. If A is β-Lipschitz, B is γ-Lipschitz, ‖B(y*)‖ ≤ R and the
smallest singular values of A(ŷ) and A(y*) are at least α, then from
J(y*) − J(ŷ) = A(ŷ)⁻¹ (B(ŷ) − B(y*)) + (A(ŷ)⁻¹ − A(y*)⁻¹) B(y*),

    ‖J(ŷ) − J(y*)‖ ≤ C ‖ŷ − y*‖,      C = β R / α² + γ / α.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, theorem 1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


class ErrorBound(NamedTuple):
    """A bound of the error of an implicit derivative, in the spectral norm.

    Attributes:
        constant: C.
        bound: C times the distance.
    """

    constant: Float[Array, "*lanes"]
    bound: Float[Array, "*lanes"]


def error_bound(
    distance: Numeric | Float[Array, "*lanes"],
    *,
    alpha: Numeric,
    beta: Numeric,
    gamma: Numeric,
    radius: Numeric,
) -> ErrorBound:
    """Bounds the error of the derivative at a point from its distance to the root.

    Args:
        distance: A bound of ‖ŷ − y*‖; for a strongly monotone F, ``norm(F(y)) / alpha``.
        alpha: A positive lower bound of the singular values of ∂₁F at both points.
        beta: A Lipschitz constant of y ↦ ∂₁F(y, θ).
        gamma: A Lipschitz constant of y ↦ ∂₂F(y, θ).
        radius: R, a bound of ‖∂₂F(y*, θ)‖; it counts only where `beta` is not 0.

    Returns:
        C and the bound C · distance. Times ‖∇f‖ the latter bounds the error of a hypergradient through
        the solution, beside what the linear solve adds.

    Raises:
        ValueError: If a concrete `alpha` is not positive or another concrete argument is negative.

    References:
        Blondel et al. (2022), Efficient and modular implicit differentiation, theorem 1.

    Example:
        >>> constant, bound = error_bound(0.1, alpha=2.0, beta=1.0, gamma=3.0, radius=2.0)
        >>> print(f"{constant:.2f}, {bound:.2f}")
        2.00, 0.20
    """
    checks.in_range("alpha", alpha, 0.0, open_low=True)
    for name, x in (("distance", distance), ("beta", beta), ("gamma", gamma), ("radius", radius)):
        checks.in_range(name, x, 0.0)
    constant = jnp.asarray(beta * radius / alpha**2 + gamma / alpha, jnp.result_type(float))
    return ErrorBound(constant, constant * distance)
