r"""The α-divergences (Cressie-Read power divergences with λ = α - 1).

    f(r) = (r^α - α r - (1 - α)) / (α (α - 1)),   f'(r) = (r^(α-1) - 1) / (α - 1),   h(r) = r^α

α → 1 is KL(P‖Q), α → 0 is KL(Q‖P), α = 1/2 four times the squared Hellinger distance, α = 2 and -1 half
of Pearson's and Neyman's χ². Swapped arguments are 1 - α. In ``a = -log r``,

    f = ∫_0^a (e^(-s) - e^(-a)) e^((1-α)s) ds = a [φ(-αa) - e^(-a) φ((1-α)a)],   φ(x) = (e^x - 1) / x,

which is smooth in α everywhere; near a = 0 its power series is used.

References:
    Cressie, Read (1984), Multinomial goodness-of-fit tests.
    Minka (2005), Divergence measures and message passing, eq. (10).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core.types import Numeric
from jaxdiv.divergences.f_divergence import FDivergence
from jaxdiv.divergences.generator import Generator
from jaxdiv.divergences.log_ratio import log1p_over, phi, series_terms

Vector = Float[Array, "*n"]
Order = Float[Array, ""]


def _below(a: Vector, alpha: Order) -> Vector:
    small = a * jnp.maximum(jnp.abs(alpha), 1.0) < 0.5
    near, far = jnp.where(small, a, 0.0), jnp.where(small, 1.0, a)
    # sum_k (-a)^k / k! (1 + alpha + ... + alpha^(k-2))
    power, geometric, series = 0.5 * near * near, jnp.ones_like(alpha), 0.5 * near * near
    for k in range(3, 3 + series_terms(a.dtype)):
        power = power * -near / k
        geometric = 1.0 + alpha * geometric
        series = series + power * geometric
    rest = (1.0 - alpha) * far
    flat = jnp.abs(rest) < 0.5
    level = jnp.exp(-far) * phi(1, jnp.where(flat, rest, 0.0))
    steep = (jnp.exp(-alpha * far) - jnp.exp(-far)) / jnp.where(flat, 1.0, rest)
    return jnp.where(small, series, far * (phi(1, -alpha * far) - jnp.where(flat, level, steep)))


def _prime(x: Vector, alpha: Order) -> Vector:
    return x * phi(1, (alpha - 1.0) * x)


def _at_zero(alpha: Order) -> Order:
    positive = alpha > 0
    return jnp.where(positive, 1.0 / jnp.where(positive, alpha, 1.0), jnp.inf)


def _prime_at_zero(alpha: Order) -> Order:
    bounded = alpha > 1
    return jnp.where(bounded, -1.0 / jnp.where(bounded, alpha - 1.0, 1.0), -jnp.inf)


def _conjugate(y: Vector, alpha: Order) -> Vector:
    log_maximizer = y * log1p_over((alpha - 1.0) * y)
    return log_maximizer * phi(1, alpha * log_maximizer)


_ALPHA = Generator(
    below=_below,
    f_prime=_prime,
    log_weight=lambda x, alpha: alpha * x,
    slope=jnp.zeros_like,
    at_zero=_at_zero,
    prime_at_zero=_prime_at_zero,
    conjugate=_conjugate,
)
_MIRRORED = Generator(
    below=lambda a, alpha: _below(a, 1.0 - alpha),
    f_prime=lambda x, alpha: _prime(x, 1.0 - alpha),
    log_weight=lambda x, alpha: (1.0 - alpha) * x,
    slope=jnp.zeros_like,
    at_zero=lambda alpha: _at_zero(1.0 - alpha),
    prime_at_zero=lambda alpha: _prime_at_zero(1.0 - alpha),
    conjugate=lambda y, alpha: _conjugate(y, 1.0 - alpha),
)


def alpha_divergence(alpha: Numeric = 0.5) -> FDivergence:
    """Builds the α-divergence of order `alpha`.

    Args:
        alpha: Any real order; 0 and 1 are the two KL divergences, and the divergence is smooth in
            `alpha` there. May be traced.

    Returns:
        The divergence.

    Example:
        >>> import jax
        >>> from jaxdiv import divergences
        >>> p, q = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
        >>> value = jax.vmap(lambda a: alpha_divergence(a).on_logits(p, q))(jnp.array([1.0, 2.0]))
        >>> print(f"{value[0]:.4f} {value[1]:.4f} {divergences.get('kl').on_logits(p, q):.4f}")
        0.4621 0.5431 0.4621
    """
    return FDivergence("alpha", _ALPHA, _MIRRORED, "alpha_adjoint", (alpha,))
