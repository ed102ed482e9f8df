import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from absl.testing import parameterized

from jaxdiv import linalg

N = 40


def _symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return q @ np.diag(eigenvalues) @ q.T


def _start(n=N):
    return np.random.default_rng(1).normal(size=n)


class LanczosTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_relation_and_orthogonality(self):
        # A Q = Q T + β q eᵀ: all columns but the last are exact, the last has norm β.
        a = jnp.asarray(_symmetric(np.logspace(-4, 2, N)), jnp.float32)
        run = self.variant(lambda v: linalg.lanczos(lambda u: a @ u, v, num_steps=12))
        t = run(jnp.asarray(_start(), jnp.float32))
        q, defect = np.asarray(t.basis), None
        np.testing.assert_allclose(q @ q.T, np.eye(12), atol=2e-6)
        defect = a @ q.T - q.T @ t.matrix()
        np.testing.assert_allclose(defect[:, :-1], 0, atol=2e-4)
        np.testing.assert_allclose(np.linalg.norm(defect[:, -1]), t.residual, rtol=1e-3)
        assert t.size == 12

    def test_all_steps_give_all_eigenvalues(self):
        eigenvalues = np.logspace(-3, 0, 12)
        with jax.enable_x64(True):
            a = jnp.asarray(_symmetric(eigenvalues))
            run = jax.jit(lambda v: linalg.lanczos(lambda u: a @ u, v, num_steps=12))
            t = run(jnp.asarray(_start(12)))
            np.testing.assert_allclose(jnp.linalg.eigvalsh(t.matrix()), eigenvalues, rtol=1e-9)

    def test_invariant_space_ends_early(self):
        # Three distinct eigenvalues: a Krylov space of dimension 3, whatever the multiplicities.
        a = jnp.asarray(_symmetric([1, 1, 1, 2, 2, 4, 4, 4]), jnp.float32)
        start = jnp.asarray(_start(8), jnp.float32)
        t, pairs = jax.jit(
            lambda v: (
                linalg.lanczos(lambda u: a @ u, v, num_steps=6),
                linalg.eigsh(lambda u: a @ u, v, k=4, num_steps=6),
            )
        )(start)
        assert t.size == 3
        np.testing.assert_array_equal(t.off_diagonal[2:], 0)
        np.testing.assert_array_equal(t.basis[3:], 0)
        np.testing.assert_allclose(pairs.values[:3], [4, 2, 1], atol=1e-5)
        assert np.isnan(pairs.values[3])
        assert np.isinf(pairs.residuals[3])
        np.testing.assert_array_equal(pairs.converged, [True, True, True, False])

    @parameterized.parameters(("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM"))
    def test_extreme_pairs_match_scipy(self, which, peer):
        a = _symmetric(np.concatenate([np.linspace(-1, 1, N - 4), [-9, -5, 6, 8]]))
        expected, _ = scipy.sparse.linalg.eigsh(a, k=2, which=peer, v0=_start())
        matrix = jnp.asarray(a, jnp.float32)
        pairs = jax.jit(lambda v: linalg.eigsh(lambda u: matrix @ u, v, k=2, num_steps=16, which=which))(
            jnp.asarray(_start(), jnp.float32)
        )
        np.testing.assert_allclose(np.sort(pairs.values), np.sort(expected), rtol=1e-5)
        defect = matrix @ pairs.vectors.T - pairs.vectors.T * pairs.values
        np.testing.assert_allclose(jnp.linalg.norm(defect, axis=0), pairs.residuals, atol=1e-4)
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(2), atol=1e-5)

    def test_unconverged_pairs_say_so(self):
        a = jnp.diag(jnp.linspace(1, 2, N))
        run = jax.jit(lambda v: linalg.eigsh(lambda u: a @ u, v, k=2, num_steps=4))
        pairs = run(jnp.ones(N))
        assert not pairs.converged.any()
        distance = jnp.min(jnp.abs(pairs.values[:, None] - jnp.diag(a)), axis=1)
        assert (distance <= pairs.residuals).all()

    def test_pytree_under_vmap(self):
        scales = jnp.array([1.0, 3.0])
        start = {"a": jnp.ones(2), "b": jnp.ones((2, 1))}

        def top(scale):
            diagonal = {"a": scale * jnp.array([1.0, 2.0]), "b": jnp.array([[3.0], [4.0]])}
            matvec = lambda v: jax.tree.map(jnp.multiply, diagonal, v)  # noqa: E731
            return linalg.eigsh(matvec, start, k=1, num_steps=4)

        pairs = jax.jit(jax.vmap(top))(scales)
        np.testing.assert_allclose(pairs.values[:, 0], [4.0, 6.0], rtol=1e-5)
        np.testing.assert_allclose(np.abs(pairs.vectors["b"][0, 0, 1, 0]), 1, rtol=1e-5)
        np.testing.assert_allclose(np.abs(pairs.vectors["a"][1, 0, 1]), 1, rtol=1e-5)

    def test_bad_input(self):
        for options, message in (
            ({"which": "LM"}, "which must be one of 'largest'"),
            ({"k": 5, "num_steps": 4}, "k must lie in"),
            ({"num_steps": 9}, "num_steps must lie in"),
        ):
            with pytest.raises(ValueError, match=message):
                linalg.eigsh(lambda v: v, jnp.ones(8), **{"k": 1, **options})
        with pytest.raises(ValueError, match="the output of matvec"):
            linalg.lanczos(lambda v: v[:2], jnp.ones(8), num_steps=2)
