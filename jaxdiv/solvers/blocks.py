"""Blocks of coordinates, and bounds on the Hessian over them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Models(NamedTuple):
    """Bounds on the Hessian, fixed at the start.

    Attributes:
        bounds: H_b of each block, 0 where it is padded; of all coordinates [1, n, n] with variable blocks.
        lipschitz: L_b of each; None with variable blocks.
        factors: Cholesky factors of H_b, with 1 where the block is padded; None with variable blocks.
    """

    bounds: Float[Array, "blocks k k"]
    lipschitz: Float[Array, " blocks"] | None
    factors: Float[Array, "blocks k k"] | None


def partition(blocks: Any) -> tuple[tuple[int, ...], ...]:
    """Hashable blocks, without padding.

    Raises:
        ValueError: If they are no sequences of distinct coordinates.
    """
    rows = blocks.tolist() if isinstance(blocks, np.ndarray | jax.Array) else blocks
    if not isinstance(rows, Sequence) or not all(isinstance(row, Sequence) for row in rows):
        raise ValueError(f"blocks must be sequences of coordinates, an integer or None; got {blocks!r}.")
    kept = tuple(tuple(int(i) for i in row if i != -1) for row in rows)
    if any(len(set(row)) < len(row) or min(row, default=-1) < 0 for row in kept) or not kept:
        raise ValueError(
            f"blocks must hold distinct coordinates from 0 on, at least one each; got {blocks!r}."
        )
    return kept


def table(blocks: Any, n: int) -> np.ndarray:
    """Coordinates of the blocks, padded with -1; one row of as many as a variable block has.

    Raises:
        ValueError: If they do not cover n coordinates, or a variable block has more.
    """
    if isinstance(blocks, int | np.integer):
        if blocks > n:
            raise ValueError(f"blocks must be at most the {n} coordinates of y; got {blocks}.")
        return np.arange(n)[None, :blocks]
    rows = blocks if blocks is not None else tuple((i,) for i in range(n))
    if set().union(*rows) != set(range(n)):
        raise ValueError(f"blocks must cover the coordinates 0 to {n - 1} of y; got {rows}.")
    longest = max(map(len, rows))
    return np.array([(*row, *(-1,) * (longest - len(row))) for row in rows])


def models(given: Array, table: np.ndarray, n: int, *, variable: bool) -> Models:
    """The bounds of all blocks, from L_b, H_b or a matrix of all n coordinates.

    Raises:
        ValueError: If `given` has none of their shapes.
    """
    count, k = table.shape
    allowed = ((n, n),) if variable else ((n, n), (count,), (count, k, k))
    if given.shape not in allowed:
        raise ValueError(f"bounds must have one of the shapes {allowed}; got {given.shape}.")
    if variable:
        return Models(given[None], None, None)
    used = table >= 0
    if given.ndim == 1:
        given = given[:, None, None] * jnp.eye(k, dtype=given.dtype)
    elif given.ndim == 2:
        given = given[table[:, :, None], table[:, None, :]]
    bounds = jnp.where(used[:, :, None] & used[:, None, :], given, 0.0)
    return Models(bounds, largest(bounds), factor(bounds, used))


def read(x: Array, at: Array) -> Array:
    """The entries at some coordinates; 0 for those behind the end, which stand for padding."""
    return x.at[at].get(mode="fill", fill_value=0)


def write(x: Array, at: Array, part: Array) -> Array:
    """X with other entries there; those for padding are dropped."""
    return x.at[at].set(part, mode="drop")


def largest(bounds: Array) -> Array:
    """λ_max of each matrix."""
    return jnp.linalg.eigvalsh(bounds)[..., -1]


def factor(bounds: Array, used: Any) -> Array:
    """Cholesky factors, with 1 where a block is padded and a unit of rounding on the diagonal."""
    ridge = jnp.finfo(bounds.dtype).eps * largest(bounds)[..., None]
    diagonal = jnp.where(used, ridge, 1.0).astype(bounds.dtype)
    return jnp.linalg.cholesky(bounds + diagonal[..., None] * jnp.eye(bounds.shape[-1], dtype=bounds.dtype))
