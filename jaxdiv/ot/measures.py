"""Weights of one mass, and weighted clouds of points, checked at the border.

Transport moves all of one measure onto all of the other, so the masses must agree. They never do to the last
bit: what rounding has left between them is removed here, once, and more than rounding is an error.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks, compensated_sum
from jaxdiv.core.types import Numeric


def equal_masses(
    a: Float[Array, " n"] | None, b: Float[Array, " m"] | None, n: int, m: int, dtype: jnp.dtype
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Checks weights and removes the rounding by which their masses differ.

    Args:
        a: Weights [n]; 1/n by default.
        b: Weights [m]; 1/m by default.
        n: How many there must be in a.
        m: How many there must be in b.
        dtype: The dtype of the result, float32 or float64.

    Returns:
        The weights, both scaled to the mean of their masses; NaN where traced ones are negative, or their
        masses differ by more than a tenth of the square root of a rounding.

    Raises:
        ValueError: If weights are not floating or have the wrong shape, or concrete ones are negative, not
            finite, or of different masses.
    """
    eps = jnp.finfo(dtype).eps
    given: list[Array | np.ndarray] = []
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights is None:
            given.append(np.full(size, 1.0 / size))
            continue
        weights_of(name, weights, size)
        eps = max(eps, jnp.finfo(jnp.asarray(weights).dtype).eps)
        given.append(weights)
    tol = 0.1 * float(eps) ** 0.5
    if all(checks.concrete(weights) for weights in given):
        total_a, total_b = (float(np.sum(np.asarray(weights, np.float64))) for weights in given)
        if not abs(total_a - total_b) <= tol * max(total_a, total_b):
            raise ValueError(
                f"a and b must have one mass; got {total_a:.8g} and {total_b:.8g}; normalize them."
            )
    u, v = (jnp.asarray(weights, dtype) for weights in given)
    mass_a, mass_b = compensated_sum(u), compensated_sum(v)
    fits = jnp.all(u >= 0) & jnp.all(v >= 0) & jnp.isfinite(mass_a)
    fits &= jnp.abs(mass_a - mass_b) <= tol * jnp.maximum(mass_a, mass_b)
    # Factors rather than a choice, so that gradients are NaN where the value is.
    mass = jnp.where(fits, 0.5 * (mass_a + mass_b), jnp.nan)
    return _scale(u, mass, mass_a), _scale(v, mass, mass_b)


def weights_of(name: str, weights: Float[Array, " n"], size: int) -> Float[Array, " n"]:
    """The weights of as many points, in float32 or float64.

    Raises:
        ValueError: If they are not floating or have another shape, or concrete ones are negative or not finite.
    """
    if jnp.shape(weights) != (size,):
        raise ValueError(f"{name} must have one weight per point, [{size}]; got {jnp.shape(weights)}.")
    checks.in_range(name, weights, 0.0, open_high=True)
    return checks.floating(name, weights)


def _scale(weights: Float[Array, " n"], new: Float[Array, ""], old: Float[Array, ""]) -> Float[Array, " n"]:
    return weights * (new / jnp.where(old == 0, 1.0, old))


def measures(
    x: Float[Array, "n *d"],
    y: Float[Array, "m *d"],
    a: Float[Array, " n"] | None,
    b: Float[Array, " m"] | None,
    *,
    rank: int,
    p: Numeric = 1.0,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Checks two weighted clouds and returns them in one dtype, with weights of one mass.

    Args:
        x: Points [n] or [n, d].
        y: Points [m] or [m, d].
        a: Weights [n].
        b: Weights [m].
        rank: The rank that x and y must have.
        p: The power of distances that the cost will take.

    Returns:
        x, y, a and b; no weights if none were given. Points of weight 0 that are not finite, or so far away
        that 0 times their cost might not be 0, are put at 0.

    Raises:
        ValueError: If shapes, dtypes, p or weights are not as the public functions want them.
    """
    x, y = checks.floating("x", x), checks.floating("y", y)
    for name, points in (("x", x), ("y", y)):
        checks.rank(name, points, rank)
        checks.not_empty(name, points)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x and y must have points of one dimension; got {x.shape} and {y.shape}.")
    checks.in_range("p", p, 1.0, open_high=True)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    if a is None and b is None:
        return x, y, None, None
    a, b = equal_masses(a, b, x.shape[0], y.shape[0], dtype)
    far = jnp.finfo(dtype).max ** (0.5 / jnp.asarray(p, dtype))

    def settle(points: Array, weights: Array) -> Array:
        kept = (weights > 0).reshape(-1, *[1] * (rank - 1)) | (jnp.abs(points) < far)
        return jnp.where(kept, points, 0.0)

    return settle(x, a), settle(y, b), a, b
