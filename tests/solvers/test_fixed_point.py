"""FixedPoint and Anderson: contract, counts, damping, safeguard."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.core import Status
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def contraction(y, a, b):
    """With the fixed point A⁻¹ b and the derivative I - A/5."""
    y = contract.join(y)
    return contract.split(y - 0.2 * (a @ y - b))


def member(name, make, bad, option=1.0):
    return SolverMember(
        name, make, contract.linear_system, contract.zeros, contract.solve_linear, option, bad=bad
    )


MEMBERS = (
    member(
        "fixed_point",
        lambda tol, option: solvers.FixedPoint(contraction, tol, option),
        (
            lambda: solvers.FixedPoint(3),
            lambda: solvers.FixedPoint(contraction, damping=0.0),
            lambda: solvers.FixedPoint(lambda y: y[:1]).init(jnp.zeros(2)),
            lambda: solvers.FixedPoint(lambda y: (y, y)).init(jnp.zeros(2)),
        ),
        option=0.9,
    ),
    member(
        "anderson",
        lambda tol, option: solvers.Anderson(contraction, tol, memory=2, damping=option),
        (
            lambda: solvers.Anderson(None),
            lambda: solvers.Anderson(contraction, memory=0),
            lambda: solvers.Anderson(contraction, damping=-1.0),
            lambda: solvers.Anderson(contraction, ridge=-1.0),
            lambda: solvers.Anderson(lambda y: y[:1]).init(jnp.zeros(2)),
        ),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS))
    def test_solver(self, check, member):
        check(member, self.variant)

    def test_eager_is_compiled(self):
        solver = solvers.Anderson(contraction, 1e-5)
        arguments = contract.cast((contract.zeros(), contract.linear_system(0)), jnp.float32)
        found = [
            run(solver, arguments[0], *arguments[1])
            for run in (lambda *x: core.run(*x, max_steps=9), jax.jit(lambda *x: core.run(*x, max_steps=9)))
        ]
        chex.assert_trees_all_close(*found, rtol=1e-6)


N = 20
RATES = np.linspace(0.0, 0.98, N)


def test_plain_iteration_contracts_at_the_known_rate():
    """y - y* shrinks by the largest rate, 0.98, a step: the count to an error of 1e-6 is its logarithm."""
    with jax.enable_x64(True):
        solver = solvers.FixedPoint(lambda y: jnp.asarray(RATES) * y + 1.0, tol=1e-9)
        found = core.run(solver, jnp.zeros(N), max_steps=5000).raise_if_failed()
    fixed = 1 / (1 - RATES)
    np.testing.assert_allclose(found.value, fixed, rtol=1e-6)
    steps = np.log(1e-9 * (1 + np.linalg.norm(fixed))) / np.log(0.98)
    assert abs(found.steps - steps) < 20


def test_anderson_solves_linear_problems_in_as_many_steps_as_eigenvalues():
    """Without truncation it is GMRES (Walker, Ni 2011, th. 2.2): 4 distinct eigenvalues, 4 steps and one to see."""
    rates = np.repeat([0.1, 0.5, 0.9, 0.99], 5)
    with jax.enable_x64(True):
        solver = solvers.Anderson(lambda y: jnp.asarray(rates) * y + 1.0, tol=1e-9, memory=6)
        found = core.run(solver, jnp.zeros(N), max_steps=100).raise_if_failed()
    assert found.steps <= 6
    np.testing.assert_allclose(found.value, 1 / (1 - rates), rtol=1e-6)


def test_anderson_takes_fewer_steps():
    def fun(y, rates):
        return rates * jnp.sin(y) + 0.1

    rates = jnp.linspace(0.0, 0.98, N)
    plain, fast = (
        core.run(solver(fun), jnp.zeros(N), rates, max_steps=3000).raise_if_failed()
        for solver in (solvers.FixedPoint, solvers.Anderson)
    )
    np.testing.assert_allclose(fast.value, plain.value, atol=1e-3)
    assert 2 * fast.steps < plain.steps


@pytest.mark.parametrize(("damping", "status"), [(1.0, Status.NONFINITE), (0.4, Status.CONVERGED)])
def test_damping_tames_a_derivative_beyond_minus_one(damping, status):
    """T' = -3 diverges; 1 + damping (T' - 1) = -0.6 contracts."""
    found = core.run(
        solvers.FixedPoint(lambda y: 4.0 - 3.0 * y, damping=damping), jnp.zeros(1), max_steps=500
    )
    assert found.status == status
    if status == Status.CONVERGED:
        np.testing.assert_allclose(found.value, 1.0, rtol=1e-4)


def test_anderson_survives_a_kink_and_points_that_are_not_numbers():
    """Trial points below 0 give NaN: they are not taken."""
    fun = lambda y: jnp.sqrt(y) * 0.5 + 0.05 * jnp.abs(y - 0.3)  # noqa: E731
    found = core.run(solvers.Anderson(fun, tol=1e-6), jnp.full(3, 4.0), max_steps=200).raise_if_failed()
    np.testing.assert_allclose(found.value, fun(found.value), rtol=1e-5)
