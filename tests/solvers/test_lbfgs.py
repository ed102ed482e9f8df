"""LBFGS: contract, parity with scipy, no evaluation too many."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember

MEMBER = SolverMember(
    "lbfgs",
    lambda tol, _: solvers.LBFGS(contract.quadratic, tol),
    contract.linear_system,
    contract.zeros,
    contract.solve_symmetric,
    bad=(
        lambda: solvers.LBFGS("f"),
        lambda: solvers.LBFGS(lambda y: y).init(jnp.zeros(2)),
        lambda: solvers.LBFGS(contract.quadratic, memory=0),
        lambda: solvers.LBFGS(contract.quadratic, max_linesearch_steps=0),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


def rosenbrock(y):
    return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)


@pytest.mark.parametrize("n", [2, 20])
def test_lbfgs_on_rosenbrock_is_that_of_scipy(n):
    with jax.enable_x64(True):
        y0 = jnp.tile(jnp.array([-1.2, 1.0]), n // 2)
        found = core.run(solvers.LBFGS(rosenbrock, tol=1e-9), y0, max_steps=300).raise_if_failed()
        theirs = scipy.optimize.minimize(
            jax.jit(rosenbrock),
            np.asarray(y0),
            jac=jax.jit(jax.grad(rosenbrock)),
            method="L-BFGS-B",
            tol=1e-12,
        )
    np.testing.assert_allclose(found.value, 1.0, atol=1e-6)
    # The same method with another line search.
    assert found.steps <= 1.3 * theirs.nit


def test_the_evaluation_of_the_line_search_is_reused():
    """Any other chain is followed by one more."""

    def cosines(y):
        return -jnp.sum(jnp.cos(y))

    def evaluations(solver):
        state = jax.eval_shape(solver.init, jnp.zeros(3))
        return str(jax.make_jaxpr(solver.step)(state)).count(" sin ")

    assert evaluations(solvers.LBFGS(cosines)) + 1 == evaluations(solvers.Gradient(cosines, optax.lbfgs()))
