"""Both M-FAC algorithms against the dense inverse, the paper's recursion and each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import linalg

RNG = np.random.default_rng(62)
M, D = 6, 9
GRADS = RNG.normal(size=(M, D))
MORE = RNG.normal(size=(2 * M + 1, D))
X = RNG.normal(size=D)
DAMPING = 1e-3


def dense_inverse(grads, damping=DAMPING):
    return np.linalg.inv(damping * np.eye(grads.shape[1]) + grads.T @ grads / len(grads))


def recursion(grads, damping):
    """v and q of the paper's recursion, one gradient after the other."""
    m, v, q = len(grads), [], []
    for g in grads:
        own = g / damping - sum((vj @ g / qj) * vj for vj, qj in zip(v, q, strict=True))
        v.append(own)
        q.append(m + g @ own)
    return np.array(v), np.array(q)


def elimination(grads, damping, x):
    """The paper's dynamic algorithm: LU without pivoting of mI + G Gᵀ/λ, then the coefficients of v in G."""
    m = len(grads)
    upper = m * np.eye(m) + grads @ grads.T / damping
    lower = np.eye(m)
    for k in range(m - 1):
        lower[k + 1 :, k] = upper[k + 1 :, k] / upper[k, k]
        upper[k + 1 :] -= np.outer(lower[k + 1 :, k], upper[k])
    products = np.triu(upper - m * np.eye(m))
    q = m + np.diag(products)
    b = np.eye(m) / damping
    for i in range(m):
        b[i, :i] = -sum(products[j, i] / q[j] * b[j, :i] for j in range(i))
    return x / damping - grads.T @ b.T @ (np.linalg.solve(lower, grads @ x / damping) / q)


def pushed(rows, m=M):
    window = linalg.mfac_window(jnp.zeros(rows.shape[1], rows.dtype), m)
    return jax.lax.scan(lambda window, g: (window.push(g), window.gram), window, jnp.asarray(rows))[0]


@pytest.mark.paper(62)
class TestExact:
    def test_all_forms_are_the_dense_inverse(self):
        """Static, the paper's recursion, its elimination, and the window, to 1e-9 in float64."""
        with jax.enable_x64(True):
            static = linalg.mfac(GRADS, DAMPING)
            inverse, diagonal = static.inverse(X), static.diagonal()
            window = pushed(GRADS).inverse(X, DAMPING)
        expected = dense_inverse(GRADS)
        np.testing.assert_allclose(inverse, expected @ X, rtol=1e-9)
        np.testing.assert_allclose(window, expected @ X, rtol=1e-9)
        np.testing.assert_allclose(elimination(GRADS, DAMPING, X), expected @ X, rtol=1e-9)
        np.testing.assert_allclose(diagonal, np.diag(expected), rtol=1e-9)

    def test_factors_are_the_recursions_vectors(self):
        """w_i = √(λ/q_i) v_i."""
        with jax.enable_x64(True):
            factors = linalg.mfac(GRADS, DAMPING).factors
        v, q = recursion(GRADS, DAMPING)
        np.testing.assert_allclose(factors, v * np.sqrt(DAMPING / q)[:, None], rtol=1e-8)

    def test_elements(self):
        i, j = (index.ravel() for index in np.meshgrid(np.arange(D), np.arange(D)))
        with jax.enable_x64(True):
            static = linalg.mfac(GRADS, DAMPING)
            elements, one = static.element(i, j), static.element(2, 5)
        np.testing.assert_allclose(elements, dense_inverse(GRADS)[i, j], rtol=1e-8)
        np.testing.assert_allclose(one, dense_inverse(GRADS)[2, 5], rtol=1e-8)

    @pytest.mark.parametrize("count", [1, M - 1, M, M + 2, 2 * M + 1])
    def test_window_equals_recomputation(self, count):
        """After any number of replacements: that of the last m gradients, zeros where there are fewer."""
        kept = np.zeros((M, D))
        last = MORE[:count][-M:]
        kept[: len(last)] = last
        with jax.enable_x64(True):
            window = pushed(MORE[:count])
            inverse, newest = window.inverse(X, DAMPING), window.inverse_newest(DAMPING)
            afresh = linalg.mfac(kept, DAMPING).inverse(X)
        np.testing.assert_allclose(inverse, dense_inverse(kept) @ X, rtol=1e-9)
        np.testing.assert_allclose(inverse, afresh, rtol=1e-9)
        np.testing.assert_allclose(newest, dense_inverse(kept) @ MORE[count - 1], rtol=1e-9)
        assert int(window.newest) == (count - 1) % M


@pytest.mark.paper(62)
class TestNumerics:
    def test_newest_has_no_cancellation(self):
        """In float32 at λ = 1e-5, where F's condition is near 1e6: to 1e-3, not to 0.1 as by differences."""
        rows = MORE[:M].astype(np.float32) * 3
        window = pushed(rows)
        expected = dense_inverse(rows.astype(np.float64), 1e-5) @ rows[-1]
        newest = np.linalg.norm(window.inverse_newest(1e-5) - expected) / np.linalg.norm(expected)
        general = np.linalg.norm(window.inverse(rows[-1], 1e-5) - expected) / np.linalg.norm(expected)
        assert newest < 1e-3 < general

    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    def test_dependent_gradients_stay_finite(self, scale):
        """G Gᵀ of equal gradients is singular; the floor of the damping keeps the factorization alive."""
        rows = np.tile(GRADS[:1], (64, 1)).astype(np.float32) * np.float32(scale)
        window = pushed(rows, 64)
        chex.assert_tree_all_finite(
            (window.inverse_newest(1e-12), window.inverse(X.astype(np.float32), 1e-12))
        )
        chex.assert_tree_all_finite(linalg.mfac(rows, 1e-12).diagonal())

    def test_half_precision_is_raised(self):
        like = {"a": jnp.zeros((2, 2), jnp.bfloat16), "b": jnp.zeros(3, jnp.float32)}
        window = linalg.mfac_window(like, 2).push(jax.tree.map(jnp.ones_like, like))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(window.grads))
        inverse = window.inverse(like, 0.1)
        chex.assert_trees_all_equal_shapes_and_dtypes(inverse, like)
        assert linalg.mfac(jnp.ones((2, 3), jnp.bfloat16)).factors.dtype == jnp.float32


@pytest.mark.paper(62)
class TestUse:
    def test_pytrees_are_their_concatenation(self):
        rows = GRADS.astype(np.float32)
        tree = {"a": rows[:, :4].reshape(M, 2, 2), "b": rows[:, 4:]}
        window = linalg.mfac_window(jax.tree.map(lambda leaf: leaf[0], tree), M)
        for k in range(M):
            window = window.push(jax.tree.map(lambda leaf, k=k: leaf[k], tree))
        newest = window.inverse_newest(0.1)
        flat = np.concatenate([newest["a"].ravel(), newest["b"]])
        np.testing.assert_allclose(flat, dense_inverse(rows, 0.1) @ rows[-1], rtol=1e-4)

    def test_under_jit_vmap_and_grad_of_the_damping(self):
        with jax.enable_x64(True):

            @jax.jit
            @jax.vmap
            def both(damping):
                def value(damping):
                    return jnp.sum(linalg.mfac(GRADS, damping).inverse(X))

                return jax.value_and_grad(value)(damping)

            values, slopes = map(np.asarray, both(jnp.array([0.1, 0.2])))
            ahead = np.asarray(both(jnp.array([0.1, 0.2]) + 1e-6)[0])
        np.testing.assert_allclose(values[0], np.sum(dense_inverse(GRADS, 0.1) @ X), rtol=1e-9)
        np.testing.assert_allclose(slopes, (ahead - values) / 1e-6, rtol=1e-4)

    def test_push_does_not_retrace(self):
        chex.clear_trace_counter()

        @jax.jit
        @chex.assert_max_traces(n=1)
        def step(window, g):
            return window.push(g)

        window = linalg.mfac_window(jnp.zeros(D), M)
        for g in MORE[:3].astype(np.float32):
            window = step(window, g)

    def test_several_vectors_at_once(self):
        static = linalg.mfac(GRADS.astype(np.float32), 0.1)
        many = static.inverse(MORE.astype(np.float32))
        np.testing.assert_allclose(many[3], static.inverse(MORE[3].astype(np.float32)), rtol=1e-4)


@pytest.mark.paper(62)
class TestBadInput:
    @pytest.mark.parametrize("damping", [0.0, -1.0])
    def test_damping(self, damping):
        with pytest.raises(ValueError, match="damping must lie in"):
            linalg.mfac(jnp.ones((2, 3)), damping)
        with pytest.raises(ValueError, match="damping must lie in"):
            linalg.mfac_window(jnp.ones(3), 2).inverse_newest(damping)

    def test_shapes(self):
        with pytest.raises(ValueError, match="grads must have rank 2"):
            linalg.mfac(jnp.ones(3))
        with pytest.raises(ValueError, match="grads must not be empty"):
            linalg.mfac(jnp.ones((0, 3)))
        with pytest.raises(ValueError, match="x must have 3 entries"):
            linalg.mfac(jnp.ones((2, 3))).inverse(jnp.ones(2))
        with pytest.raises(ValueError, match="m must be at least 1; got 0"):
            linalg.mfac_window(jnp.ones(3), 0)
        with pytest.raises(ValueError, match="grad must have the structure and shapes of a gradient"):
            linalg.mfac_window(jnp.ones(3), 2).push(jnp.ones(4))
