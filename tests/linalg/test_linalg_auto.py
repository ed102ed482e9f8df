import functools

import chex
import jax
import numpy as np
from absl.testing import parameterized

from jaxdiv import linalg
from jaxdiv.core import Status

N = 8
BUDGET = 400


@functools.cache
def _runner(method):
    @jax.jit
    def run(matrix, b, rtol, max_steps):
        return linalg.solve(lambda v: matrix @ v, b, method=method, rtol=rtol, max_steps=max_steps)

    def call(matrix, b, rtol=1e-10, max_steps=BUDGET):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, run(matrix, b, rtol, max_steps))

    return call


def _general(seed=0):
    return np.random.default_rng(seed).normal(size=(N, N))


def _symmetric(eigenvalues, seed=0):
    q = np.linalg.qr(_general(seed))[0]
    return q @ np.diag(eigenvalues) @ q.T


def _rhs(seed=0):
    return np.random.default_rng(seed + 7).normal(size=N)


class AutoTest(chex.TestCase):
    """MINRES while the operator looks symmetric, normal CG where it does not or that fails."""

    @parameterized.named_parameters(
        ("definite", np.linspace(1, 5, N)),
        ("negative", -np.linspace(1, 5, N)),
        ("indefinite", [-3, -2, -1, 1, 1.5, 2, 3, 4]),
    )
    def test_symmetric_operators_take_the_steps_of_minres(self, eigenvalues):
        a, b = _symmetric(eigenvalues), _rhs()
        x, info = _runner("auto")(a, b)
        _, minres = _runner("minres")(a, b)
        assert (info.status, info.steps) == (Status.CONVERGED, minres.steps)
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-7)

    def test_general_operators_cost_two_steps_more_than_normal_cg(self):
        skew = np.kron(np.eye(N // 2), [[0.0, 1], [-1, 0]])
        for a in (_general(2) + 3 * np.eye(N), skew @ np.diag(np.linspace(1, 2, N)), _general(3)):
            x, info = _runner("auto")(a, _rhs())
            _, normal = _runner("normal_cg")(a, _rhs())
            assert info.status == Status.CONVERGED
            assert info.steps <= normal.steps + 2
            np.testing.assert_allclose(x, np.linalg.solve(a, _rhs()), rtol=1e-6)

    def test_singular_systems_keep_the_least_norm_solution(self):
        # Nothing of the trial is left in x.
        rng = np.random.default_rng(3)
        a = rng.normal(size=(N, N - 3)) @ rng.normal(size=(N - 3, N))
        for rhs, status in ((a @ _rhs(), Status.CONVERGED), (_rhs(), Status.STALLED)):
            x, info = _runner("auto")(a, rhs)
            assert info.status == status
            np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-10) @ rhs, atol=1e-8)

    def test_asymmetry_below_notice_is_refined_away(self):
        a = _symmetric(np.linspace(1, 5, N)) + 1e-5 * _general(4)
        x, info = _runner("auto")(a, _rhs())
        _, minres = _runner("minres")(a, _rhs())
        assert (info.status, info.steps) == (Status.CONVERGED, minres.steps)
        np.testing.assert_allclose(x, np.linalg.solve(a, _rhs()), rtol=1e-7)

    def test_where_refinement_fails_normal_cg_takes_over(self):
        # As small an asymmetry, but not beside the least eigenvalues: MINRES would spend the budget.
        a = _symmetric(np.logspace(0, -4, N)) + 1e-4 * _general(4)
        b = a @ np.ones(N)
        x, info = _runner("auto")(a, b)
        _, minres = _runner("minres")(a, b)
        assert minres.status != Status.CONVERGED
        assert info.status == Status.CONVERGED
        np.testing.assert_allclose(x, 1, rtol=1e-4)

    def test_the_budget_holds_for_both(self):
        _, info = _runner("auto")(_general(2), _rhs(), max_steps=5)
        assert (info.status, info.steps) == (Status.MAX_STEPS, 5)

    def test_lanes_of_both_kinds_end_on_their_own(self):
        matrices = np.stack([_symmetric(np.linspace(1, 5, N)), _general(2) + 3 * np.eye(N), np.eye(N)])
        with jax.enable_x64(True):
            run = jax.jit(
                jax.vmap(lambda m, b: linalg.solve(lambda v: m @ v, b, method="auto"), in_axes=(0, None))
            )
            x, info = run(matrices, _rhs())
        for lane, a in enumerate(matrices):
            alone, ended = _runner("auto")(a, _rhs(), 1e-5)
            assert (info.status[lane], info.steps[lane]) == (Status.CONVERGED, ended.steps)
            np.testing.assert_allclose(x[lane], alone, atol=1e-9)
