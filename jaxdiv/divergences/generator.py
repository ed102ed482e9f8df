"""What one has to write to add an f-divergence: a generator.

The convex `f` is stored centered: `f(1) = f'(1) = 0`. Adding `c (r - 1)` changes `f` and not `D_f`, and
the centered form makes every term nonnegative, so that nothing cancels between terms when two
distributions nearly agree. A divergence holds two generators, that of `f` and that of the mirrored
`r f(1/r)`; the second is how `f(r) / r` is evaluated for r > 1.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

Elementwise = Callable[..., Float[Array, "*n"]]
Constant = Callable[..., "float | Float[Array, '']"]


class Generator(NamedTuple):
    """A centered convex f in log-ratio form; each function also takes the divergence's options.

    Attributes:
        below: ``a -> f(exp(-a))`` for ``a >= 0``.
        f_prime: ``l -> f'(exp(l))``.
        log_weight: ``l -> log(r^2 f''(r))`` at ``r = exp(l)``.
        slope: ``f'(1)`` of the f as it is usually written, which is this one plus ``slope (r - 1)``.
        at_zero: ``f(0)``, may be inf.
        prime_at_zero: ``f'(0)``, may be -inf.
        conjugate: ``y -> sup_{r >= 0} r y - f(r)`` for ``f'(0) < y < f'(inf)``; None for a numeric root.
        real_conjugate: ``y -> sup_r r y - f(r)`` over all reals, where f extends to them; else None.
    """

    below: Elementwise
    f_prime: Elementwise
    log_weight: Elementwise
    slope: Constant
    at_zero: Constant
    prime_at_zero: Constant
    conjugate: Elementwise | None = None
    real_conjugate: Elementwise | None = None
