"""Broyden: contract, a classic system, the line search."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.core import Status
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def system(y, a, b):
    """With the root arcsinh(A⁻¹ b)."""
    return contract.split(a @ jnp.sinh(contract.join(y)) - b)


def root_of_system(a, b):
    return contract.split(jnp.arcsinh(jnp.linalg.solve(a, b)))


# Functions that are none, or that leave the space of y.
BAD = (
    lambda: solvers.Broyden(3.0),
    lambda: solvers.Broyden(lambda y: y[:1]).init(jnp.zeros(2)),
    lambda: solvers.Broyden(lambda y: (y, y)).init(jnp.zeros(2)),
    lambda: solvers.Broyden(system, memory=0),
)
MEMBER = SolverMember(
    "broyden",
    lambda tol, _: solvers.Broyden(system, tol),
    contract.linear_system,
    contract.zeros,
    root_of_system,
    bad=BAD,
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


N = 30


def tridiagonal(y):
    """Broyden's tridiagonal function (Moré, Garbow, Hillstrom 1981, no. 30)."""
    before, after = jnp.append(0.0, y[:-1]), jnp.append(y[1:], 0.0)
    return (3 - 2 * y) * y - before - 2 * after + 1


@pytest.mark.parametrize("memory", [5, 40])
def test_broyden_solves_the_tridiagonal_system(memory):
    with jax.enable_x64(True):
        solver = solvers.Broyden(tridiagonal, tol=1e-10, memory=memory)
        found = core.run(solver, -jnp.ones(N), max_steps=300).raise_if_failed()
        expected = scipy.optimize.root(lambda y: np.asarray(tridiagonal(jnp.asarray(y))), -np.ones(N))
    np.testing.assert_allclose(found.value, expected.x, atol=1e-8)
    assert found.steps < 60


def test_broyden_searches_where_full_steps_diverge():
    """Newton on arctan from 3 diverges; a full step of the same length does too."""
    newton = solvers.Root(jnp.arctan)
    assert core.run(newton, jnp.array(3.0), max_steps=30).status != Status.CONVERGED
    found = core.run(solvers.Broyden(jnp.arctan), jnp.array(3.0), max_steps=100).raise_if_failed()
    np.testing.assert_allclose(found.value, 0.0, atol=1e-4)


def test_broyden_without_a_root_stalls_or_runs_out():
    found = core.run(solvers.Broyden(lambda y: y**2 + 1.0), jnp.array(1.0), max_steps=500)
    assert found.status in (Status.STALLED, Status.MAX_STEPS)
    assert found.error > 0.1
