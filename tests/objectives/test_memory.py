"""The memory per example: a ring of visits, read before it is overwritten."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv.objectives import memory as memories

N, LAG = 5, 2


@jax.jit
def visit(memory, index, values, weights):
    past, known = memories.read(memory, index)
    return past, known, memories.write(memory, index, values, weights)


def reference(history, index, values, weights):
    """The same with a list of past values per example."""
    known = [0 <= i < N and len(history[i]) >= LAG for i in index]
    past = [history[i][-LAG] if k else None for i, k in zip(index, known, strict=True)]
    last = {i: v for i, v, w in zip(index, values, weights, strict=True) if w != 0 and 0 <= i < N}
    for i, v in last.items():
        history[i].append(v)
    return past, known


rows = st.tuples(st.integers(-1, N), st.sampled_from([0.0, 1.0]))


@given(st.lists(st.lists(rows, min_size=4, max_size=4), min_size=3, max_size=6))
def test_is_a_list_of_visits_per_example(batches):
    """Duplicates, padding and indices out of range in any order, against plain Python lists."""
    memory, history, count = memories.empty(N, LAG, (), jnp.float32), [[] for _ in range(N)], 0
    for batch in batches:
        index, weights = (np.array(column) for column in zip(*batch, strict=True))
        values = count + np.arange(4.0)
        count += 4
        past, known, memory = visit(
            memory, index.astype(np.int32), values.astype(np.float32), weights.astype(np.float32)
        )
        expected, expected_known = reference(history, index, values, weights)
        for row, i in enumerate(index):
            if not 0 <= i < N:
                assert np.isnan(past[row])
                continue
            assert known[row] == expected_known[row]
            if known[row]:
                assert past[row] == expected[row]
    np.testing.assert_array_equal(memory.visits, [len(past) for past in history])


def test_maps_over_memories():
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), memories.empty(N, LAG, (), jnp.float32))
    index, ones = np.array([[0, 0, 1, 2], [3, 4, 4, 4]], np.int32), np.ones(4, np.float32)
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, _, memory = jax.vmap(visit, (0, 0, 0, None))(stacked, index, values, ones)
    np.testing.assert_array_equal(memory.table[:, :, 0], [[1, 2, 3, 0, 0], [0, 0, 0, 4, 7]])
    chex.assert_type(memory.visits, jnp.int32)


@pytest.mark.parametrize(("samples", "lag", "name"), [(0, 1, "num_samples"), (3, 0, "lag")])
def test_counts_below_one(samples, lag, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        memories.empty(samples, lag, (), jnp.float32)
