"""Convex functions κ with a subgradient and the conjugate κ*, each a sum over the leaves of a tree.

Lion-K takes steps along ∇κ and so minimizes f(x) + κ*(λ x)/λ, with λ the weight decay:

| κ(m)                       | ∇κ(m)                       | κ*(u)                                  |
|----------------------------|-----------------------------|----------------------------------------|
| max {⟨m, x⟩ : ‖x‖ ≤ 1}     | the maximizer               | 0 if ‖u‖ ≤ 1                           |
| ‖m‖_p                      | sign(m) (abs(m)/‖m‖_p)^(p-1)| 0 if ‖u‖_q ≤ 1, 1/p + 1/q = 1          |
| Σ m²/2e, linear past e     | clip(m/e, -1, 1)            | Σ e u²/2 if ‖u‖_∞ ≤ 1                  |
| Σ max(abs(m) - e, 0)       | sign(m) where abs(m) > e    | Σ e abs(u) if ‖u‖_∞ ≤ 1                |
| Σ √(m² + e²) - e           | m/√(m² + e²)                | Σ e - e √(1 - u²) if ‖u‖_∞ ≤ 1         |

and κ* = +inf elsewhere, that is beyond the bound by more than rounding.

References:
    Chen, Liu, Liang, Liu (2024), Lion secretly solves constrained optimization: as Lyapunov predicts, table 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiv import convex
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


class Kappa(NamedTuple):
    """A convex function with κ(0) = 0 its minimum, on one leaf at a time.

    Attributes:
        value: ``(m) -> κ(m)``, a scalar.
        gradient: ``(m) -> ∇κ(m)``, a subgradient in the shape of `m`.
        conjugate: ``(u) -> κ*(u)``, a scalar.
    """

    value: Callable[[Float[Array, "*s"]], Scalar]
    gradient: Callable[[Float[Array, "*s"]], Float[Array, "*s"]]
    conjugate: Callable[[Float[Array, "*s"]], Scalar]


def ball_kappa(norm: convex.Norm) -> Kappa:
    """The support function of a norm's unit ball, that is the dual norm; it confines ‖x‖ to 1/λ.

    Args:
        norm: Of the constraint: ``convex.linf`` for Lion itself, ``convex.l2``, ``convex.l2.over(-1)`` for rows,
            ``convex.spectral`` for steps U Vᵀ (leaves that are vectors then need another κ, by `optax.partition`).

    Returns:
        κ(m) = ‖m‖_*, summed over the batch axes that the norm leaves.

    Example:
        >>> from jaxdiv import convex, transforms
        >>> kappa = transforms.ball_kappa(convex.linf)
        >>> kappa.gradient(jnp.array([3.0, -4.0])).tolist(), float(kappa.conjugate(jnp.array([0.5, 1.5])))
        ([1.0, -1.0], inf)
    """
    return Kappa(
        value=lambda m: jnp.sum(norm.dual(m)),
        gradient=lambda m: 0.0 - norm.lmo(m),
        conjugate=lambda u: _indicator(norm.value(u)),
    )


def lp_kappa(p: Numeric) -> Kappa:
    """The norm ‖m‖_p of a leaf; it confines ‖x‖_q to 1/λ with 1/p + 1/q = 1.

    Args:
        p: Above 1.

    Raises:
        ValueError: If p is not above 1.

    Example:
        >>> from jaxdiv import transforms
        >>> transforms.lp_kappa(2.0).gradient(jnp.array([3.0, -4.0])).round(3).tolist()
        [0.6000000238418579, -0.800000011920929]
    """
    checks.in_range("p", p, 1.0, open_low=True, open_high=True)

    def gradient(m: Array) -> Array:
        ratio, _ = _relative(m)
        return jnp.sign(m) * (ratio / _power_norm(ratio, p)) ** (p - 1)

    def value(m: Array) -> Array:
        ratio, largest = _relative(m)
        return largest * _power_norm(ratio, p)

    def conjugate(u: Array) -> Array:
        ratio, largest = _relative(u)
        return _indicator(largest * _power_norm(ratio, p / (p - 1)))

    return Kappa(value, gradient, conjugate)


def huber_kappa(e: Numeric) -> Kappa:
    """Huber's function: linear steps for small momenta, a box and the ridge (e λ/2) ‖x‖² as penalty.

    Args:
        e: Where the quadratic ends, above 0.

    Raises:
        ValueError: If e is not above 0.

    Example:
        >>> from jaxdiv import transforms
        >>> transforms.huber_kappa(2.0).gradient(jnp.array([1.0, -4.0])).tolist()
        [0.5, -1.0]
    """
    checks.in_range("e", e, 0.0, open_low=True, open_high=True)
    return Kappa(
        value=lambda m: jnp.sum(jnp.where(jnp.abs(m) <= e, m**2 / (2 * e), jnp.abs(m) - e / 2)),
        gradient=lambda m: jnp.clip(m / e, -1.0, 1.0),
        conjugate=lambda u: jnp.sum(e * u**2 / 2) + _box(u),
    )


def dead_zone_kappa(e: Numeric) -> Kappa:
    """The part of ‖m‖_1 beyond e: small momenta do not move, the penalty is a box and e ‖x‖_1.

    Args:
        e: Size of the zone, not negative; 0 is Lion.

    Raises:
        ValueError: If e is negative.

    Example:
        >>> from jaxdiv import transforms
        >>> transforms.dead_zone_kappa(2.0).gradient(jnp.array([1.0, -4.0])).tolist()
        [0.0, -1.0]
    """
    checks.in_range("e", e, 0.0, open_high=True)
    return Kappa(
        value=lambda m: jnp.sum(jnp.maximum(jnp.abs(m) - e, 0.0)),
        gradient=lambda m: jnp.where(jnp.abs(m) > e, jnp.sign(m), 0.0),
        conjugate=lambda u: jnp.sum(e * jnp.abs(u)) + _box(u),
    )


def pseudo_huber_kappa(e: Numeric) -> Kappa:
    """A smooth ‖m‖_1, whose conjugate is a barrier that meets the box with vertical slope.

    Args:
        e: Of the rounding at 0, above 0.

    Raises:
        ValueError: If e is not above 0.

    Example:
        >>> from jaxdiv import transforms
        >>> transforms.pseudo_huber_kappa(4.0).gradient(jnp.array([3.0])).round(3).tolist()
        [0.6000000238418579]
    """
    checks.in_range("e", e, 0.0, open_low=True, open_high=True)
    return Kappa(
        # m²/(√(m² + e²) + e) is the difference without its cancellation.
        value=lambda m: jnp.sum(m**2 / (jnp.hypot(m, e) + e)),
        gradient=lambda m: m / jnp.hypot(m, e),
        conjugate=lambda u: jnp.sum(e - e * jnp.sqrt(jnp.maximum(1 - u**2, 0.0))) + _box(u),
    )


def _indicator(bounded: Array) -> Scalar:
    """0 where all are at most 1 to rounding, else +inf; NaN stays NaN."""
    return jnp.sum(
        jnp.where(_within(bounded), 0.0 * bounded, jnp.where(jnp.isnan(bounded), bounded, jnp.inf))
    )


def _box(u: Array) -> Scalar:
    return _indicator(jnp.abs(u))


def _within(x: Array) -> Bool[Array, "..."]:
    return x <= 1 + 16 * float(np.finfo(x.dtype).eps)


def _relative(m: Array) -> tuple[Array, Array]:
    """Magnitudes over the largest one, so that no power over- or underflows as a whole, and the largest."""
    largest = jnp.max(jnp.abs(m))
    return jnp.abs(m) / jnp.where(largest == 0, 1.0, largest), largest


def _power_norm(ratio: Array, p: Numeric) -> Array:
    total = jnp.sum(ratio**p)
    return jnp.where(total == 0, 1.0, total) ** (1 / p)
