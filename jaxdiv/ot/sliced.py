r"""Sliced transport: exact transport on the line, along many lines.

    SW_p^p(a, b) = E_theta W_p^p(<theta, x>, <theta, y>),     theta uniform on the sphere,

estimated without bias by the mean over random directions, and max-SW_p^p, its maximum over theta. That is
looked for by gradient ascent: steps of Adam on the tangent space, back onto the sphere after each, from the
best of the random directions; the best direction seen is kept. At the maximum the derivative in the points is
that of the cost along the fixed direction (Danskin).

Directions go through in blocks. Forward and backward need the memory of one block.

References:
    Bonneel, Rabin, Peyré, Pfister (2015), Sliced and Radon Wasserstein barycenters of measures.
    Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs, definition 2.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.core import safe_norm
from jaxdiv.core.types import Key, Numeric
from jaxdiv.ot.measures import measures
from jaxdiv.ot.univariate import monotone_cost

# Projected points held at a time.
_BLOCK = 2**22


def directions(key: Key, num: int, d: int, dtype: jnp.dtype) -> Float[Array, "num d"]:
    """Directions uniform on the sphere."""
    return _normalize(jax.random.normal(key, (num, d), dtype))


def _normalize(theta: Float[Array, "*k d"]) -> Float[Array, "*k d"]:
    return theta / safe_norm(theta, -1, keepdims=True)


def _center(x: Array, y: Array, b: Array | None) -> tuple[Array, Array]:
    """Both clouds moved by a point of y: nothing changes but the rounding of the projections."""
    center = jax.lax.stop_gradient(y[0] if b is None else y[jnp.argmax(b)])
    return x - center, y - center


def _cost(
    theta: Float[Array, " d"], x: Array, y: Array, a: Array | None, b: Array | None, p: Numeric
) -> Float[Array, ""]:
    project = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return monotone_cost(project(x, theta), project(y, theta), a, b, p)


def _costs(
    thetas: Float[Array, "k d"], x: Array, y: Array, a: Array | None, b: Array | None, p: Numeric
) -> Float[Array, " k"]:
    # What a block has sorted is sorted again in the backward pass rather than kept.
    @partial(jax.checkpoint, prevent_cse=False)
    def one(theta: Float[Array, " d"]) -> Float[Array, ""]:
        return _cost(theta, x, y, a, b, p)

    return jax.lax.map(one, thetas, batch_size=max(1, _BLOCK // (x.shape[0] + y.shape[0])))


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1; got {count}.")


def sliced(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    key: Key,
    num_projections: int = 50,
    p: Numeric = 2,
) -> Float[Array, ""]:
    """Sliced transport cost ``SW_p^p`` between weighted clouds of points.

    Args:
        x: Points, [n, d].
        y: Points, [m, d].
        a: Nonnegative weights of x, [n]; 1/n by default. A point of weight 0 is absent and may hold anything.
        b: Weights of y, [m], of the same mass; 1/m by default.
        key: Draws the directions.
        num_projections: How many directions.
        p: The power, at least 1.

    Returns:
        The mean cost over the directions, an unbiased estimate whose p-th root is the sliced Wasserstein
        distance; float32, or float64 where an input is float64. NaN where traced weights are negative or of
        different masses.

    Raises:
        ValueError: If points or weights are not floating or have the wrong shape, a concrete `p` is below 1
            or infinite, concrete weights are negative, NaN or of different masses, or num_projections < 1.

    Note:
        Time num_projections (n + m) (d + log(n + m)); forward and backward need the memory of one block of
        directions.

    References:
        Bonneel, Rabin, Peyré, Pfister (2015), Sliced and Radon Wasserstein barycenters of measures.

    Example:
        >>> x = jnp.array([[0.0, 0.0], [1.0, 2.0]])
        >>> shift = jnp.array([3.0, 4.0])
        >>> cost = sliced(x, x + shift, key=jax.random.key(0), num_projections=2000)
        >>> bool(abs(cost - 25 / 2) < 0.5)  # |shift|^2 / d
        True
    """
    _check_count("num_projections", num_projections)
    x, y, a, b = measures(x, y, a, b, rank=2, p=p)
    thetas = directions(key, num_projections, x.shape[1], x.dtype)
    return jnp.mean(_costs(thetas, *_center(x, y, b), a, b, p))


def max_sliced(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    key: Key,
    num_projections: int = 50,
    steps: int = 50,
    learning_rate: Numeric = 0.1,
    p: Numeric = 2,
) -> Float[Array, ""]:
    """Max-sliced transport cost: ``W_p^p`` along the direction in which it is largest.

    Args:
        x: Points, [n, d].
        y: Points, [m, d].
        a: Nonnegative weights of x, [n]; 1/n by default.
        b: Weights of y, [m], of the same mass; 1/m by default.
        key: Draws the directions to start from.
        num_projections: How many random directions are tried for a start.
        steps: Steps of ascent from the best of them.
        learning_rate: First step of Adam, of each coordinate of a direction; decays to 0 as a cosine.
        p: The power, at least 1.

    Returns:
        The cost along the best direction seen: a lower bound of the maximum, at least `sliced` with the same
        key. Its gradient is taken at a fixed direction.

    Raises:
        ValueError: As `sliced` does, and if steps < 1.

    References:
        Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs.

    Example:
        >>> x = jnp.array([[0.0, 0.0], [1.0, 2.0]])
        >>> cost = max_sliced(x, x + jnp.array([3.0, 4.0]), key=jax.random.key(0))
        >>> print(f"{cost:.2f}")  # |shift|^2
        25.00
    """
    _check_count("num_projections", num_projections)
    _check_count("steps", steps)
    x, y, a, b = measures(x, y, a, b, rank=2, p=p)
    x, y = _center(x, y, b)
    fixed = jax.lax.stop_gradient((x, y, a, b, p))
    thetas = directions(key, num_projections, x.shape[1], x.dtype)
    costs = _costs(thetas, *fixed)
    start = thetas[jnp.argmax(costs)]
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    Climb = tuple[Array, optax.OptState, Array, Array]

    def climb(carry: Climb, _: None) -> tuple[Climb, None]:
        theta, state, best, top = carry
        value, gradient = jax.value_and_grad(_cost)(theta, *fixed)
        best, top = jnp.where(value > top, theta, best), jnp.maximum(value, top)
        tangent = gradient - jnp.dot(gradient, theta) * theta
        updates, state = tx.update(-tangent, state)
        return (_normalize(theta + updates), state, best, top), None

    carry = (start, tx.init(start), start, jnp.max(costs))
    (_, _, best, _), _ = jax.lax.scan(climb, carry, length=steps)
    return _cost(jax.lax.stop_gradient(best), x, y, a, b, p)
