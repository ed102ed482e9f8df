import functools

import chex
import jax
import numpy as np

from jaxdiv import linalg
from jaxdiv.core import Status

N = 8


@functools.cache
def _runner():
    @jax.jit
    def run(matrix, b, rtol, max_steps):
        return linalg.solve(lambda v: matrix @ v, b, method="normal_cg", rtol=rtol, max_steps=max_steps)

    return run


def _general(seed=0):
    return np.random.default_rng(seed).normal(size=(N, N))


class NormalCGTest(chex.TestCase):
    def test_residual_is_the_least_over_the_krylov_space_of_the_normal_equations(self):
        a, b = _general() + 3 * np.eye(N), np.random.default_rng(1).normal(size=N)
        with jax.enable_x64(True):
            for k in range(1, 5):
                columns = [a.T @ b]
                for _ in range(k - 1):
                    columns.append(a.T @ (a @ columns[-1]))
                q = np.linalg.qr(np.stack(columns, 1))[0]
                best = b - a @ q @ np.linalg.lstsq(a @ q, b, rcond=None)[0]
                _, info = _runner()(a, b, 1e-13, k)
                np.testing.assert_allclose(info.residual, np.linalg.norm(best) / np.linalg.norm(b), rtol=1e-8)

    def test_takes_indefinite_non_symmetric_and_skew_operators(self):
        for a in (_general(2), np.kron(np.eye(N // 2), [[0, 1], [-1, 0]])):
            b = np.arange(1.0, N + 1)
            with jax.enable_x64(True):
                x, info = _runner()(a, b, 1e-11, 400)
            assert info.status == Status.CONVERGED
            np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-7)

    def test_singular_systems_end_at_the_least_norm_solution(self):
        rng = np.random.default_rng(3)
        a = rng.normal(size=(N, N - 3)) @ rng.normal(size=(N - 3, N))
        b = rng.normal(size=N)
        for rhs, status in ((a @ b, Status.CONVERGED), (b, Status.STALLED)):
            with jax.enable_x64(True):
                x, info = _runner()(a, rhs, 1e-10, 400)
            assert info.status == status
            assert info.steps < 4 * N
            np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-10) @ rhs, atol=1e-8)

    def test_loses_one_condition_number_and_not_its_square(self):
        # Condition 1e4: its square is beyond float32, so that the normal matrix itself would be singular.
        q, r = (np.linalg.qr(_general(s))[0] for s in (4, 5))
        a = q @ np.diag(np.logspace(0, -4, N)) @ r.T
        b = a @ np.ones(N)
        _, info = _runner()(a.astype(np.float32), b.astype(np.float32), 1e-5, 400)
        assert info.status == Status.CONVERGED

    def test_scales_far_from_one_do_not_overflow(self):
        a, b = (_general() + 3 * np.eye(N)).astype(np.float32), np.ones(N, np.float32)
        x, info = _runner()(a, b, 1e-5, 400)
        for scale in (1e-25, 1e25):
            scaled, other = _runner()(np.float32(scale) * a, b, 1e-5, 400)
            assert other.status == info.status == Status.CONVERGED
            np.testing.assert_allclose(scaled * np.float32(scale), x, rtol=1e-3)
