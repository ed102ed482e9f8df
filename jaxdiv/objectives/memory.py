"""A memory of values per example, read as they were a given number of visits ago.

Row i of the table is a ring of `lag` slots. A visit reads the slot that was written `lag` visits of that
example ago and then overwrites it, so lags count visits, never epochs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


class Memory(NamedTuple):
    """The memory.

    Attributes:
        table: Stored values [N, lag, ...].
        visits: How often each example was visited [N] int32.
    """

    table: Shaped[Array, "N lag ..."]
    visits: Int[Array, " N"]


def empty(num_samples: int, lag: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Memory:
    """An empty memory for `num_samples` examples of values of one shape."""
    for name, value in (("num_samples", num_samples), ("lag", lag)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    return Memory(jnp.zeros((num_samples, lag, *shape), dtype), jnp.zeros(num_samples, jnp.int32))


def read(memory: Memory, index: Int[Array, " B"]) -> tuple[Shaped[Array, "B ..."], Bool[Array, " B"]]:
    """Values of `lag` visits ago and whether there are any yet.

    Args:
        memory: The memory.
        index: Which examples; an index outside the table reads NaN, so that its row alone is spoiled.

    Returns:
        Values [B, ...] and a mask [B], False for examples visited fewer than `lag` times.
    """
    num_samples, lag = memory.table.shape[:2]
    index = jnp.where(index < 0, num_samples, index)
    visits = memory.visits.at[index].get(mode="fill", fill_value=lag)
    return memory.table.at[index, visits % lag].get(mode="fill", fill_value=jnp.nan), visits >= lag


def write(
    memory: Memory,
    index: Int[Array, " B"],
    values: Shaped[Array, "B ..."],
    weights: Float[Array, " B"],
) -> Memory:
    """Counts a visit and stores the values.

    Args:
        memory: The memory.
        index: Which examples. Of duplicates the last one is stored, and they count as one visit.
        values: What to store [B, ...].
        weights: Rows of weight 0 are padding and leave no trace.

    Returns:
        The new memory.
    """
    num_samples, lag = memory.table.shape[:2]
    index = jnp.where((weights == 0) | (index < 0), num_samples, index)
    # Scatter order is undefined, so all but the last duplicate are sent out of the table.
    order = jnp.argsort(index, stable=True)
    ranked = index[order]
    is_last = jnp.append(ranked[1:] != ranked[:-1], True)
    rows = jnp.where(is_last, ranked, num_samples)
    slots = memory.visits.at[rows].get(mode="fill", fill_value=0) % lag
    return Memory(
        table=memory.table.at[rows, slots].set(values[order].astype(memory.table.dtype), mode="drop"),
        visits=memory.visits.at[rows].add(1, mode="drop"),
    )
