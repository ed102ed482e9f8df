"""Hard mini-batches: the selection, its order, its two modes, and the losses it goes by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import sampling, train

KEY = jax.random.key(0)


def visits(sampler, state, count, loss=lambda k: float(k)):
    """Numbers of the mini-batches drawn, each recorded with a loss."""
    out = []
    for _ in range(count):
        index, state = sampler.draw(state)
        k = int(state.owner[index[0]])
        state = sampler.record(state, index, np.full(len(index), loss(k)))
        out.append(k)
    return out, state


@pytest.mark.paper(82)
class TestExact:
    @given(st.lists(st.integers(0, 3), min_size=5, max_size=5), st.floats(0.05, 1.0))
    def test_selects_the_hardest_ties_to_the_lower_number(self, losses, delta):
        """⌈δK⌉ of highest loss after a full first epoch."""
        sampler = sampling.hard_minibatches(2, delta)
        first, state = visits(sampler, sampler.init(10, KEY), 5, losses.__getitem__)
        count = int(np.ceil(delta * 5))
        second, _ = visits(sampler, state, count, losses.__getitem__)
        assert sorted(first) == list(range(5))
        assert sorted(second) == sorted(sorted(range(5), key=lambda k: (-losses[k], k))[:count])

    def test_selected_ones_come_in_the_ordinary_order(self):
        """All of δ = 1's epochs are permutations; δ < 1 visits its part of each in the same order."""
        everything, part = sampling.hard_minibatches(2, 1.0), sampling.hard_minibatches(2, 0.5)
        whole, _ = visits(everything, everything.init(12, KEY), 18)
        few, _ = visits(part, part.init(12, KEY), 12)
        epochs = np.array(whole).reshape(3, 6)
        np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(6), (3, 1)))
        assert few[:6] == whole[:6]
        assert few[6:9] == [k for k in epochs[1] if k >= 3]
        assert few[9:] == [k for k in epochs[2] if k >= 3]
        assert epochs[1].tolist() != epochs[2].tolist()

    def test_delta_of_one_goes_by_no_loss(self):
        sampler = sampling.hard_minibatches(2, 1.0)
        rising, _ = visits(sampler, sampler.init(12, KEY), 18)
        falling, _ = visits(sampler, sampler.init(12, KEY), 18, lambda k: -float(k))
        assert rising == falling

    def test_extra_goes_over_all_and_then_over_the_selected(self):
        sampler = sampling.hard_minibatches(2, 0.5, mode="extra")
        got, _ = visits(sampler, sampler.init(8, KEY), 2 * (4 + 2))
        for epoch in (got[:6], got[6:]):
            assert sorted(epoch[:4]) == [0, 1, 2, 3]
            assert sorted(epoch[4:]) == [2, 3]

    def test_mini_batches_are_a_partition(self):
        """With a filled-up last one; unshuffled they are blocks of the data."""
        state = sampling.hard_minibatches(4).init(10, KEY)
        assert sorted(state.batches.ravel()[:10].tolist()) == list(range(10))
        np.testing.assert_array_equal(state.batches[2, 2:], state.batches[0, :2])
        ordered = sampling.hard_minibatches(4, shuffle=False).init(10, KEY)
        np.testing.assert_array_equal(ordered.batches, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]])
        np.testing.assert_array_equal(ordered.owner, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])


@pytest.mark.paper(82)
class TestLosses:
    def test_average_of_visits(self):
        sampler = sampling.hard_minibatches(2, decay=0.75)
        state = sampler.init(4, KEY)
        for loss in (8.0, 4.0):
            state = sampler.record(state, state.batches[1], np.array([loss - 1, loss + 1]))
        np.testing.assert_allclose(state.losses, [np.inf, 7.0])

    def test_a_loss_is_only_renewed_by_a_visit(self):
        """What was easy once stays out, until all are visited again."""
        losses = np.array([1.0, 2.0, 3.0, 4.0])
        sampler = sampling.hard_minibatches(1, 0.5, refresh_every=3)
        _, state = visits(sampler, sampler.init(4, KEY), 4, losses.__getitem__)
        losses[0] = 9.0
        stale, state = visits(sampler, state, 4, losses.__getitem__)
        assert 0 not in stale
        full, state = visits(sampler, state, 4, losses.__getitem__)
        assert sorted(full) == [0, 1, 2, 3]
        assert sorted(visits(sampler, state, 2)[0]) == [0, 3]

    def test_state_resumes_and_draws_are_the_callers_own(self):
        sampler = sampling.hard_minibatches(2, 0.5)
        _, state = visits(sampler, sampler.init(10, KEY), 4)
        copy = jax.tree.map(np.array, state)
        index, _ = sampler.draw(state)
        index[:] = -1
        assert visits(sampler, state, 8)[0] == visits(sampler, copy, 8)[0]


@pytest.mark.paper(82)
def test_training_loop_goes_to_the_high_losses():
    """Two mini-batches of a mean at 0 and two of one at 5: after the first epoch the latter alone are visited."""

    def step(theta, batch):
        losses = (batch["inputs"] - theta) ** 2
        return theta, {"value": jnp.mean(losses), "losses": losses}

    data = {"inputs": np.repeat(np.array([0.0, 5.0], np.float32), 4)}
    sampler = sampling.hard_minibatches(2, 0.5, shuffle=False)
    result = train.fit(step, jnp.zeros(()), data, steps=8, chunk=4, sampler=sampler, progress=False)
    assert [row["value"] for row in result.history] == [12.5, 25.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"delta": 0.0}, "delta must lie in"),
        ({"decay": 1.0}, "decay must lie in"),
        ({"mode": "both"}, "mode must be one of"),
        ({"refresh_every": 0}, "refresh_every must be at least 1; got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        sampling.hard_minibatches(**{"batch_size": 2, **options})


def test_batch_size_above_the_data():
    with pytest.raises(ValueError, match="at most the number of examples, 3; got 4"):
        sampling.hard_minibatches(4).init(3, KEY)
