"""Cosine power annealing against its definition, cosine annealing and the counts that the paper's curve implies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiv.transforms import cosine_power_schedule

COUNTS = jnp.arange(30)


def values(*args, counts=COUNTS, **options):
    return np.asarray(cosine_power_schedule(*args, **options)(counts))


def defined(top, steps, bottom, order, warmup):
    """The powers b^{c_e + 1}, rescaled to their range over the schedule."""
    epochs = np.arange(1, steps + 1)
    cosine = (1 + np.cos(np.pi * (epochs - warmup) / (steps - warmup))) / 2
    power = cosine if order == 1 else order ** (cosine + 1)
    curve = power[max(warmup - 1, 0) :]  # with a warm-up the curve starts at its end, where c = 1
    share = (power - curve.min()) / (curve.max() - curve.min())
    share = np.where(epochs <= warmup, epochs / max(warmup, 1), share)
    return bottom + (top - bottom) * share


@pytest.mark.paper(112)
class TestExact:
    @pytest.mark.parametrize("warmup", [0, 1, 5])
    @pytest.mark.parametrize("order", [1.0, 1.001, 2.0, 10.0, 1e4])
    def test_is_the_rescaled_power_of_the_cosine(self, order, warmup):
        with jax.enable_x64(True):
            got = values(0.2, 30, min_value=0.01, order=order, warmup_steps=warmup)
        tolerance = 1e-9 if order != 1.001 else 1e-7  # the definition itself cancels there
        np.testing.assert_allclose(got, defined(0.2, 30, 0.01, order, warmup), atol=tolerance)
        single = values(0.2, 30, min_value=0.01, order=order, warmup_steps=warmup)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, got, rtol=2e-5)

    def test_order_to_one_is_the_cosine_rescaled(self):
        """At b = 1.001 the largest difference is 1.2e-4, to the cosine that starts below 1 it is 2.7e-3."""
        cosine = (1 + np.cos(np.pi * np.arange(1, 31) / 30)) / 2
        got = values(1.0, 30, order=1.001)
        np.testing.assert_allclose(np.max(np.abs(got - values(1.0, 30, order=1.0))), 1.25e-4, rtol=0.05)
        np.testing.assert_allclose(got, cosine / cosine[0], atol=2e-4)
        np.testing.assert_allclose(np.max(np.abs(got - cosine)), 2.74e-3, rtol=0.05)

    @given(st.floats(1.0, 1e3), st.floats(-1.0, 1.0), st.integers(0, 1))
    @settings(deadline=None, derandomize=True, max_examples=20)
    def test_falls_from_end_to_end(self, order, bottom, warm):
        """Monotone from `init_value` to `min_value`, where it stays."""
        warmup = 5 * warm
        curve = values(1.5, 30, min_value=bottom, order=order, warmup_steps=warmup)
        falling = curve[max(warmup - 1, 0) :]
        np.testing.assert_allclose(falling[0], 1.5, rtol=1e-6)
        np.testing.assert_allclose(curve[-1], bottom, rtol=1e-6, atol=1e-30)
        assert np.all(np.diff(falling) < 0)
        np.testing.assert_array_equal(
            values(1.5, 30, min_value=bottom, order=order, warmup_steps=warmup, counts=COUNTS + 29), curve[-1]
        )

    def test_order_10_spends_11_of_30_epochs_below_a_tenth_the_cosine_7(self):
        below = {order: int(np.sum(values(1.0, 30, order=order) < 0.1)) for order in (10.0, 1.0)}
        assert below == {10.0: 11, 1.0: 7}

    def test_share_below_a_tenth_of_a_long_schedule(self):
        """(10^c − 1)/9 < 1/10 is c < log10(1.9), c = sin²(π s / 2): s < .354; for the cosine s < .205."""
        for order, share in ((10.0, 0.354), (1.0, 0.205)):
            curve = values(1.0, 3000, order=order, counts=jnp.arange(3000))
            np.testing.assert_allclose(np.mean(curve < 0.1), share, atol=1e-3)


@pytest.mark.paper(112)
class TestUse:
    def test_options_may_be_traced(self):
        """Slopes in the numeric options, at the cosine too, are central differences."""

        def value(options, count):
            top, bottom, order = options
            return cosine_power_schedule(top, 30, min_value=bottom, order=order, warmup_steps=3)(count)

        with jax.enable_x64(True):
            slopes = jax.jit(jax.vmap(jax.value_and_grad(value), (0, None)))
            for order in (1.0 + 2e-6, 3.0):
                moved = np.array([1.0, 0.1, order]) + 1e-6 * np.concatenate(
                    [np.zeros((1, 3)), np.eye(3), -np.eye(3)]
                )
                each, slope = slopes(moved, 12)
                np.testing.assert_allclose(slope[0], (each[1:4] - each[4:]) / 2e-6, rtol=1e-5)
            np.testing.assert_allclose(each[0], value((1.0, 0.1, 3.0), 12), rtol=1e-12)

    def test_slope_at_order_one(self):
        """q = c (1 + c t/2) / (c_1 (1 + c_1 t/2)) for t = log b → 0, so dq/db = c (c − c_1) / (2 c_1)."""
        first, cosine = (np.sin(np.pi * left / 60) ** 2 for left in (29, 17))
        slope = jax.grad(lambda order: cosine_power_schedule(1.0, 30, order=order)(12))(1.0)
        np.testing.assert_allclose(slope, cosine * (cosine - first) / (2 * first), rtol=1e-4)

    def test_drives_an_optimizer_in_a_scan(self):
        """The n-th update is ``schedule(n)`` times the gradient."""
        tx = optax.sgd(cosine_power_schedule(0.3, 30, order=10.0))

        def body(state, _):
            update, state = tx.update(jnp.ones(()), state)
            return state, -update

        _, steps = jax.jit(lambda state: jax.lax.scan(body, state, length=30))(tx.init(jnp.zeros(())))
        np.testing.assert_allclose(steps, values(0.3, 30, order=10.0), rtol=1e-6)


@pytest.mark.paper(112)
class TestBadInput:
    @pytest.mark.parametrize("order", [0.5, np.inf, np.nan])
    def test_order(self, order):
        with pytest.raises(ValueError, match="order must lie in"):
            cosine_power_schedule(1.0, 10, order=order)

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (6, 5)])
    def test_too_few_steps(self, steps, warmup):
        with pytest.raises(ValueError, match="decay_steps must be at least warmup_steps"):
            cosine_power_schedule(1.0, steps, warmup_steps=warmup)

    def test_negative_warmup(self):
        with pytest.raises(ValueError, match="warmup_steps must be at least 0"):
            cosine_power_schedule(1.0, 10, warmup_steps=-1)
