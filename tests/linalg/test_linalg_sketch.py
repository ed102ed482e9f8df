import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from absl.testing import parameterized

from jaxdiv import linalg

FACTORIES = {
    "gaussian": linalg.gaussian_sketch,
    "srht": linalg.srht,
    "count": linalg.count_sketch,
}


@functools.cache
def _draw(name, n, m):
    return jax.jit(lambda key: FACTORIES[name](n, m, key=key))(jax.random.key(3))


@jax.jit
def _grams(matrices):
    return jnp.mean(jnp.einsum("kmi,kmj->kij", matrices, matrices), axis=0)


# Eagerly each step of a transform compiles by itself.
apply = jax.jit(lambda sketch, x: sketch(x))
transpose = jax.jit(lambda sketch, y: sketch.transpose(y))


class SketchContractTest(chex.TestCase):
    @parameterized.parameters(*FACTORIES)
    def test_expectation_of_the_gram_matrix_is_the_identity(self, name):
        n, m, draws = 6, 4, 4000

        def matrix(key):
            return FACTORIES[name](n, m, key=key)(jnp.eye(n))

        gram = _grams(jax.jit(jax.vmap(matrix))(jax.random.split(jax.random.key(0), draws)))
        # Entries have standard deviation at most sqrt(2 / m) each.
        np.testing.assert_allclose(gram, np.eye(n), atol=5 * np.sqrt(2 / m / draws))

    @parameterized.parameters(*FACTORIES)
    def test_transpose_is_the_transpose(self, name):
        sketch = _draw(name, 6, 4)
        s, s_t = apply(sketch, jnp.eye(6)), transpose(sketch, jnp.eye(4))
        np.testing.assert_allclose(s_t, s.T, atol=1e-6)
        y = jnp.arange(8.0).reshape(4, 2)
        pull = jax.jit(lambda sketch, y: jax.linear_transpose(sketch, jnp.ones((6, 2)))(y)[0])
        np.testing.assert_allclose(pull(sketch, y), transpose(sketch, y), atol=1e-5)
        np.testing.assert_allclose(apply(sketch, jnp.arange(6.0)), s @ jnp.arange(6.0), atol=1e-5)

    @parameterized.parameters(("gaussian", 96), ("srht", 96), ("count", 96))
    def test_subspace_embedding(self, name, m):
        # All singular values of S U within 1 ± 1/2 for an orthonormal U, three fixed seeds.
        n, d = 200, 4
        u = np.linalg.qr(np.random.default_rng(0).normal(size=(n, d)))[0]
        u[:, 0] = np.eye(n)[0]  # a coherent direction
        u = jnp.asarray(np.linalg.qr(u)[0], jnp.float32)
        keys = jax.random.split(jax.random.key(1), 3)
        sketched = jax.jit(jax.vmap(lambda key: FACTORIES[name](n, m, key=key)(u)))(keys)
        singular = np.linalg.svd(sketched, compute_uv=False)
        assert singular.max() < 1.5
        assert singular.min() > 0.5

    @parameterized.parameters(*FACTORIES)
    def test_dtypes_and_bad_input(self, name):
        sketch = _draw(name, 6, 4)
        assert apply(sketch, jnp.ones((6, 2), jnp.bfloat16)).dtype == jnp.float32
        with jax.enable_x64(True):
            assert apply(sketch, jnp.ones(6, jnp.float64)).dtype == jnp.float64
        with pytest.raises(ValueError, match="x must be floating"):
            sketch(jnp.ones(6, int))
        with pytest.raises(ValueError, match="x must have 6 rows"):
            sketch(jnp.ones(5))
        with pytest.raises(ValueError, match="y must have 4 rows"):
            sketch.transpose(jnp.ones(5))
        with pytest.raises(ValueError, match="m must lie in"):
            FACTORIES[name](6, 0, key=jax.random.key(0))


class HadamardTest(chex.TestCase):
    @pytest.mark.paper(67)
    def test_matches_scipy(self):
        with jax.enable_x64(True):
            x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)))
            expected = scipy.linalg.hadamard(64) @ x
            hadamard = jax.jit(linalg.walsh_hadamard)
            np.testing.assert_allclose(hadamard(x), expected, atol=1e-10)
            np.testing.assert_allclose(hadamard(hadamard(x)), 64 * x, atol=1e-10)

    @pytest.mark.paper(67)
    def test_all_rows_give_an_isometry(self):
        sketch = _draw("srht", 6, 8)
        np.testing.assert_allclose(transpose(sketch, apply(sketch, jnp.eye(6))), np.eye(6), atol=1e-6)

    def test_needs_a_power_of_two(self):
        with pytest.raises(ValueError, match="power of two"):
            linalg.walsh_hadamard(jnp.ones(6))
