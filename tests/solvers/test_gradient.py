"""Gradient: contract, exact steps, line searches, divergence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.core import Status
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember

MOMENTUM = optax.sgd(0.2, momentum=0.3)
MEMBER = SolverMember(
    "gradient",
    lambda tol, _: solvers.Gradient(contract.quadratic, MOMENTUM, tol),
    contract.linear_system,
    contract.zeros,
    contract.solve_symmetric,
    bad=(
        lambda: solvers.Gradient("f", MOMENTUM),
        lambda: solvers.Gradient(contract.quadratic, 0.1),
        lambda: solvers.Gradient(lambda y: y, MOMENTUM).init(jnp.zeros(2)),
        lambda: solvers.Gradient(lambda y: 1, MOMENTUM).init(jnp.zeros(2)),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


def rosenbrock(y):
    return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)


def test_gradient_descent_is_optax_step_by_step():
    tx = optax.adam(0.1)
    y = jnp.array([-1.2, 1.0, 0.5])
    found = core.run(solvers.Gradient(rosenbrock, tx), y, max_steps=5)
    memory = tx.init(y)
    for _ in range(5):
        updates, memory = tx.update(jax.grad(rosenbrock)(y), memory, y)
        y = optax.apply_updates(y, updates)
    np.testing.assert_allclose(found.value, y, rtol=1e-6)
    scale = 1 + np.linalg.norm(jax.grad(rosenbrock)(jnp.array([-1.2, 1.0, 0.5])))
    np.testing.assert_allclose(found.error, np.linalg.norm(jax.grad(rosenbrock)(y)) / scale, rtol=1e-5)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
        optax.polyak_sgd(max_learning_rate=1.0),
    ],
    ids=["backtracking", "polyak"],
)
def test_transformations_that_ask_for_value_and_function(tx):
    """The minimum is 0, which Polyak's step assumes."""
    weights = jnp.array([1.0, 3.0, 9.0])
    solver = solvers.Gradient(lambda y, w: jnp.sum(w * (y - 1.0) ** 2), tx)
    found = core.run(solver, jnp.zeros(3), weights, max_steps=500).raise_if_failed()
    np.testing.assert_allclose(found.value, 1.0, atol=1e-3)


def test_divergence_is_reported():
    found = core.run(solvers.Gradient(lambda y: jnp.sum(y**2), optax.sgd(3.0)), jnp.ones(2), max_steps=500)
    assert found.status == Status.NONFINITE
    assert np.all(np.isfinite(found.value))
