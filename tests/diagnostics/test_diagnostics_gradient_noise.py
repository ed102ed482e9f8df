"""Moments of per-example gradients: hand-computed numbers, the orthogonal decomposition, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import diagnostics

RNG = np.random.default_rng(84)
measure = jax.jit(diagnostics.gradient_noise)


@pytest.mark.paper(84)
class TestExact:
    def test_by_hand(self):
        """ḡ = (2, 0); Var = (3, 1); ⟨g, ḡ⟩ = (2, 2, 8), of variance 12; orthogonal parts (1, −1, 0)."""
        noise = measure(jnp.array([[1.0, 1.0], [1.0, -1.0], [4.0, 0.0]]))
        np.testing.assert_allclose(noise, [4.0, 4.0, 12.0, 1.0, np.inf], rtol=1e-6)

    @given(st.integers(0, 1000), st.floats(1e-3, 1e3))
    def test_variance_is_that_along_the_mean_and_across(self, seed, offset):
        """V = V_ip/‖ḡ‖² + V_o, to rounding."""
        with jax.enable_x64(True):
            noise = measure(jnp.asarray(np.random.default_rng(seed).normal(size=(5, 4)) + offset))
        noise = jax.tree.map(np.asarray, noise)
        split = noise.inner_variance / noise.mean_square + noise.orthogonal_variance
        np.testing.assert_allclose(noise.variance, split, rtol=1e-10)

    def test_as_numpy_has_them_over_all_leaves(self):
        tree = {"a": RNG.normal(size=(5, 2, 3)), "b": RNG.normal(size=5)}
        flat = np.concatenate([tree["a"].reshape(5, -1), tree["b"][:, None]], 1)
        mean, var = flat.mean(0), flat.var(0, ddof=1)
        with jax.enable_x64(True):
            noise = measure(jax.tree.map(jnp.asarray, tree))
            median = diagnostics.gradient_noise(tree, quantile=0.5).coordinate_ratio
        np.testing.assert_allclose(noise.mean_square, mean @ mean, rtol=1e-12)
        np.testing.assert_allclose(noise.variance, var.sum(), rtol=1e-12)
        np.testing.assert_allclose(noise.inner_variance, np.var(flat @ mean, ddof=1), rtol=1e-12)
        np.testing.assert_allclose(noise.coordinate_ratio, np.max(var / mean**2), rtol=1e-12)
        np.testing.assert_allclose(median, np.median(var / mean**2), rtol=1e-12)

    def test_micro_batches_estimate_the_same(self):
        """Means of s examples vary s times less: over many micro-batches s V(means) is V of the examples."""
        rows = RNG.normal(size=(4096, 3)).astype(np.float32) + 1
        whole, parts = measure(rows), measure(rows.reshape(512, 8, 3).mean(1))
        np.testing.assert_allclose(8 * parts.variance, whole.variance, rtol=0.1)
        np.testing.assert_allclose(parts.mean_square, whole.mean_square, rtol=1e-5)


@pytest.mark.paper(84)
class TestEdges:
    def test_identical_examples_have_no_noise(self):
        noise = measure(np.full((8, 3), 0.25, np.float32))
        np.testing.assert_array_equal(noise[1:], np.zeros(4))

    def test_zero_gradients_are_no_noise(self):
        np.testing.assert_array_equal(measure(jnp.zeros((8, 3))), np.zeros(5))

    def test_zero_mean_with_noise(self):
        noise = measure(jnp.array([[1.0], [-1.0]]))
        np.testing.assert_allclose(noise, [0.0, 2.0, 0.0, 2.0, np.inf])

    def test_nan_stays(self):
        assert np.isnan(measure(jnp.array([[1.0, np.nan], [1.0, 2.0]]))).all()

    def test_half_precision_is_measured_in_float32(self):
        rows = RNG.normal(size=(5, 4)).astype(jnp.bfloat16)
        noise = measure(rows)
        assert noise.variance.dtype == jnp.float32
        np.testing.assert_allclose(noise, measure(rows.astype(np.float32)), rtol=1e-6)

    @pytest.mark.parametrize("tree", [np.ones((1, 3)), {"a": np.ones((3, 2)), "b": np.ones(2)}, np.ones(())])
    def test_too_few_or_ragged(self, tree):
        with pytest.raises(ValueError, match="per_example_grads must hold at least 2 gradients"):
            diagnostics.gradient_noise(jax.tree.map(lambda x: np.asarray(x, np.float32), tree))

    def test_quantile(self):
        with pytest.raises(ValueError, match="quantile must lie in"):
            diagnostics.gradient_noise(jnp.ones((2, 2)), quantile=1.5)
