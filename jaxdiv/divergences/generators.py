r"""The f-divergences without options.

| name | f(r) | D_f(P‖Q) |
|---|---|---|
| kl | r log r | KL(P‖Q) |
| reverse_kl | -log r | KL(Q‖P) |
| js | half of js2 | JS = (KL(P‖M) + KL(Q‖M)) / 2, M = (P+Q)/2; at most log 2 |
| js2 | r log r - (r+1) log((r+1)/2) | KL(P‖M) + KL(Q‖M) |
| jeffreys | (r-1) log r | KL(P‖Q) + KL(Q‖P) |
| softened_reverse_kl | (r+1) log((r+1)/(2r)) | 2 KL(M‖P) |
| softened_kl | (r+1) log((r+1)/2) | 2 KL(M‖Q) |
| squared_hellinger | 1 - sqrt r | 1 - Σ sqrt(PQ) |
| tv | abs(r-1) / 2 | total variation |
| pearson_chi2 | (r-1)² | Σ (P-Q)²/Q |
| neyman_chi2 | (r-1)²/r | Σ (P-Q)²/P |
| le_cam | (r-1)² / (2(r+1)) | Σ (P-Q)² / (2(P+Q)) |

Below each is centered and written in ``a = -log r >= 0``.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.divergences.f_divergence import FDivergence
from jaxdiv.divergences.generator import Generator
from jaxdiv.divergences.log_ratio import exp_remainder, scaled_remainder

_LOG2 = math.log(2.0)


def _half_mix(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``log((1 + r) / 2)``, with relative accuracy at r = 1 and beyond overflow."""
    up = x > 0
    return jnp.where(up, x, 0.0) + jnp.log1p(0.5 * jnp.expm1(jnp.where(up, -x, x)))


def _tilt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``x tanh x - log cosh x`` for x >= 0, from which js2 is made."""
    small = x < 1.0
    near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    t = jnp.tanh(near)
    e = jnp.exp(-2.0 * far)
    closed = _LOG2 - jnp.log1p(e) - 2.0 * far * e / (1.0 + e)
    return jnp.where(small, near * t + 0.5 * jnp.log1p(-t * t), closed)


_KL = Generator(
    below=lambda a: scaled_remainder(a, a, jnp.zeros_like(a)),
    f_prime=lambda x: x,
    log_weight=lambda x: x,
    slope=lambda: 1.0,
    at_zero=lambda: 1.0,
    prime_at_zero=lambda: -math.inf,
    conjugate=jnp.expm1,
)
_REVERSE_KL = Generator(
    below=lambda a: exp_remainder(-a),
    f_prime=lambda x: -jnp.expm1(-x),
    log_weight=jnp.zeros_like,
    slope=lambda: -1.0,
    at_zero=lambda: math.inf,
    prime_at_zero=lambda: -math.inf,
    conjugate=lambda y: -jnp.log1p(-y),
)
_JS2 = Generator(
    below=lambda a: (1.0 + jnp.exp(-a)) * _tilt(0.5 * a),
    f_prime=lambda x: -_half_mix(-x),
    log_weight=jax.nn.log_sigmoid,
    slope=lambda: 0.0,
    at_zero=lambda: _LOG2,
    prime_at_zero=lambda: -math.inf,
    conjugate=lambda y: -jnp.log1p(-jnp.expm1(y)),
)
_JS = Generator(
    below=lambda a: 0.5 * _JS2.below(a),
    f_prime=lambda x: 0.5 * _JS2.f_prime(x),
    log_weight=lambda x: jax.nn.log_sigmoid(x) - _LOG2,
    slope=lambda: 0.0,
    at_zero=lambda: 0.5 * _LOG2,
    prime_at_zero=lambda: -math.inf,
    conjugate=lambda y: -0.5 * jnp.log1p(-jnp.expm1(2.0 * y)),
)
_JEFFREYS = Generator(
    below=lambda a: -a * jnp.expm1(-a),
    f_prime=lambda x: x - jnp.expm1(-x),
    log_weight=jax.nn.softplus,
    slope=lambda: 0.0,
    at_zero=lambda: math.inf,
    prime_at_zero=lambda: -math.inf,
)
_SOFTENED_REVERSE_KL = Generator(
    below=lambda a: (1.0 + jnp.exp(-a)) * exp_remainder(-_half_mix(a)),
    f_prime=lambda x: _half_mix(-x) - jnp.expm1(-x),
    log_weight=lambda x: jax.nn.log_sigmoid(-x),
    slope=lambda: -1.0,
    at_zero=lambda: math.inf,
    prime_at_zero=lambda: -math.inf,
)
_SOFTENED_KL = Generator(
    below=lambda a: (1.0 + jnp.exp(-a)) * exp_remainder(-_half_mix(-a)),
    f_prime=_half_mix,
    log_weight=lambda x: x + jax.nn.log_sigmoid(x),
    slope=lambda: 1.0,
    at_zero=lambda: 1.0 - _LOG2,
    prime_at_zero=lambda: -_LOG2,
    conjugate=lambda y: 2.0 * jnp.expm1(y) - y,
)
_SQUARED_HELLINGER = Generator(
    below=lambda a: 0.5 * jnp.square(jnp.expm1(-0.5 * a)),
    f_prime=lambda x: -0.5 * jnp.expm1(-0.5 * x),
    log_weight=lambda x: 0.5 * x - 2.0 * _LOG2,
    slope=lambda: -0.5,
    at_zero=lambda: 0.5,
    prime_at_zero=lambda: -math.inf,
    conjugate=lambda y: y / (1.0 - 2.0 * y),
)
_TV = Generator(
    below=lambda a: -0.5 * jnp.expm1(-a),
    f_prime=lambda x: 0.5 * jnp.sign(x),
    log_weight=lambda x: jnp.full_like(x, -math.inf),
    slope=lambda: 0.0,
    at_zero=lambda: 0.5,
    prime_at_zero=lambda: -0.5,
    conjugate=lambda y: y,
    real_conjugate=lambda y: jnp.where(jnp.abs(y) > 0.5, jnp.inf, y),
)
_PEARSON_CHI2 = Generator(
    below=lambda a: jnp.square(jnp.expm1(-a)),
    f_prime=lambda x: 2.0 * jnp.expm1(x),
    log_weight=lambda x: _LOG2 + 2.0 * x,
    slope=lambda: 0.0,
    at_zero=lambda: 1.0,
    prime_at_zero=lambda: -2.0,
    conjugate=lambda y: y + 0.25 * y * y,
    real_conjugate=lambda y: y + 0.25 * y * y,
)
_NEYMAN_CHI2 = Generator(
    below=lambda a: -jnp.expm1(a) * jnp.expm1(-a),
    f_prime=lambda x: -jnp.expm1(-2.0 * x),
    log_weight=lambda x: _LOG2 - x,
    slope=lambda: 0.0,
    at_zero=lambda: math.inf,
    prime_at_zero=lambda: -math.inf,
    conjugate=lambda y: 2.0 * y / (1.0 + jnp.sqrt(1.0 - y)),
)
_LE_CAM = Generator(
    below=lambda a: 0.5 * jnp.square(jnp.expm1(-a)) / (1.0 + jnp.exp(-a)),
    f_prime=lambda x: 0.5 - 2.0 * jnp.square(jax.nn.sigmoid(-x)),
    log_weight=lambda x: 2.0 * (x + _LOG2) - 3.0 * jax.nn.softplus(x),
    slope=lambda: 0.0,
    at_zero=lambda: 0.5,
    prime_at_zero=lambda: -1.5,
    conjugate=lambda y: 4.0 * y / (1.0 + jnp.sqrt(1.0 - 2.0 * y)) - y,
)
# The usual f of the swapped Hellinger distance, r - sqrt r, has the opposite slope.
_MIRRORED_HELLINGER = _SQUARED_HELLINGER._replace(slope=lambda: 0.5)

PLAIN = {
    divergence.name: divergence
    for divergence in (
        FDivergence("kl", _KL, _REVERSE_KL, "reverse_kl"),
        FDivergence("reverse_kl", _REVERSE_KL, _KL, "kl"),
        FDivergence("js", _JS, _JS, "js"),
        FDivergence("js2", _JS2, _JS2, "js2"),
        FDivergence("jeffreys", _JEFFREYS, _JEFFREYS, "jeffreys"),
        FDivergence("softened_reverse_kl", _SOFTENED_REVERSE_KL, _SOFTENED_KL, "softened_kl"),
        FDivergence("softened_kl", _SOFTENED_KL, _SOFTENED_REVERSE_KL, "softened_reverse_kl"),
        FDivergence("squared_hellinger", _SQUARED_HELLINGER, _MIRRORED_HELLINGER, "squared_hellinger"),
        FDivergence("tv", _TV, _TV, "tv"),
        FDivergence("pearson_chi2", _PEARSON_CHI2, _NEYMAN_CHI2, "neyman_chi2"),
        FDivergence("neyman_chi2", _NEYMAN_CHI2, _PEARSON_CHI2, "pearson_chi2"),
        FDivergence("le_cam", _LE_CAM, _LE_CAM, "le_cam"),
    )
}
"""The divergences without options, by name."""
