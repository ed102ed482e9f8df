r"""Skewed KL divergences: KL against a mixture of both distributions.

    skewed_kl          KL(P ‖ αP + (1-α)Q)                       f(r) = r log(r / m),  m = αr + 1 - α
    skewed_reverse_kl  KL(Q ‖ αQ + (1-α)P)                       f(r) = -log(α + (1-α) r)
    skewed_js          α KL(P‖M) + (1-α) KL(Q‖M), M = αP + (1-α)Q

α = 0 gives KL in either direction for the first two, α = 1/2 the Jensen-Shannon divergence for the last.

References:
    Ko et al. (2024), DistiLLM: towards streamlined distillation for LLMs, arXiv 2402.03898.
    Agarwal et al. (2024), On-policy distillation of language models (GKD), arXiv 2306.13649, eq. (1).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.divergences.f_divergence import FDivergence
from jaxdiv.divergences.generator import Generator
from jaxdiv.divergences.log_ratio import exp_remainder, log_mix, scaled_remainder

Vector = Float[Array, "*n"]
Skew = Float[Array, ""]


def _below(a: Vector, alpha: Skew) -> Vector:
    # r E(w) with w = log(m / r), E(w) = exp(w) - 1 - w.
    return scaled_remainder(log_mix(a, 1.0 - alpha), a, log_mix(-a, alpha))


def _mirror_below(a: Vector, alpha: Skew) -> Vector:
    return exp_remainder(log_mix(-a, 1.0 - alpha))


def _prime(x: Vector, alpha: Skew) -> Vector:
    # log(m / r), written so that large log-ratios do not cancel.
    return (1.0 - alpha) * jnp.expm1(-log_mix(x, alpha)) - log_mix(-x, 1.0 - alpha)


def _mirror_prime(x: Vector, alpha: Skew) -> Vector:
    return -(1.0 - alpha) * jnp.expm1(-log_mix(x, 1.0 - alpha))


_SKEWED_KL = Generator(
    below=_below,
    f_prime=_prime,
    log_weight=lambda x, alpha: x + 2.0 * (jnp.log1p(-alpha) - log_mix(x, alpha)),
    slope=lambda alpha: 1.0 - alpha,
    at_zero=lambda alpha: 1.0 - alpha,
    prime_at_zero=lambda alpha: -math.inf,
)
_SKEWED_REVERSE_KL = Generator(
    below=_mirror_below,
    f_prime=_mirror_prime,
    log_weight=lambda x, alpha: 2.0 * (jnp.log1p(-alpha) - log_mix(-x, alpha)),
    slope=lambda alpha: alpha - 1.0,
    at_zero=lambda alpha: alpha - 1.0 - jnp.log(alpha),
    prime_at_zero=lambda alpha: -jnp.square(1.0 - alpha) / alpha,
)


def _both(kl: Generator, reverse_kl: Generator) -> Generator:
    """``alpha kl(alpha) + (1 - alpha) reverse_kl(1 - alpha)``."""
    return Generator(
        below=lambda a, w: w * kl.below(a, w) + (1.0 - w) * reverse_kl.below(a, 1.0 - w),
        f_prime=lambda x, w: w * kl.f_prime(x, w) + (1.0 - w) * reverse_kl.f_prime(x, 1.0 - w),
        # h = alpha (1 - alpha) r / m, where the two parts add up.
        log_weight=lambda x, w: jnp.log(w) + jnp.log1p(-w) - log_mix(-x, 1.0 - w),
        slope=lambda w: jnp.zeros_like(w),
        at_zero=lambda w: w * kl.at_zero(w) + (1.0 - w) * reverse_kl.at_zero(1.0 - w),
        prime_at_zero=lambda w: -math.inf,
    )


def _flipped(generator: Generator) -> Generator:
    """The generator at ``1 - alpha``."""
    below, f_prime, log_weight, slope, at_zero, prime_at_zero, *_ = generator
    return Generator(
        below=lambda a, w: below(a, 1.0 - w),
        f_prime=lambda x, w: f_prime(x, 1.0 - w),
        log_weight=lambda x, w: log_weight(x, 1.0 - w),
        slope=lambda w: slope(1.0 - w),
        at_zero=lambda w: at_zero(1.0 - w),
        prime_at_zero=lambda w: prime_at_zero(1.0 - w),
    )


_SKEWED_JS = _both(_SKEWED_KL, _SKEWED_REVERSE_KL)
_MIRRORED_SKEWED_JS = _flipped(_SKEWED_JS)


def skewed_kl(alpha: Numeric = 0.1) -> FDivergence:
    """Builds ``KL(P ‖ alpha P + (1 - alpha) Q)``, at most ``-log(alpha)``.

    Args:
        alpha: Share of P in the mixture, in [0, 1); 0 is KL(P‖Q). May be traced.

    Returns:
        The divergence; its adjoint is ``skewed_reverse_kl(alpha)``.

    Raises:
        ValueError: If a concrete `alpha` is out of range.

    Example:
        >>> p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
        >>> print(f"{skewed_kl(0.1).on_logits(p, q):.4f}")
        2.3026
    """
    checks.in_range("alpha", alpha, 0.0, 1.0, open_high=True)
    return FDivergence("skewed_kl", _SKEWED_KL, _SKEWED_REVERSE_KL, "skewed_reverse_kl", (alpha,))


def skewed_reverse_kl(alpha: Numeric = 0.1) -> FDivergence:
    """Builds ``KL(Q ‖ alpha Q + (1 - alpha) P)``; see `skewed_kl`."""
    return skewed_kl(alpha).adjoint()


def skewed_js(alpha: Numeric = 0.5) -> FDivergence:
    """Builds ``alpha KL(P‖M) + (1 - alpha) KL(Q‖M)`` with ``M = alpha P + (1 - alpha) Q``.

    Args:
        alpha: Weight of P, in (0, 1); 1/2 is the Jensen-Shannon divergence. May be traced.

    Returns:
        The divergence, at most the entropy of (alpha, 1 - alpha).

    Raises:
        ValueError: If a concrete `alpha` is out of range.

    Example:
        >>> p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
        >>> print(f"{skewed_js(0.5).on_logits(p, q):.4f}")
        0.6931
    """
    checks.in_range("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    return FDivergence("skewed_js", _SKEWED_JS, _MIRRORED_SKEWED_JS, "skewed_js_adjoint", (alpha,))
