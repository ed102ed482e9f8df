"""SAGA: the last value of a quantity on each block of the examples, and their mean.

    q̂ = q_i(w) − m_i + m̄,    m̄ ← m̄ + (q_i(w) − m_i) / n,    m_i ← q_i(w)

With i uniform on n blocks of equal size the mean of q̂ is that of q over all examples, whatever the rows are as long as
m̄ is their mean, and its variance vanishes as w settles.

References:
    Defazio, Bach, Lacoste-Julien (2014), SAGA: a fast incremental gradient method with support for non-strongly convex
    composite objectives, eq. (1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


class Table(NamedTuple):
    """Memory of a pytree of quantities.

    Attributes:
        rows: m, a leading axis of blocks before each leaf.
        mean: m̄.
    """

    rows: PyTree
    mean: PyTree


def table(blocks: int, like: PyTree) -> Table:
    """A table of zeros."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((blocks, *leaf.shape), leaf.dtype), like)
    return Table(rows, optax.tree.zeros_like(like))


def saga(memory: Table, i: Int[Array, ""], value: PyTree) -> tuple[PyTree, Table]:
    """q̂ from the value on block i, and the table with that value in it."""
    blocks = jax.tree.leaves(memory.rows)[0].shape[0]
    change = jax.tree.map(lambda new, rows: new - rows[i], value, memory.rows)
    mean = jax.tree.map(lambda m, c: m + c / blocks, memory.mean, change)
    rows = jax.tree.map(lambda rows, new: rows.at[i].set(new), memory.rows, value)
    return optax.tree.add(change, memory.mean), Table(rows, mean)
