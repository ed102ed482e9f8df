"""Ground costs between points.

A cost is a function of two points, ``cost(x, y) -> scalar`` with x, y [d]. Those below also know how to fill a
block of the cost matrix: by differences in few dimensions, else by one matrix product at the highest precision
after both clouds are moved by the mean of y, so that neither TF32 units nor the cancellation of large norms
spoil a small epsilon.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass, safe_norm, static_field
from jaxdiv.core.distances import distances, squared_distances
from jaxdiv.core.types import Numeric

Cost: TypeAlias = Callable[[Float[Array, " d"], Float[Array, " d"]], Float[Array, ""]]
"""``cost(x, y) -> scalar``, traceable; a pytree if it has numeric options."""


def _dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return jnp.einsum("nd,md->nm", x, y, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """``|x_i - y_j|^2``; its derivatives are products of matrices, where those of differences fill [n, m, d]."""
    return squared_distances(x, y)


@_squares.defjvp
def _squares_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    x, y = primals
    center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    x, y = x - center, y - center
    dx, dy = tangents
    own = jnp.sum(x * dx, axis=1)[:, None] + jnp.sum(y * dy, axis=1)
    return _squares(*primals), 2.0 * (own - _dot(dx, y) - _dot(x, dy))


@pytree_dataclass
class SqEuclidean:
    """``|x - y|^2``."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost between two points."""
        return jnp.sum((x - y) ** 2)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return _squares(x, y)


@pytree_dataclass
class Euclidean:
    """``|x - y|``, with zero derivative where the points agree."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost between two points."""
        return safe_norm(x - y)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return distances(x, y)


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
        """The cost between two points."""
        gap = jnp.abs(x - y)
        # The power has no derivative in p at 0.
        return jnp.sum(jnp.where(gap > 0, jnp.where(gap > 0, gap, 1.0) ** self.p, 0.0))


@pytree_dataclass
class Cosine:
    """``1 - x·y / (|x| |y|)``; a zero vector is at cost 1 from everything."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost between two points."""
        return self.pairwise(x[None], y[None])[0, 0]

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return 1.0 - _dot(_unit(x), _unit(y))


@pytree_dataclass
class NegDotProduct:
    """``-x·y``: the squared Euclidean cost up to terms of one point each."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost between two points."""
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
        """The cost between two points."""
        return self.pairwise(x[None], y[None])[0, 0]

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
        x, y = x - center, y - center
        ax, ay = (jnp.matmul(z, self.matrix, precision=jax.lax.Precision.HIGHEST) for z in (x, y))
        own = jnp.sum(ax * x, axis=1)[:, None] + jnp.sum(ay * y, axis=1)
        return jnp.maximum(own - _dot(ax, y) - _dot(x, ay), 0.0)


@pytree_dataclass
class CostFunction:
    """A function of two points that is no pytree, as a cost.

    Args:
        function: ``(x [d], y [d]) -> scalar``, traceable; it must not close over traced values.
    """

    function: Any = static_field()

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost between two points."""
        return self.function(x, y)


def as_pytree(cost: Cost) -> Cost:
    """The cost; a plain function as a static part of the structure."""
    leaves = jax.tree.leaves(cost)
    return CostFunction(cost) if len(leaves) == 1 and leaves[0] is cost else cost


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    norm = safe_norm(x, 1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def block(cost: Cost, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """The costs between two clouds, by one product where the cost knows how, else pair by pair."""
    pairwise = getattr(cost, "pairwise", None)
    if pairwise is not None:
        return pairwise(x, y)
    return jax.vmap(lambda a: jax.vmap(lambda b: cost(a, b))(y))(x)
