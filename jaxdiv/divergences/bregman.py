r"""Bregman divergences of a convex potential.

    D_φ(x, y) = φ(x) - φ(y) - <∇φ(y), x - y>  >= 0

the gap at x between φ and its tangent at y. Named ones:

    φ(x)            D_φ(x, y)
    |x|^2           |x - y|^2                            squared Euclidean
    Σ x log x       Σ x log(x / y) - x + y               generalized Kullback–Leibler
    -Σ log x        Σ x / y - log(x / y) - 1             Itakura–Saito

With `l = log(x / y)` the last two are `Σ x (exp(-l) - 1 + l)` and `Σ exp(l) - 1 - l`; these remainders keep
their relative accuracy between close arguments.

References: Banerjee, Merugu, Dhillon, Ghosh (2005), Clustering with Bregman divergences, table 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiv.core import checks
from jaxdiv.divergences.log_ratio import exp_remainder


def _pair(x: Array, y: Array) -> tuple[Array, Array]:
    x, y = checks.floating("x", x), checks.floating("y", y)
    checks.same_shape(x=x, y=y)
    if x.ndim == 0:
        raise ValueError(f"x must have rank at least 1; got shape {x.shape}; use x[None].")
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def bregman(
    potential: Callable[[Float[Array, " d"]], Float[Array, ""]],
    x: Float[Array, "*b d"],
    y: Float[Array, "*b d"],
) -> Float[Array, "*b"]:
    """Bregman divergence of any differentiable convex function.

    Args:
        potential: Convex function of one vector [d] with a scalar value.
        x: First arguments, [*b, d].
        y: Second arguments, [*b, d], where `potential` is differentiable.

    Returns:
        D(x, y), [*b].

    Raises:
        ValueError: If `x` or `y` is not floating, has rank 0, their shapes differ, or `potential` does
            not return a scalar.

    Note:
        A difference of potentials: its rounding error is that of `potential(x)`. The named divergences
        have forms without this cancellation.

    References:
        Banerjee et al. (2005), Clustering with Bregman divergences, definition 1.

    Example:
        >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])
        >>> float(bregman(lambda z: jnp.sum(z**4), x, y))
        17.0
    """
    x, y = _pair(x, y)
    if (out := jax.eval_shape(potential, jax.ShapeDtypeStruct(x.shape[-1:], x.dtype))).shape != ():
        raise ValueError(f"potential must return a scalar for one vector; got shape {out.shape}; sum it.")

    def one(a: Array, b: Array) -> Array:
        value, slope = jax.jvp(potential, (b,), (a - b,))
        return potential(a) - value - slope

    return jnp.vectorize(one, signature="(d),(d)->()")(x, y)


def squared_euclidean(
    x: Float[Array, "*b d"], y: Float[Array, "*b d"], *, where: Bool[Array, "*b d"] | None = None
) -> Float[Array, "*b"]:
    """Squared Euclidean distance, the Bregman divergence of the squared norm.

    Args:
        x: First arguments, [*b, d].
        y: Second arguments, [*b, d].
        where: Elements to include, broadcastable to `x`.

    Returns:
        `sum (x - y)^2`, [*b].

    Raises:
        ValueError: If `x` or `y` is not floating, has rank 0, or their shapes differ.

    Example:
        >>> float(squared_euclidean(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])))
        5.0
    """
    x, y = _pair(x, y)
    return _sum(lambda a, b: jnp.square(a - b), x, y, where)


def generalized_kl(
    x: Float[Array, "*b d"], y: Float[Array, "*b d"], *, where: Bool[Array, "*b d"] | None = None
) -> Float[Array, "*b"]:
    """Generalized Kullback–Leibler divergence between nonnegative vectors of any mass.

    Args:
        x: Nonnegative, [*b, d].
        y: Nonnegative, [*b, d].
        where: Elements to include, broadcastable to `x`.

    Returns:
        `sum x log(x / y) - x + y`, [*b]; +inf where x > 0 = y, NaN outside the domain.

    Raises:
        ValueError: If `x` or `y` is not floating, has rank 0, or their shapes differ.

    Note:
        At x = 0 the slope is -inf where y > 0; the gradient returned for such elements is 0.

    Example:
        >>> float(generalized_kl(jnp.array([0.0, 1.0]), jnp.array([3.0, 1.0])))
        3.0
    """
    x, y = _pair(x, y)

    def term(a: Array, b: Array) -> Array:
        inside = (a > 0) & (b > 0)
        safe_a, safe_b = jnp.where(inside, a, 1.0), jnp.where(inside, b, 1.0)
        log_ratio = _log_ratio(safe_a, safe_b)
        close = jnp.abs(log_ratio) < 1.0
        near = safe_a * exp_remainder(jnp.where(close, -log_ratio, 0.0))
        value = jnp.where(close, near, safe_a * log_ratio - (safe_a - safe_b))
        edge = jnp.where(a == 0, b, jnp.inf)
        invalid = (a < 0) | (b < 0) | jnp.isnan(a) | jnp.isnan(b)
        return jnp.where(inside, value, jnp.where(invalid, jnp.nan, edge))

    return _sum(term, x, y, where)


def itakura_saito(
    x: Float[Array, "*b d"], y: Float[Array, "*b d"], *, where: Bool[Array, "*b d"] | None = None
) -> Float[Array, "*b"]:
    """Itakura–Saito divergence between positive vectors, unchanged when both are scaled.

    Args:
        x: Positive, [*b, d].
        y: Positive, [*b, d].
        where: Elements to include, broadcastable to `x`.

    Returns:
        `sum x / y - log(x / y) - 1`, [*b]; +inf where just one of x and y is 0, NaN outside the domain.

    Raises:
        ValueError: If `x` or `y` is not floating, has rank 0, or their shapes differ.

    Example:
        >>> round(float(itakura_saito(jnp.array([2.0]), jnp.array([1.0]))), 4)
        0.3069
    """
    x, y = _pair(x, y)

    def term(a: Array, b: Array) -> Array:
        inside = (a > 0) & (b > 0)
        safe_a, safe_b = jnp.where(inside, a, 1.0), jnp.where(inside, b, 1.0)
        value = exp_remainder(_log_ratio(safe_a, safe_b))
        edge = (a >= 0) & (b >= 0) & (a != b)
        return jnp.where(inside, value, jnp.where(edge, jnp.inf, jnp.nan))

    return _sum(term, x, y, where)


def _log_ratio(a: Array, b: Array) -> Array:
    """Returns `log(a / b)` for positive arguments, exact to rounding when they are close."""
    close = jnp.abs(a - b) < 0.5 * b
    t = jnp.where(close, (a - b) / b, 0.0)
    return jnp.where(close, jnp.log1p(t), jnp.log(a) - jnp.log(b))


def _sum(
    term: Callable[[Array, Array], Array], x: Array, y: Array, where: Array | None
) -> Float[Array, "*b"]:
    if where is None:
        return jnp.sum(term(x, y), axis=-1)
    # Excluded elements are replaced before the term, so that they may hold anything.
    x, y = jnp.where(where, x, 1.0), jnp.where(where, y, 1.0)
    return jnp.sum(jnp.where(where, term(x, y), 0.0), axis=-1)
