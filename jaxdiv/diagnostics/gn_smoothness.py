r"""The gradient-normalized smoothness of a function at a point, over sampled directions.

With H any stand-in for the Hessian,

    γ(x) = sup {γ : ‖∇f(x + h) - ∇f(x) - H h‖ <= (‖∇f(x)‖ / γ) ‖h‖ for all ‖h‖ <= γ}

is the radius within which the gradient field is linear up to its own size. It is L⁻¹‖∇f‖ for a gradient with
constant L and H = 0, (2‖∇f‖ / M)^½ for a Hessian with constant M, and infinite for a quadratic with its Hessian.

References:
    Semenov, Jaggi, Doikov (2025), Gradient-normalized smoothness for optimization with approximate Hessians.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks, safe_norm
from jaxdiv.core.types import Key, Scalar
from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec

BISECTIONS = 30
ROUNDINGS = 4  # units of rounding of the gradient that do not count as nonlinearity


def gn_smoothness(
    fun: Callable[[PyTree], Scalar],
    x: PyTree,
    curvature: Matvec,
    *,
    directions: int = 16,
    radii: Float[Array, " k"] | None = None,
    key: Key,
) -> Scalar:
    """Estimates γ(x) from above: the supremum over random directions in place of all.

    Args:
        fun: ``fun(x) -> scalar``.
        x: The point, a floating pytree.
        curvature: ``v -> H v`` at `x`, for example ``linalg.hessian_operator(fun, x)``.
        directions: Number of unit directions, isotropic.
        radii: Increasing lengths at which the gradient field is looked at; 61 from 1e-4 to 1e2 by default. Between two
            of them the nonlinearity is taken to grow.
        key: Random key of the directions.

    Returns:
        The radius; 0 if not even the first of `radii` qualifies, inf if all do.

    Raises:
        ValueError: If `x` is not floating, `radii` is not a vector or `directions` is not positive.

    Note:
        Costs ``directions (k + 30)`` gradients. Of each difference of gradients four units of rounding are taken off,
        which at short lengths would pass for nonlinearity.

    References:
        Semenov, Jaggi, Doikov (2025), Gradient-normalized smoothness for optimization with approximate Hessians.

    Example:
        >>> bowl, zero = lambda x: jnp.sum(x**2) / 2, lambda v: 0 * v
        >>> print(gn_smoothness(bowl, jnp.array([3.0, 4.0]), zero, key=jax.random.key(0)).round(2))
        5.0
    """
    x = vectors.uniform(vectors.widened("x", x))
    checks.in_range("directions", directions, 1)
    dtype = optax.tree.dtype(x)
    lengths = jnp.geomspace(1e-4, 1e2, 61, dtype=dtype) if radii is None else jnp.asarray(radii, dtype)
    checks.rank("radii", lengths, 1)
    gradient = jax.grad(fun)
    g = gradient(x)
    size, rounding = _norm(g), ROUNDINGS * vectors.epsilon(x)
    units = jax.vmap(lambda k: _unit(optax.tree.random_like(k, x, jax.random.normal)))(
        jax.random.split(key, directions)
    )
    bent = jax.vmap(curvature)(units)

    def slope(length: Array) -> Array:
        """The largest ‖∇f(x + t u) - ∇f(x) - t H u‖ / t over the directions."""

        def one(u: PyTree, hu: PyTree) -> Array:
            ahead = gradient(optax.tree.add_scale(x, length, u))
            bend = _norm(jax.tree.map(lambda a, b, c: a - b - length * c, ahead, g, hu))
            return jnp.maximum(bend - rounding * size, 0.0) / length

        return jnp.max(jax.vmap(one)(units, bent))

    slopes = jax.lax.cummax(jax.lax.map(slope, lengths))
    good = slopes * lengths <= size
    count = jnp.sum(jnp.cumprod(good))
    low = jnp.where(count > 0, lengths[jnp.maximum(count - 1, 0)], 0.0)
    below = jnp.where(count > 0, slopes[jnp.maximum(count - 1, 0)], 0.0)
    high = lengths[jnp.minimum(count, lengths.size - 1)]

    def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = jnp.maximum(slope(middle), below) * middle <= size
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    found, _ = jax.lax.fori_loop(0, BISECTIONS, bisect, (low, high))
    return jnp.where(count == lengths.size, jnp.inf, jnp.where(count == 0, 0.0, found)).astype(dtype)


def _norm(tree: PyTree) -> Array:
    return safe_norm(jnp.stack([safe_norm(leaf) for leaf in jax.tree.leaves(tree)]))


def _unit(tree: PyTree) -> PyTree:
    size = _norm(tree)
    return jax.tree.map(lambda x: x / size, tree)
