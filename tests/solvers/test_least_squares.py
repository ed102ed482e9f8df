"""LeastSquares: contract, parity with scipy, a curved valley."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember

BENT = np.random.default_rng(0).normal(size=(2, 3))


def residuals(y, a, b):
    """Those of a linear problem with more rows than unknowns, in two parts."""
    y = contract.join(y)
    return {"one": a @ y - b, "two": jnp.asarray(BENT, y.dtype) @ y - 1.0}


def fit(a, b):
    rows, data = jnp.concatenate([a, jnp.asarray(BENT, a.dtype)]), jnp.append(b, jnp.ones(2, b.dtype))
    return contract.split(jnp.linalg.solve(rows.T @ rows, rows.T @ data))


MEMBER = SolverMember(
    "least_squares",
    lambda tol, _: solvers.LeastSquares(residuals, tol),
    contract.linear_system,
    contract.zeros,
    fit,
    bad=(
        lambda: solvers.LeastSquares(None),
        lambda: solvers.LeastSquares(residuals, method="lm"),
        lambda: solvers.LeastSquares(lambda y: y.astype(int)).init(jnp.zeros(2)),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


TIMES = np.linspace(0.0, 4.0, 25)
DATA = 2.5 * np.exp(-1.3 * TIMES) + 0.5 + 0.05 * np.random.default_rng(1).normal(size=TIMES.size)


def decay(y, data):
    return y[0] * jnp.exp(-y[1] * jnp.asarray(TIMES)) + y[2] - data


@pytest.mark.parametrize("method", ["levenberg_marquardt", "dogleg"])
def test_nonlinear_fit_is_that_of_scipy(method):
    with jax.enable_x64(True):
        solver = solvers.LeastSquares(decay, tol=1e-8, method=method)
        found = core.run(solver, jnp.ones(3), jnp.asarray(DATA), max_steps=100).raise_if_failed()
        theirs = scipy.optimize.least_squares(
            lambda y: np.asarray(decay(jnp.asarray(y), DATA)), np.ones(3), method="lm", xtol=1e-14
        )
    np.testing.assert_allclose(found.value, theirs.x, atol=1e-6)


def test_levenberg_marquardt_gets_through_the_valley_of_rosenbrock():
    solver = solvers.LeastSquares(lambda y: jnp.stack([10 * (y[1] - y[0] ** 2), 1 - y[0]]), tol=1e-7)
    found = core.run(solver, jnp.array([-1.2, 1.0]), max_steps=200).raise_if_failed()
    np.testing.assert_allclose(found.value, 1.0, rtol=1e-4)


def test_float32_under_x64():
    """Scalars of optimistix's states follow the dtype of y."""
    with jax.enable_x64(True):
        y0 = jnp.array([2.0, 1.0], jnp.float32)
        found = core.run(solvers.LeastSquares(lambda y: y**2 - 2.0), y0, max_steps=50).raise_if_failed()
    assert found.value.dtype == found.error.dtype == jnp.float32
    np.testing.assert_allclose(found.value, np.sqrt(2), rtol=1e-5)
