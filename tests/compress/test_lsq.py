"""Learned step size quantization: levels, the paper's piecewise derivatives, the first step, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import compress

RNG = np.random.default_rng(195)
VALUES = RNG.normal(size=40) * 2


def defined(v, s, bits, signed):
    """q, ∂q/∂v and ∂q/∂s by the paper's equations."""
    low, high = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ratio = v / s
    inside = (ratio > -low) & (ratio < high)
    by_scale = np.where(inside, np.round(ratio) - ratio, np.where(ratio <= -low, -low, high))
    return s * np.round(np.clip(ratio, -low, high)), inside.astype(float), by_scale, high


@pytest.mark.paper(195)
class TestExact:
    @pytest.mark.parametrize("grad_scale", [False, True])
    @pytest.mark.parametrize("signed", [True, False])
    def test_values_and_derivatives_are_the_papers(self, signed, grad_scale):
        weights = RNG.normal(size=40)

        def projected(v, s):
            q = compress.lsq_quantize(v, s, 3, signed=signed, grad_scale=grad_scale)
            return jnp.sum(weights * q), q

        with jax.enable_x64(True):
            (_, q), slopes = jax.jit(jax.value_and_grad(projected, (0, 1), has_aux=True))(VALUES, 0.3)
        expected, by_value, by_scale, high = defined(VALUES, 0.3, 3, signed)
        factor = 1 / np.sqrt(40 * high) if grad_scale else 1.0
        np.testing.assert_allclose(q, expected, rtol=1e-12)
        np.testing.assert_allclose(slopes[0], weights * by_value, rtol=1e-12)
        np.testing.assert_allclose(slopes[1], factor * np.sum(weights * by_scale), rtol=1e-10)

    def test_one_step_per_channel(self):
        v, s = VALUES.reshape(4, 10), np.array([[0.2], [0.3], [0.5], [1.0]])
        with jax.enable_x64(True):
            q = compress.lsq_quantize(v, s, 4)
            slope = jax.grad(lambda s: jnp.sum(compress.lsq_quantize(v, s, 4)))(jnp.asarray(s))
        expected, _, by_scale, high = defined(v, s, 4, True)
        np.testing.assert_allclose(q, expected, rtol=1e-12)
        np.testing.assert_allclose(slope, by_scale.sum(1, keepdims=True) / np.sqrt(10 * high), rtol=1e-10)

    @given(st.integers(2, 8), st.floats(0.01, 10.0))
    def test_is_idempotent_with_at_most_two_to_the_bits_levels(self, bits, s):
        q = compress.lsq_quantize(jnp.asarray(VALUES, jnp.float32), s, bits)
        assert len(np.unique(q)) <= 2**bits
        np.testing.assert_allclose(compress.lsq_quantize(q, s, bits), q, rtol=1e-5)

    def test_first_step(self):
        """2 mean|v| / √Q_P; signed with 3 bits Q_P = 3."""
        v = np.array([1.0, -2.0, 3.0], np.float32)
        np.testing.assert_allclose(compress.lsq_scale(v, 3), 4 / np.sqrt(3), rtol=1e-6)
        np.testing.assert_allclose(compress.lsq_scale(v, 2, signed=False), 4 / np.sqrt(3), rtol=1e-6)


@pytest.mark.paper(195)
def test_descent_on_the_step_lowers_the_error():
    v = jnp.asarray(RNG.normal(size=200), jnp.float32)

    def error(s):
        return jnp.mean((compress.lsq_quantize(v, s, 3, grad_scale=False) - v) ** 2)

    slope = jax.jit(jax.grad(error))
    s = start = jnp.float32(1.5)
    for _ in range(60):
        s = s - 0.1 * slope(s)
    assert error(s) < 0.5 * error(start)
    grid = jnp.linspace(0.1, 1.5, 200)
    assert error(s) < 1.1 * jnp.min(jax.vmap(error)(grid))


class TestEdges:
    def test_bounds_count_as_outside(self):
        """At v/s = −4 and 3 the weights have no gradient, as in the paper."""
        slope = jax.grad(lambda v: jnp.sum(compress.lsq_quantize(v, 1.0, 3)))(jnp.array([-4.0, 0.0, 3.0]))
        np.testing.assert_array_equal(slope, [0.0, 1.0, 0.0])

    def test_half_precision(self):
        q = compress.lsq_quantize(jnp.asarray(VALUES, jnp.bfloat16), 0.25, 3)
        assert q.dtype == jnp.bfloat16

    def test_a_step_that_is_not_positive_shows(self):
        with pytest.raises(ValueError, match="s must lie in"):
            compress.lsq_quantize(jnp.ones(2), 0.0, 3)
        assert np.isnan(jax.jit(lambda s: compress.lsq_quantize(jnp.ones(2), s, 3))(-1.0)).all()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="bits must be at least 2 where signed; got 1"):
            compress.lsq_quantize(jnp.ones(2), 1.0, 1)
        with pytest.raises(ValueError, match="bits must be at least 1; got 0"):
            compress.lsq_scale(jnp.ones(2), 0, signed=False)
        with pytest.raises(
            ValueError, match=r"s must broadcast to the shape \(2,\) of v; got shape \(3, 1\)"
        ):
            compress.lsq_quantize(jnp.ones(2), jnp.ones((3, 1)), 3)
        with pytest.raises(ValueError, match="v must be floating"):
            compress.lsq_quantize(jnp.ones(2, int), 1.0, 3)
