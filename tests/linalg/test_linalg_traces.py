import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import linalg

N = 6


def _matrix(seed=0, n=N):
    g = np.random.default_rng(seed).normal(size=(n, n))
    return jnp.asarray(g @ g.T / n + np.eye(n), jnp.float32)


def _all_signs(n=N):
    return jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=n)))


class HutchinsonTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(1, 5)
    def test_all_sign_vectors_give_the_exact_values(self, batch_size):
        a, signs = _matrix(), _all_signs()
        matvec = lambda v: a @ v  # noqa: E731
        trace, error = self.variant(lambda z: linalg.hutchinson_trace(matvec, z, batch_size=batch_size))(
            signs
        )
        diagonal = self.variant(lambda z: linalg.hutchinson_diagonal(matvec, z, batch_size=batch_size))(signs)
        np.testing.assert_allclose(trace, jnp.trace(a), rtol=1e-5)
        np.testing.assert_allclose(diagonal, jnp.diag(a), rtol=1e-5)
        # Var zᵀ A z = 2 Σ_{i≠j} A_ij² for random signs.
        variance = 2 * (np.sum(np.square(a)) - np.sum(np.diag(a) ** 2))
        np.testing.assert_allclose(error, np.sqrt(variance / (2**N - 1)), rtol=1e-4)

    def test_half_of_estimates_fall_within_their_error(self):
        a = _matrix()
        keys = jax.random.split(jax.random.key(0), 200)

        @jax.jit
        @jax.vmap
        def score(key):
            probes = linalg.rademacher(jnp.zeros(N), 64, key=key)
            trace, error = linalg.hutchinson_trace(lambda v: a @ v, probes)
            return (trace - jnp.trace(a)) / error

        inside = np.mean(np.abs(score(keys)) < 1)
        assert 0.58 < inside < 0.78  # 0.683 ± 3 σ, σ = 0.033

    def test_probes_are_signs_like_the_tree(self):
        like = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros((3, 1))}
        probes = linalg.rademacher(like, 4, key=jax.random.key(0))
        chex.assert_trees_all_equal_shapes(probes, {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 3, 1))})
        assert all((jnp.abs(leaf) == 1).all() for leaf in jax.tree.leaves(probes))
        diagonal = linalg.hutchinson_diagonal(lambda v: jax.tree.map(lambda u: 2 * u, v), probes)
        chex.assert_trees_all_close(diagonal, {"a": jnp.full(2, 2.0), "b": jnp.full((3, 1), 2.0)})

    def test_gradient_passes_through_the_operator(self):
        probes = _all_signs(3)
        trace = lambda s: linalg.hutchinson_trace(lambda v: s * s * v, probes)[0]  # noqa: E731
        np.testing.assert_allclose(jax.grad(trace)(2.0), 12.0, rtol=1e-6)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="num_probes must lie in"):
            linalg.rademacher(jnp.zeros(2), 0, key=jax.random.key(0))
        with pytest.raises(ValueError, match="the output of matvec"):
            linalg.hutchinson_trace(lambda v: v[:1], jnp.ones((2, 3)))
        with pytest.raises(ValueError, match="number of probes modulo 2"):
            linalg.hutchpp(lambda v: v, jnp.ones((3, 3)))


class HutchppTest(chex.TestCase):
    def test_low_rank_is_exact(self):
        u = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
        probes = linalg.rademacher(jnp.zeros(20), 8, key=jax.random.key(1))
        np.testing.assert_allclose(linalg.hutchpp(lambda v: u @ (u.T @ v), probes), jnp.sum(u * u), rtol=1e-5)

    def test_beats_hutchinson_on_a_decaying_spectrum(self):
        # Eigenvalues i⁻²; 24 products each; root mean squared error over 40 draws.
        q = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
        a = jnp.asarray(q @ np.diag(np.arange(1.0, 41) ** -2) @ q.T, jnp.float32)

        @jax.jit
        @jax.vmap
        def errors(key):
            plain = linalg.rademacher(jnp.zeros(40), 24, key=key)
            hutchinson = linalg.hutchinson_trace(lambda v: a @ v, plain)[0]
            return jnp.array([linalg.hutchpp(lambda v: a @ v, plain[:16]), hutchinson])

        drawn = errors(jax.random.split(jax.random.key(0), 40)) - jnp.trace(a)
        ours, plain = np.sqrt(np.mean(np.square(drawn), axis=0))
        assert ours < plain / 4
        assert abs(np.mean(drawn[:, 0])) < 4 * ours / np.sqrt(40)


class SpectralDensityTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_full_run_over_all_signs_is_exact(self):
        a = _matrix(n=4)
        density = self.variant(lambda z: linalg.spectral_density(lambda v: a @ v, z, num_steps=4))(
            _all_signs(4)
        )
        np.testing.assert_allclose(jnp.sum(density.weights, -1), 4, rtol=1e-5)
        eigenvalues = np.linalg.eigvalsh(a)
        for fun in (jnp.log, jnp.exp, lambda t: 1 / t):
            np.testing.assert_allclose(density.trace(fun)[0], np.sum(fun(eigenvalues)), rtol=2e-5)

    def test_k_steps_integrate_degree_2k_minus_1(self):
        a = _matrix(3)
        with jax.enable_x64(True):
            a = jnp.asarray(a, jnp.float64)
            z = jnp.asarray(np.random.default_rng(0).normal(size=(1, N)))
            density = linalg.spectral_density(lambda v: a @ v, z, num_steps=2)
            for power in range(5):
                exact = z[0] @ jnp.linalg.matrix_power(a, power) @ z[0]
                value, _ = density.trace(lambda t, p=power: t**p)
                close = abs(value / exact - 1) < 1e-10
                assert close == (power < 4)

    def test_logdet_within_its_error_and_where_the_krylov_space_is_small(self):
        scales = jnp.array([0.5, 0.5, 2.0, 2.0, 2.0, 8.0])
        probes = linalg.rademacher(jnp.zeros(N), 16, key=jax.random.key(0))
        density = linalg.spectral_density(lambda v: scales * v, probes, num_steps=5)
        value, error = density.trace(jnp.log)
        np.testing.assert_allclose(value, jnp.sum(jnp.log(scales)), rtol=1e-5)
        assert error < 1e-4
