"""Generators from a user's convex f of the ratio, by automatic differentiation.

`f'` and `f''` are derivatives of f, the limits at 0 and infinity are judged from the last octaves that
floats reach, and the conjugate is left to the root of `f'`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.divergences.generator import Generator
from jaxdiv.divergences.log_ratio import limit

ScalarFunction = Callable[..., Float[Array, ""]]


def _derivative(f: ScalarFunction) -> ScalarFunction:
    return lambda r, *options: jax.jvp(lambda x: f(x, *options), (r,), (jnp.ones_like(r),))[1]


def _up_to(share: float, fn: Callable[[Array], Array], a: Array) -> Array:
    """Returns ``fn(a)``, NaN from that share of the logarithm of the largest float on."""
    inside = a <= share * jnp.log(jnp.finfo(a.dtype).max)
    return jnp.where(inside, fn(jnp.where(inside, a, 0.0)), jnp.nan)


def generator_from_f(f: ScalarFunction) -> Generator:
    """Returns the centered generator of `f(r, *options)`, elementwise in r."""
    prime = _derivative(f)
    second = _derivative(prime)

    def centered(a: Array, *options: Array) -> Array:
        slope = prime(jnp.ones((), a.dtype), *options)
        return f(jnp.exp(-a), *options) - slope * jnp.expm1(-a)

    def below(a: Array, *options: Array) -> Array:
        # Beyond, derivatives overflow: those of 1/r are powers up to the fourth.
        return _up_to(0.24, lambda a: centered(a, *options), a)

    def f_prime(x: Array, *options: Array) -> Array:
        return prime(jnp.exp(x), *options) - prime(jnp.ones((), x.dtype), *options)

    def log_weight(x: Array, *options: Array) -> Array:
        # Beyond, f'' and its cancellations say more about rounding than about f.
        far = 0.2 * jnp.log(jnp.finfo(x.dtype).max)
        x = jnp.clip(x, -far, far)
        curvature = second(jnp.exp(x), *options)
        curved = curvature > 0
        return jnp.where(curved, 2.0 * x + jnp.log(jnp.where(curved, curvature, 1.0)), -jnp.inf)

    def slope(*options: Array) -> Array:
        return prime(jnp.ones(()), *options)

    def at_zero(*options: Array) -> Array:
        # r stays a normal number, or the derivatives in the options are NaN.
        return limit(lambda a: _up_to(0.98, lambda a: centered(a, *options), a), jnp.result_type(float))

    def prime_at_zero(*options: Array) -> Array:
        return limit(lambda a: f_prime(-a, *options), jnp.result_type(float))

    return Generator(below, f_prime, log_weight, slope, at_zero, prime_at_zero)


def mirrored(f: ScalarFunction) -> ScalarFunction:
    """Returns ``r -> r f(1/r)``, the f of the swapped arguments."""
    return lambda r, *options: r * f(1.0 / r, *options)
