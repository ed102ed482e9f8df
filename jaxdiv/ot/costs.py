"""Ground costs between points.

A cost is a function of two points, ``cost(x, y) -> scalar`` with x, y [d]. Those below also know
how to fill a whole block of the cost matrix by one matrix product,

    C_ij = u(x_i) + v(y_j) + phi(x_i)·psi(y_j),

computed at the highest matmul precision after both clouds are moved by the mean of y, so that neither
TF32 units nor the cancellation of large norms spoil a small epsilon.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass, safe_norm, safe_sqrt
from jaxdiv.core.types import Numeric

Cost: TypeAlias = Callable[[Float[Array, " d"], Float[Array, " d"]], Float[Array, ""]]
"""``cost(x, y) -> scalar``, traceable; a pytree if it has numeric options."""


def _dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return jnp.einsum("nd,md->nm", x, y, precision=jax.lax.Precision.HIGHEST)


def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances; the difference of norms may round below zero."""
    center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    x, y = x - center, y - center
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1) - 2.0 * _dot(x, y)
    return jnp.maximum(squares, 0.0)


@pytree_dataclass
class SqEuclidean:
    """``|x - y|^2``."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum((x - y) ** 2)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return _squares(x, y)


@pytree_dataclass
class Euclidean:
    """``|x - y|``, with zero derivative where the points agree."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        return safe_norm(x - y)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return safe_sqrt(_squares(x, y))


@pytree_dataclass
class PNorm:
    """``sum_k |x_k - y_k|^p``, p >= 1.

    Args:
        p: The power.

    Raises:
        ValueError: If a concrete `p` is below 1.
    """

    p: Numeric = 1.0

    def __post_init__(self) -> None:
        checks.in_range("p", self.p, 1.0)

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        gap = jnp.abs(x - y)
        # The power has no derivative in p at 0.
        return jnp.sum(jnp.where(gap > 0, jnp.where(gap > 0, gap, 1.0) ** self.p, 0.0))


@pytree_dataclass
class Cosine:
    """``1 - x·y / (|x| |y|)``; a zero vector is at cost 1 from everything."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        return self.pairwise(x[None], y[None])[0, 0]

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return 1.0 - _dot(_unit(x), _unit(y))


@pytree_dataclass
class NegDotProduct:
    """``-x·y``: the squared Euclidean cost up to terms of one point each."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        return -jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return -_dot(x, y)


@pytree_dataclass
class Mahalanobis:
    """``(x - y)ᵀ A (x - y)``.

    Args:
        matrix: A, symmetric positive semidefinite [d, d].

    Raises:
        ValueError: If `matrix` is not square.
    """

    matrix: Float[Array, "d d"]

    def __post_init__(self) -> None:
        shape = jnp.shape(self.matrix)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"matrix must be square, [d, d]; got shape {shape}.")

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        return self.pairwise(x[None], y[None])[0, 0]

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
        x, y = x - center, y - center
        ax, ay = (jnp.matmul(z, self.matrix, precision=jax.lax.Precision.HIGHEST) for z in (x, y))
        own = jnp.sum(ax * x, axis=1)[:, None] + jnp.sum(ay * y, axis=1)
        return jnp.maximum(own - _dot(ax, y) - _dot(x, ay), 0.0)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    norm = safe_norm(x, 1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def block(cost: Cost, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """The costs between two clouds, by one product where the cost knows how, else pair by pair."""
    pairwise = getattr(cost, "pairwise", None)
    if pairwise is not None:
        return pairwise(x, y)
    return jax.vmap(lambda a: jax.vmap(lambda b: cost(a, b))(y))(x)
