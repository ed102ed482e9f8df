"""Batch sizes by gradient tests: the requests, their growth, and a run through the training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import diagnostics, sampling, train

KEY = jax.random.key(0)
RNG = np.random.default_rng(84)
ROWS = RNG.normal(size=(6, 4)).astype(np.float32) + 1
TESTS = ("norm", "inner", "orthogonal", "augmented", "coordinate")


def noise(*values):
    return diagnostics.GradientNoise(*(jnp.float32(x) for x in values))


def record(state, sampler, *requests):
    """The sizes after each request."""
    sizes = []
    for request in requests:
        index, state = sampler.draw(state)
        state = sampler.record(state, index, np.full(len(index), request))
        sizes.append(int(state.size))
    return sizes, state


@pytest.mark.paper(84)
class TestRequests:
    def test_by_hand(self):
        """Moments ‖ḡ‖² = 4, V = 10, V_ip = 48, V_o = 5 and a largest ratio of 7, at tolerances 1/2, 1 and 1/4."""
        moments = noise(4.0, 10.0, 48.0, 5.0, 7.0)
        options = {"eta": 0.5, "theta": 1.0, "nu": 0.25}
        asked = [float(sampling.requested_batch_size(moments, test, **options)) for test in TESTS]
        assert asked == [10.0, 3.0, 20.0, 20.0, 28.0]

    @pytest.mark.parametrize("test", TESTS)
    def test_identical_examples_ask_for_one(self, test):
        same = diagnostics.gradient_noise(np.ones((6, 4), np.float32))
        assert float(sampling.requested_batch_size(same, test)) == 1.0

    def test_zero_mean_asks_for_all_and_nan_stays(self):
        assert np.isinf(sampling.requested_batch_size(noise(0.0, 2.0, 0.0, 2.0, np.inf)))
        assert np.isnan(sampling.requested_batch_size(noise(*5 * [np.nan])))

    def test_options_may_be_traced(self):
        moments = diagnostics.gradient_noise(ROWS)
        etas = jnp.array([0.05, 0.1])
        asked = jax.jit(jax.vmap(lambda eta: sampling.requested_batch_size(moments, eta=eta)))(etas)
        np.testing.assert_array_equal(
            asked, [sampling.requested_batch_size(moments, eta=float(e)) for e in etas]
        )

    def test_bad_options(self):
        with pytest.raises(ValueError, match="test must be one of"):
            sampling.requested_batch_size(noise(*5 * [1.0]), "ip")
        with pytest.raises(ValueError, match="eta must lie in"):
            sampling.requested_batch_size(noise(*5 * [1.0]), eta=0.0)


@pytest.mark.paper(84)
class TestGrowth:
    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=10))
    def test_never_decreases_and_is_capped(self, requests):
        """At least what was asked for, up to the cap; from 3 by powers of two."""
        sampler = sampling.batch_controller(3, 50)
        sizes, _ = record(sampler.init(64, KEY), sampler, *requests)
        needed = np.minimum(np.maximum.accumulate(requests), 50)
        assert np.all(np.diff(sizes) >= 0)
        assert np.all(sizes >= needed)
        assert np.all((np.array(sizes) < 2 * needed) | (np.array(sizes) == 3))
        assert set(sizes) <= {3, 6, 12, 24, 48, 50}

    def test_what_asks_for_nothing_and_for_all(self):
        sampler = sampling.batch_controller(4, 20)
        assert record(sampler.init(20, KEY), sampler, np.nan, 4.0, 5.0, np.inf)[0] == [4, 4, 8, 20]

    def test_every(self):
        sampler = sampling.batch_controller(4, 64, every=3)
        assert record(sampler.init(64, KEY), sampler, 50, 50, 7, 50, 50, 50)[0] == [4, 4, 8, 8, 8, 64]

    def test_epochs_are_permutations_while_it_grows(self):
        sampler = sampling.batch_controller(2, 8)
        state, dealt = sampler.init(16, KEY), []
        for request in (2, 4, 8, 8):  # 2 + 2 + 4 + 8 examples
            index, state = sampler.draw(state)
            dealt.append(index)
            state = sampler.record(state, index, np.full(len(index), float(request)))
        assert sorted(np.concatenate(dealt).tolist()) == list(range(16))

    def test_state_resumes(self):
        sampler = sampling.batch_controller(2, 8)
        _, state = record(sampler.init(16, KEY), sampler, 3.0)
        assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(state))
        copy = jax.tree.map(np.array, state)
        np.testing.assert_array_equal(sampler.draw(state)[0], sampler.draw(copy)[0])


@pytest.mark.paper(84)
def test_grows_in_the_training_loop():
    """A mean is learned; near it the noise is all that is left, and the batches end at the cap."""
    data = {"inputs": RNG.normal(size=(64, 2)).astype(np.float32) + 3}
    seen = []

    def step(theta, batch):
        seen.append(batch["inputs"].shape[0])  # one trace for each size
        gradients = theta - batch["inputs"]
        asked = sampling.requested_batch_size(diagnostics.gradient_noise(gradients), eta=1.0)
        value = jnp.mean(gradients**2)
        return theta - 0.5 * jnp.mean(gradients, 0), {
            "value": value,
            "losses": jnp.full(len(gradients), asked),
        }

    result = train.fit(
        step, jnp.zeros(2), data, steps=20, chunk=4, sampler=sampling.batch_controller(4, 64), progress=False
    )
    sizes = list(dict.fromkeys(seen))
    assert sizes[0] == 4
    assert sizes[-1] == 64
    assert sizes == sorted(sizes)
    np.testing.assert_allclose(result.state, data["inputs"].mean(0), atol=0.05)


@pytest.mark.parametrize(("first", "largest"), [(0, 4), (5, 4)])
def test_bad_sizes(first, largest):
    with pytest.raises(ValueError, match="batch_size must lie between 1 and max_batch_size"):
        sampling.batch_controller(first, largest)


def test_more_than_the_data_and_no_interval():
    with pytest.raises(ValueError, match="max_batch_size must be at most the number of examples, 7; got 8"):
        sampling.batch_controller(2, 8).init(7, KEY)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        sampling.batch_controller(2, 8, every=0)
