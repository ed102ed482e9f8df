import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import linalg
from jaxdiv.core import Status

N = 6


@functools.cache
def _runner():
    @jax.jit
    def run(matrix, b, init, step_size, terms):
        return linalg.solve(
            lambda v: matrix @ v, b, method="neumann", init=init, step_size=step_size, max_steps=terms
        )

    return run


def _contraction(seed=0):
    """I − 0.1 A has norm 0.8; A is not symmetric."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))[0]
    return 10 * (np.eye(N) - 0.8 * q)


def _series(a, b, step, terms):
    return step * sum(np.linalg.matrix_power(np.eye(N) - step * a, k) @ b for k in range(terms + 1))


class NeumannTest(chex.TestCase):
    def test_equals_the_sum_and_reports_its_residual(self):
        a, b = _contraction(), np.arange(1.0, N + 1)
        with jax.enable_x64(True):
            for terms in (0, 1, 7):
                x, info = _runner()(a, b, np.zeros(N), 0.1, terms)
                np.testing.assert_allclose(x, _series(a, b, 0.1, terms), rtol=1e-13)
                # (I − a A)^{K+1} b, here of norm 0.8^{K+1} exactly.
                np.testing.assert_allclose(info.residual, 0.8 ** (terms + 1), rtol=1e-10)
                assert (info.status, info.steps) == (Status.MAX_STEPS, terms)

    def test_k_zero_is_the_step_alone(self):
        b = np.ones(N, np.float32)
        x, _ = _runner()(_contraction().astype(np.float32), b, 0 * b, 0.1, 0)
        np.testing.assert_allclose(x, 0.1 * b, rtol=1e-6)

    def test_warm_start_continues_the_series(self):
        a, b = _contraction(), np.ones(N)
        with jax.enable_x64(True):
            first, _ = _runner()(a, b, np.zeros(N), 0.1, 3)
            second, _ = _runner()(a, b, first, 0.1, 4)
            np.testing.assert_allclose(second, _series(a, b, 0.1, 8), rtol=1e-12)

    def test_enough_terms_converge_and_a_long_step_is_not_success(self):
        a, b = _contraction().astype(np.float32), np.ones(N, np.float32)
        x, info = _runner()(a, b, 0 * b, 0.1, 100)
        assert info.status == Status.CONVERGED
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-4)
        _, info = _runner()(a, b, 0 * b, 1.0, 5)
        assert info.status == Status.MAX_STEPS
        assert info.residual > 1
        x, info = _runner()(a, b, 0 * b, 1.0, 1000)
        assert info.status == Status.NONFINITE
        assert np.isnan(x).all()

    def test_reverse_mode_is_the_series_of_the_transpose(self):
        a, b, c = _contraction(), np.arange(1.0, N + 1), np.arange(2.0, N + 2)
        with jax.enable_x64(True):

            @jax.jit
            def value(b):
                return c @ _runner()(a, b, np.zeros(N), 0.1, 4)[0]

            np.testing.assert_allclose(jax.jit(jax.grad(value))(b), _series(a.T, c, 0.1, 4), rtol=1e-12)

    def test_preconditioner_takes_the_place_of_the_step(self):
        a, b = np.diag(np.arange(1.0, N + 1)).astype(np.float32), np.ones(N, np.float32)
        x, info = jax.jit(
            lambda b: linalg.solve(
                lambda v: a @ v, b, method="neumann", max_steps=0, preconditioner=lambda v: v / jnp.diag(a)
            )
        )(b)
        np.testing.assert_allclose(x, 1 / np.diag(a), rtol=1e-6)
        assert info.status == Status.CONVERGED

    def test_zero_rhs_and_default_terms(self):
        x, info = jax.jit(lambda b: linalg.solve(lambda v: 0.5 * v, b, method="neumann"))(jnp.zeros(3))
        np.testing.assert_array_equal(x, 0)
        assert (info.status, info.steps, info.residual) == (Status.CONVERGED, 10, 0)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="max_steps must lie in"):
            linalg.solve(lambda v: v, jnp.ones(2), method="neumann", max_steps=-1)
        with pytest.raises(ValueError, match="step_size must lie in"):
            linalg.solve(lambda v: v, jnp.ones(2), method="neumann", step_size=0.0)
