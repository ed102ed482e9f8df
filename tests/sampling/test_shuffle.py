"""Shuffling: every example once an epoch, decided by the key, resumed from its state."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import sampling

KEY = jax.random.key(0)


def draws(sampler, state, count):
    drawn = []
    for _ in range(count):
        index, state = sampler.draw(state)
        drawn.append(index)
    return np.concatenate(drawn), state


@given(st.integers(1, 12), st.integers(1, 12))
def test_every_epoch_is_a_permutation(n, batch_size):
    """Cut into runs of n, what is dealt is one permutation after another, whatever the batch size."""
    batch_size = min(batch_size, n)
    sampler = sampling.shuffle(batch_size)
    index, _ = draws(sampler, sampler.init(n, KEY), 3 * n)
    assert index.dtype == np.int32
    np.testing.assert_array_equal(
        np.sort(index.reshape(-1, n), axis=1), np.tile(np.arange(n), (3 * batch_size, 1))
    )


def test_batches_have_one_size():
    sampler = sampling.shuffle(3)
    state = sampler.init(7, KEY)
    for _ in range(10):
        index, state = sampler.draw(state)
        assert index.shape == (3,)


def test_epochs_and_keys_differ_and_a_key_decides():
    sampler = sampling.shuffle(50)
    first, _ = draws(sampler, sampler.init(50, KEY), 2)
    again, _ = draws(sampler, sampler.init(50, jax.random.key(0)), 2)
    other, _ = draws(sampler, sampler.init(50, jax.random.key(1)), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:50], first[50:])
    assert not np.array_equal(first, other)


def test_order_is_uniform():
    """Each of 3 examples comes first in a third of the permutations: chi-squared below its 99.9 % point."""
    sampler = sampling.shuffle(3)
    index, _ = draws(sampler, sampler.init(3, KEY), 900)
    counts = np.bincount(index.reshape(-1, 3)[:, 0], minlength=3)
    assert ((counts - 300) ** 2 / 300).sum() < 13.8


@pytest.mark.parametrize("before", [1, 3, 5])
def test_state_resumes(before):
    """The state is numpy alone; from a copy of it the same batches follow, across the epoch's end."""
    sampler = sampling.shuffle(3)
    _, state = draws(sampler, sampler.init(10, KEY), before)
    assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(state))
    copy = jax.tree.map(np.array, state)
    straight, _ = draws(sampler, state, 8)
    resumed, _ = draws(sampling.shuffle(3), copy, 8)
    np.testing.assert_array_equal(straight, resumed)


def test_draws_are_the_callers_own():
    """Writing into a drawn batch does not change what comes later, nor does drawing change a state."""
    sampler = sampling.shuffle(2)
    state = sampler.init(6, KEY)
    index, after = sampler.draw(state)
    kept = index.copy()
    index[:] = -1
    rest, _ = draws(sampler, after, 2)
    np.testing.assert_array_equal(np.sort([*kept, *rest]), np.arange(6))
    np.testing.assert_array_equal(sampler.draw(state)[0], kept)


def test_record_changes_nothing():
    sampler = sampling.shuffle(2)
    state = sampler.init(4, KEY)
    index, state = sampler.draw(state)
    assert sampler.record(state, index, np.ones(2, np.float32)) is state


def test_raw_keys_work():
    sampler = sampling.shuffle(4)
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(sampler.init(4, raw).order, sampler.init(4, KEY).order)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one(batch_size):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        sampling.shuffle(batch_size)


@pytest.mark.parametrize("n", [0, 4])
def test_batch_size_above_the_data(n):
    with pytest.raises(ValueError, match=f"at most the number of examples, {n}; got 5"):
        sampling.shuffle(5).init(n, KEY)
