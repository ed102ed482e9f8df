"""Marginals of partial transport: constraints that leave mass behind.

    AtMost()         r <= a                          f = min(s, 0)
    Partial(mass)    r <= a and sum r = mass         f = min(s, lambda), sum a exp((f - s)/epsilon) = mass

with s the softmin of the other potential, as in `jaxdiv.ot.marginals`. In the second the scalar lambda is the
price of mass: with s sorted, ``sum_i a_i min(1, exp((lambda - s_i)/epsilon))`` is known on each interval, and
lambda follows in closed form. Partial transport of a mass s is ``marginals=(Partial(s), AtMost())``.

References:
    Benamou, Carlier, Cuturi, Nenna, Peyré (2015), Iterative Bregman projections for regularized
    transportation problems, section 5 (the same constraints by Dykstra's algorithm).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.ot.marginals import Free


@pytree_dataclass
class AtMost(Free):
    """``P1 <= a``."""

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        return jnp.minimum(s, 0.0)

    def value(self, f: Array, a: Array) -> Array:
        """``a min(f, 0)``, [n]."""
        return a * jnp.minimum(f, 0.0)

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a`` where f < 0, else what exceeds a, [n]."""
        return jnp.where(f < 0, r - a, jnp.maximum(r - a, 0.0))

    def stiffness(self, f: Array, a: Array) -> Array:
        """0 where f < 0, else inf, [n]."""
        return jnp.where(f < 0, 0.0, jnp.inf)


@pytree_dataclass
class Partial(Free):
    """``P1 <= a`` and ``sum P = mass``.

    Args:
        mass: Mass to move, in (0, sum a] and at most what the other marginal can take.

    Raises:
        ValueError: If a concrete `mass` is not positive.
    """

    mass: Numeric

    def __post_init__(self) -> None:
        checks.in_range("mass", self.mass, 0.0, open_low=True)

    def update(self, s: Array, a: Array, epsilon: Numeric) -> Array:
        """The potential after a Sinkhorn half-step, [n]."""
        price = _price(jax.lax.stop_gradient(s), a, self.mass, epsilon)
        # One Newton step from the solution gives the derivative of the price.
        free = s >= price
        log_mass = jnp.log(jnp.maximum(self.mass - jnp.sum(jnp.where(free, 0.0, a)), jnp.finfo(s.dtype).tiny))
        top = jax.lax.stop_gradient(jnp.min(s, where=free & (a > 0), initial=jnp.inf))
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        terms = jnp.where(free, a, 0.0) * jnp.exp(jnp.where(free, (top - s) / epsilon, 0.0))
        some = jnp.sum(terms) > 0
        total = jnp.log(jnp.where(some, jnp.sum(terms), 1.0))
        price = jnp.where(some, top + epsilon * (log_mass - total), price)
        return jnp.where(free, price, s)

    def value(self, f: Array, a: Array) -> Array:
        """The least ``f·r`` over ``0 <= r <= a, sum r = mass``, entry by entry, [n]."""
        order = jnp.argsort(f)
        filled = jnp.cumsum(a[order]) - a[order]
        taken = jnp.clip(self.mass - filled, 0.0, a[order])
        return jnp.zeros_like(f).at[order].set(f[order] * taken)

    def residual(self, r: Array, f: Array, a: Array) -> Array:
        """``r - a`` below the largest f, what exceeds a at it, and the missing total, [n + 1]."""
        price = jnp.max(jnp.where(a > 0, f, -jnp.inf))
        gaps = jnp.where(f < price, r - a, jnp.maximum(r - a, 0.0))
        return jnp.append(gaps, jnp.sum(r) - self.mass)


def _price(s: Float[Array, " n"], a: Array, mass: Numeric, epsilon: Numeric) -> Float[Array, ""]:
    """The lambda with ``sum a min(1, exp((lambda - s) / epsilon)) = mass``."""
    # Entries without weight go last and never count.
    order = jnp.argsort(jnp.where(a > 0, s, jnp.inf))
    s, a = s[order], a[order]
    log_terms = jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1.0)) - s / epsilon, -jnp.inf)
    tail = jax.lax.cumlogsumexp(log_terms, reverse=True)
    full = jnp.cumsum(a) - a
    left = mass - full
    # If the entries before k are full, the rest share what is left at one price.
    price = jnp.where(left > 0, epsilon * (jnp.log(jnp.where(left > 0, left, 1.0)) - tail), -jnp.inf)
    before = jnp.concatenate([jnp.full((1,), -jnp.inf, s.dtype), s[:-1]])
    fits = (price <= s) & (price >= before) & (a > 0)
    # All are full where the mass is all there is.
    return jnp.where(jnp.any(fits), price[jnp.argmax(fits)], jnp.max(jnp.where(a > 0, s, -jnp.inf)))
