"""How far the marginals of a plan may be from the given weights.

A marginal is a penalty D(P1 | a), by which the plan's row masses r = P1 may leave the weights a. In the dual
it appears as ``value(f, a) = -D*(-f)``, concave in the potential f, whose derivative is the mass

    target(f, a) = the r that minimizes D(r | a) + f·r

that f asks for; ``residual(r, f, a) = r - target``. A Sinkhorn half-step is ``update(s, a, epsilon)``, the f
with

    target(f, a) = a exp((f - s) / epsilon),      s = softmin of the other potential.

    Exact()   r = a                                f = s
    KL(rho)   D = rho KL(r | a)                    f = s rho / (rho + epsilon)
    TV(rho)   D = rho |r - a|_1                    f = clip(s, -rho, rho)
    L2(rho)   D = rho/2 |r - a|^2                  f = s + epsilon log of the root below

For L2, ``a - f/rho = a exp((f - s)/epsilon)`` gives ``f = rho a - epsilon w`` with the Wright omega function
``w + log w = log(rho a / epsilon) + (rho a - s) / epsilon``. A weight of 0 gives no mass under any of them.

References:
    Chizat, Peyré, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport, table 1.
    Séjourné, Feydy, Vialard, Trouvé, Peyré (2019), Sinkhorn divergences for unbalanced optimal transport.
"""

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass, xlogy
from jaxdiv.core.types import Numeric


class Marginal(Protocol):
    """A penalty on one marginal."""

    @property
    def exact(self) -> bool:
        """Whether the marginal is the constraint r = a."""

    @property
    def smooth(self) -> bool:
        """Whether the target has a derivative in f, as Newton's method needs."""

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step."""

    def value(self, f: Array, a: Array) -> Array:
        """``-D*(-f)`` for each entry."""

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """The mass r minus what f asks for, 0 at the optimum."""

    def stiffness(self, f: Array, a: Array) -> Array:
        """``-d target / d f >= 0``; inf where f cannot move."""

    def held(self, f: Array) -> Array:
        """The potential as a function of options that bound it."""

    def penalty(self, r: Array, a: Array) -> Array:
        """``D(r | a)`` for each entry; 0 for a constraint."""


class Free:
    """What marginals share that are neither exact nor smooth, not bounded by an option, and free of charge."""

    exact: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    def stiffness(self, f: Array, a: Array) -> Array:
        """0, [n]."""
        return jnp.zeros_like(f)

    def held(self, f: Array) -> Array:
        """f, [n]."""
        return f

    def penalty(self, r: Array, a: Array) -> Array:
        """0, [n]."""
        return jnp.zeros_like(r)


@pytree_dataclass
class Priced(Free):
    """A marginal that may be left at a price.

    Args:
        rho: Price, positive; a scalar or one per entry [n].
    """

    rho: Numeric | Float[Array, " n"] = 1.0

    def __post_init__(self) -> None:
        checks.in_range("rho", self.rho, 0.0, open_low=True)


@pytree_dataclass
class Exact(Free):
    """``P1 = a``."""

    exact = smooth = True

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        return s

    def value(self, f: Array, a: Array) -> Array:
        """``a f``, [n]."""
        return a * f

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a``, [n]."""
        return r - a


@pytree_dataclass
class KL(Priced):
    """``rho sum_i r_i log(r_i / a_i) - r_i + a_i``.

    Args:
        rho: Price, positive; a scalar or one per entry [n]. Infinity is `Exact`.
    """

    smooth = True

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        # 1 / (1 + epsilon / rho) is right at rho = inf as well.
        return s / (1.0 + epsilon / jnp.asarray(self.rho, s.dtype))

    def value(self, f: Array, a: Array) -> Array:
        """``rho a (1 - exp(-f / rho))``, [n]."""
        rho = jnp.asarray(self.rho, f.dtype)
        finite = jnp.isfinite(rho)
        safe = jnp.where(finite, rho, 1.0)
        return a * jnp.where(finite, -safe * jnp.expm1(-f / safe), f)

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a exp(-f / rho)``, [n]."""
        return r - a * jnp.exp(-f / jnp.asarray(self.rho, f.dtype))

    def stiffness(self, f: Array, a: Array) -> Array:
        """``a exp(-f / rho) / rho``, [n]."""
        rho = jnp.asarray(self.rho, f.dtype)
        return a * jnp.exp(-f / rho) / rho

    def penalty(self, r: Array, a: Array) -> Array:
        """``rho (r log(r / a) - r + a)``, [n]."""
        rho = jnp.asarray(self.rho, r.dtype)
        gap = xlogy(r, r / jnp.where(a > 0, a, 1.0)) - r + a
        return jnp.where(jnp.isfinite(rho), rho, 0.0) * gap


@pytree_dataclass
class TV(Priced):
    """``rho |r - a|_1``: mass costs rho to make or destroy.

    Args:
        rho: Price, positive; a scalar or one per entry [n].
    """

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        rho = jnp.asarray(self.rho, s.dtype)
        return jnp.clip(s, -rho, rho)

    def value(self, f: Array, a: Array) -> Array:
        """``a f`` where ``|f| <= rho``, [n]; beyond rho the value stays, below -rho it is -inf."""
        rho = jnp.asarray(self.rho, f.dtype)
        return jnp.where((f < -rho) & (a > 0), -jnp.inf, a * jnp.minimum(f, rho))

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a`` inside, [n]; at ``f = rho`` mass may be missing, at ``f = -rho`` too much."""
        rho = jnp.asarray(self.rho, f.dtype)
        gap = r - a
        return jnp.where(f >= rho, jnp.maximum(gap, 0.0), jnp.where(f <= -rho, jnp.minimum(gap, 0.0), gap))

    def stiffness(self, f: Array, a: Array) -> Array:
        """0 inside, inf at the ends, [n]."""
        return jnp.where(jnp.abs(f) < jnp.asarray(self.rho, f.dtype), 0.0, jnp.inf)

    def held(self, f: Array) -> Array:
        """f, moving with rho where it is at a bound, [n]."""
        rho = jnp.asarray(self.rho, f.dtype)
        return jnp.where(f >= rho, rho, jnp.where(f <= -rho, -rho, f))

    def penalty(self, r: Array, a: Array) -> Array:
        """``rho |r - a|``, [n]."""
        return jnp.asarray(self.rho, r.dtype) * jnp.abs(r - a)


@pytree_dataclass
class L2(Priced):
    """``rho/2 |r - a|^2``.

    Args:
        rho: Price, positive; a scalar or one per entry [n].
    """

    smooth = True

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        rho = jnp.asarray(self.rho, s.dtype)
        present = a > 0
        ratio = rho * jnp.where(present, a, 1.0) / epsilon
        log_omega = log_wright_omega(jnp.log(ratio) + ratio - s / epsilon)
        # Two forms of the same: each where the other cancels.
        small = rho * a - epsilon * jnp.exp(jnp.minimum(log_omega, 0.0))
        large = s + epsilon * (log_omega - jnp.log(ratio))
        return jnp.where(present, jnp.where(log_omega < 0, small, large), 0.0)

    def value(self, f: Array, a: Array) -> Array:
        """``a f - f^2 / (2 rho)``, [n]; 0 where a = 0, which no mass may enter."""
        return jnp.where(a > 0, a * f - f * f / (2.0 * jnp.asarray(self.rho, f.dtype)), 0.0)

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a + f / rho``, [n]."""
        return jnp.where(a > 0, r - a + f / jnp.asarray(self.rho, f.dtype), 0.0)

    def stiffness(self, f: Array, a: Array) -> Array:
        """``1 / rho``, [n]."""
        return jnp.where(a > 0, 1.0 / jnp.asarray(self.rho, f.dtype), 0.0) + 0.0 * f

    def penalty(self, r: Array, a: Array) -> Array:
        """``rho/2 (r - a)^2``, [n]."""
        return 0.5 * jnp.asarray(self.rho, r.dtype) * (r - a) ** 2


@jax.custom_jvp
def log_wright_omega(t: Float[Array, " n"]) -> Float[Array, " n"]:
    """Logarithm of the w > 0 with ``w + log w = t``, by Newton's method.

    With u = log w: ``exp(u) + u`` is convex and increasing, so Newton's steps descend to the root from a point
    right of it, log t for t > 1 and t below; ten reach float64.
    """
    u = jnp.where(t > 1.0, jnp.log(jnp.maximum(t, 1.0)), t)
    for _ in range(10):
        w = jnp.exp(u)
        u = u - (w + u - t) / (w + 1.0)
    return u


@log_wright_omega.defjvp
def _log_wright_omega_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    u = log_wright_omega(*primals)
    return u, tangents[0] / (1.0 + jnp.exp(u))
