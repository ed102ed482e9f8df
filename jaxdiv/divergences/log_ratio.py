"""Functions of a log-ratio that keep their digits near 0 and their derivatives far from it.

`phi(k, x) = sum_j x^j / (j + k)!`, so that `expm1(x) = x phi(1, x)` and `exp(x) - 1 - x = x^2 phi(2, x)`
without cancellation. `continued(fn, a)` follows `fn` until it leaves the floating range and goes on
linearly from there: the value where `|fn|` last stays below the root of the largest float, with the
slope it has there. Values and derivatives stay finite, and monotone where `fn` is convex.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Scalarwise = Callable[[Float[Array, "*n"]], Float[Array, "*n"]]

_SERIES_RADIUS = 0.5
_GRID = np.geomspace(1e-2, 1e6, 512)


def series_terms(dtype: jnp.dtype) -> int:
    """The number of terms after which ``0.5^j / j!`` and ``0.1^j`` are below the rounding of `dtype`."""
    return 16 if jnp.finfo(dtype).nmant > 23 else 9


def phi(k: int, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns ``sum_j x^j / (j + k)!`` for `k` in {1, 2}: the tail of exp over ``x^k``."""
    small = jnp.abs(x) < _SERIES_RADIUS
    near = jnp.where(small, x, 0.0)
    series = jnp.zeros_like(x)
    for j in reversed(range(series_terms(x.dtype))):
        series = series * near + 1.0 / math.factorial(j + k)
    far = jnp.where(small, 1.0, x)
    closed = jnp.expm1(far) / far if k == 1 else (jnp.expm1(far) - far) / (far * far)
    return jnp.where(small, series, closed)


def log1p_over(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns ``log(1 + x) / x``, with all derivatives at 0."""
    small = jnp.abs(x) < 0.1
    near = jnp.where(small, x, 0.0)
    series = jnp.zeros_like(x)
    for j in reversed(range(series_terms(x.dtype))):
        series = series * -near + 1.0 / (j + 1)
    far = jnp.where(small, 1.0, x)
    return jnp.where(small, series, jnp.log1p(far) / far)


def exp_remainder(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns ``exp(x) - 1 - x``, nonnegative and with relative accuracy at 0."""
    small = jnp.abs(x) < _SERIES_RADIUS
    near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    return jnp.where(small, near * near * phi(2, near), jnp.expm1(far) - far)


def scaled_remainder(
    x: Float[Array, "*n"], a: Float[Array, "*n"], gap: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Returns ``exp(-a) (exp(x) - 1 - x)`` for ``x <= a``, where exp(x) alone may overflow.

    `gap` is ``x - a``, which the difference of large numbers would not give exactly.
    """
    small = x < _SERIES_RADIUS
    near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    decay = jnp.exp(-a)
    closed = jnp.exp(jnp.where(small, 0.0, gap)) - decay * (1.0 + far)
    return jnp.where(small, decay * exp_remainder(near), closed)


def _log_mix_up(a: Float[Array, "*n"], alpha: Float[Array, ""]) -> Float[Array, "*n"]:
    cap = 0.5 * math.log(float(jnp.finfo(a.dtype).max))
    near = jnp.log1p(alpha * jnp.expm1(jnp.minimum(a, cap)))
    positive = alpha > 0
    safe = jnp.where(positive, alpha, 0.5)
    far = jnp.logaddexp(jnp.log(safe) + a, jnp.log1p(-jnp.minimum(safe, 0.5)))
    return jnp.where((a > cap) & positive, far, near)


def log_mix(log_ratio: Float[Array, "*n"], alpha: Float[Array, ""]) -> Float[Array, "*n"]:
    """Returns ``log(alpha r + 1 - alpha)`` for `alpha` in [0, 1], exact at both ends."""
    up = log_ratio > 0
    a = jnp.where(up, log_ratio, -log_ratio)
    light = alpha <= 0.5
    direct = jnp.log1p(jnp.where(light, alpha, 0.5) * jnp.expm1(-a))
    rest = jnp.where(light, 0.5, 1.0 - alpha)
    # Past a = -log(1 - alpha), log(r) would cancel: the constant leads.
    flat = (rest > 0) & (jnp.log(jnp.where(rest > 0, rest, 1.0)) + a > 0)
    base = jnp.where(flat, rest, 0.5)
    level = jnp.log(base) + jnp.log1p((1.0 - base) * jnp.exp(-a) / base)
    heavy = jnp.where(flat, level, _log_mix_up(jnp.where(flat, 0.0, a), rest) - a)
    down = jnp.where(light, direct, heavy)
    return jnp.where(up, _log_mix_up(a, alpha), down)


def reach(fn: Scalarwise, dtype: jnp.dtype) -> Float[Array, ""]:
    """Returns the last point of a geometric grid up to which ``|fn|`` stays below the root of max."""
    grid = jnp.asarray(_GRID, dtype)
    values = fn(grid)
    ok = jnp.isfinite(values) & (jnp.abs(values) <= math.sqrt(float(jnp.finfo(dtype).max)))
    last = jnp.where(jnp.all(ok), _GRID.size, jnp.argmin(ok)) - 1
    return jax.lax.stop_gradient(grid[jnp.maximum(last, 0)])


def continued(fn: Scalarwise, a: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Evaluates `fn` at ``a >= 0``, continued linearly past `reach`."""
    edge = reach(fn, a.dtype)
    value, slope = jax.jvp(fn, (edge,), (jnp.ones_like(edge),))
    # A slope at the level of rounding is that of a function which has reached its limit.
    slope = jnp.where(jnp.abs(slope) > 8.0 * jnp.finfo(a.dtype).eps * jnp.abs(value), slope, 0.0)
    inside = a <= edge
    return jnp.where(inside, fn(jnp.where(inside, a, edge)), value + slope * (a - edge))


def bounded_exp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns ``exp(x)``, continued linearly where it exceeds the root of the largest float."""
    edge = 0.5 * math.log(float(jnp.finfo(x.dtype).max))
    rest = jnp.where(x > edge, x - edge, 0.0)
    return jnp.exp(jnp.where(x > edge, edge, x)) * (1.0 + rest)


def limit(fn: Scalarwise, dtype: jnp.dtype) -> Float[Array, ""]:
    """Returns ``fn(inf)`` of a monotone `fn`, judged from its steps over the last octaves it reaches.

    The limit is finite if the last step is smaller than the one before it (a power law that dies out),
    or at the level of rounding; a logarithm doubles its step.
    """
    edge = reach(fn, dtype)
    early, middle, late = (fn(edge * share) for share in (0.25, 0.5, 1.0))
    step, before = jnp.abs(late - middle), jnp.abs(middle - early)
    rounding = 4.0 * jnp.finfo(dtype).eps * edge * (1.0 + jnp.abs(late))
    return jnp.where((step < 0.999 * before) | (step <= rounding), late, jnp.sign(late - middle) * jnp.inf)
