import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import linalg
from jaxdiv.core import Status
from jaxdiv.linalg import nystrom, suggested_ridge

N = 40


def _orthogonal(seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))[0]


def _operator(eigenvalues, dtype=np.float32):
    q = _orthogonal()
    return jnp.asarray(q @ np.diag(eigenvalues) @ q.T, dtype)


class NystromTest(chex.TestCase):
    def test_inverse_is_exact_where_the_rank_is_small_enough(self):
        # Baseline 14 of Hataya and Yamada: the Woodbury form of C (W + ...)⁻¹ Cᵀ.
        eigenvalues = np.r_[np.linspace(5, 1, 6), np.zeros(N - 6)]
        b = np.random.default_rng(1).normal(size=N)
        with jax.enable_x64(True):
            a = _operator(eigenvalues, np.float64)
            for rank in (6, 9):
                sketch = jax.jit(
                    lambda a, r=rank: nystrom(lambda v: a @ v, b, jax.random.key(0), rank=r, ridge=0.1)
                )(a)
                exact = np.linalg.solve(a + 0.1 * np.eye(N), b)
                np.testing.assert_allclose(sketch.inverse(b), exact, atol=1e-11)
                np.testing.assert_allclose(sketch.eigenvalues[:6], eigenvalues[:6], rtol=1e-11)

    def test_woodbury_form_of_the_same_sketch(self):
        # (ρ I + C W⁻¹ Cᵀ)⁻¹ v = v/ρ − C (W + CᵀC/ρ)⁻¹ Cᵀ v / ρ² with C = A Ω, W = Ωᵀ A Ω.
        eigenvalues, rho, rank = np.linspace(1, 4, N), 0.5, 5
        b, key = np.random.default_rng(1).normal(size=N), jax.random.key(3)
        with jax.enable_x64(True):
            a = np.asarray(_operator(eigenvalues, np.float64))
            sketch = nystrom(lambda v: a @ v, b, key, rank=rank, ridge=rho)
            omega = np.asarray(jax.random.normal(key, (N, rank), jnp.float64))
            c, w = a @ omega, omega.T @ a @ omega
            woodbury = b / rho - c @ np.linalg.solve(w + c.T @ c / rho, c.T @ b) / rho**2
            np.testing.assert_allclose(sketch.inverse(b), woodbury, atol=1e-10)

    def test_preconditioned_cg_takes_few_steps_in_float32(self):
        a = _operator(np.r_[np.logspace(2, 0, 12), np.full(N - 12, 0.1)])
        b = jnp.ones(N)

        @jax.jit
        def measure(a, b):
            matvec = lambda v: a @ v  # noqa: E731
            sketch = nystrom(matvec, b, jax.random.key(0), rank=16, ridge=0.1)
            plain = linalg.solve(matvec, b, ridge=0.1)
            return plain, linalg.solve(matvec, b, ridge=0.1, preconditioner=sketch)

        (_, plain), (x, info) = measure(a, b)
        assert info.status == Status.CONVERGED
        assert 2 * info.steps < plain.steps
        exact = np.linalg.solve(np.asarray(a, np.float64) + 0.1 * np.eye(N), b)
        np.testing.assert_allclose(x, exact, rtol=0, atol=1e-4 * np.abs(exact).max())

    def test_pytrees_dtypes_and_no_retrace(self):
        like = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(4)}

        @jax.jit
        @chex.assert_max_traces(n=1)
        def measure(scale, key, ridge):
            sketch = nystrom(lambda v: jax.tree.map(lambda u: scale * u, v), like, key, rank=10, ridge=ridge)
            return sketch(like), sketch.inverse(like)

        for seed, ridge in ((0, 1.0), (1, 3.0)):
            direct, inverse = measure(2.0, jax.random.key(seed), ridge)
            assert (direct["a"].dtype, direct["b"].dtype) == (jnp.float32, jnp.float32)
            # P⁻¹ of a multiple of the identity is the identity.
            chex.assert_trees_all_close(direct, jax.tree.map(jnp.ones_like, direct), rtol=1e-5)
            np.testing.assert_allclose(inverse["a"], 1 / (2 + ridge), rtol=1e-5)

    def test_zero_operator_is_the_ridge_alone(self):
        sketch = nystrom(lambda v: 0 * v, jnp.ones(4), jax.random.key(0), rank=2, ridge=0.5)
        np.testing.assert_allclose(sketch.inverse(jnp.ones(4)), 2)
        np.testing.assert_allclose(sketch(jnp.ones(4)), 1)

    @parameterized.named_parameters(
        ("rank", {"rank": 5}, "rank must lie in"),
        ("ridge", {"ridge": 0.0}, "ridge must lie in"),
        ("matvec", {"matvec": lambda v: v[:2]}, "the output of matvec must have"),
        ("like", {"like": jnp.ones(4, int)}, "like must be floating"),
    )
    def test_bad_input(self, options, message):
        options = {"matvec": lambda v: v, "like": jnp.ones(4), "rank": 2, "ridge": 1.0, **options}
        with pytest.raises(ValueError, match=message):
            nystrom(key=jax.random.key(0), **options)

    def test_bad_vector(self):
        sketch = nystrom(lambda v: v, jnp.ones(4), jax.random.key(0), rank=2, ridge=1.0)
        with pytest.raises(ValueError, match="v must hold 4 numbers; got 3"):
            sketch(jnp.ones(3))


class SuggestedRidgeTest(chex.TestCase):
    @parameterized.parameters(0.0, 1e-9, -0.3)
    def test_makes_a_system_solvable(self, smallest):
        a = _operator(np.r_[np.linspace(1, 5, N - 1), smallest])

        @jax.jit
        def measure(a, b):
            matvec = lambda v: a @ v  # noqa: E731
            ridge = suggested_ridge(matvec, b, num_steps=N)
            return ridge, linalg.solve(matvec, b)[1], linalg.solve(matvec, b, ridge=ridge)[1]

        ridge, without, info = measure(a, jnp.ones(N))
        assert without.status == Status.STALLED
        assert info.status == Status.CONVERGED
        # No more than the dtype needs: 4 eps ‖A‖ / rtol above −λ_min.
        need = 4 * np.finfo(np.float32).eps * 5 / 1e-5 - smallest
        np.testing.assert_allclose(ridge, need, rtol=0.02)
        with pytest.raises(RuntimeError, match=r"STALLED after .* needs a ridge: linalg.suggested_ridge"):
            without.raise_if_failed()
        assert info.raise_if_failed() is info

    def test_is_zero_where_none_is_needed(self):
        a = np.diag([3.0, 2.0, 1.0, 0.0]).astype(np.float32)
        assert suggested_ridge(lambda v: a @ v, jnp.array([1.0, 1.0, 1.0, 0.0])) == 0
        with pytest.raises(ValueError, match="rtol must lie in"):
            suggested_ridge(lambda v: v, jnp.ones(2), rtol=0.0)
