"""PDHG: contract, linear programs and total variation against other methods, restarts."""

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


def scaled(x, d, b, strength):
    """K x = d x."""
    return jax.tree.map(jnp.multiply, contract.split(d), x)


def near(x, step, d, b, strength):
    """Of ½ ‖x - b‖²."""
    return jax.tree.map(lambda x, b: (x + step * b) / (1 + step), x, contract.split(b))


def clip(y, step, d, b, strength):
    """Of the conjugate of strength · ‖·‖₁."""
    return jax.tree.map(lambda y: jnp.clip(y, -strength, strength), y)


def saddle(d, b, strength):
    x = jnp.sign(b) * jnp.maximum(jnp.abs(b) - strength * d, 0.0)
    return contract.split(x), contract.split((b - x) / d)


def problem(seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 1.5, 3), np.array([2.0, -0.1, -3.0]) + 0.1 * rng.normal(size=3), np.array(0.7)


def member(name, restart, adaptive, option):
    return SolverMember(
        name,
        lambda tol, option: solvers.PDHG(
            scaled, near, clip, tol, **{"primal_weight" if adaptive else "step_size": option}, restart=restart
        ),
        problem,
        lambda: (contract.zeros(), contract.zeros()),
        saddle,
        option,
        bad=(
            lambda: solvers.PDHG(scaled, near, None),
            lambda: solvers.PDHG(scaled, near, clip, step_size=0.0),
            lambda: solvers.PDHG(scaled, near, clip, primal_weight=0.0),
            lambda: solvers.PDHG(jnp.flip, *IDENTITIES).init(jnp.zeros(2)),
            lambda: solvers.PDHG(jnp.flip, *IDENTITIES).init((jnp.zeros(2), jnp.zeros(3))),
            lambda: solvers.PDHG(jnp.flip, lambda x, s: x[:1], jnp.add).optimality((jnp.zeros(2),) * 2),
        ),
    )


IDENTITIES = (lambda x, step: x, lambda y, step: y)
MEMBERS = (member("adaptive", True, True, 1.2), member("plain", False, False, 0.6))


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS[:1]) + contract.contract(MEMBERS[1:])[:1])
    def test_solver(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(0)
M, N = 8, 15
A, COSTS = RNG.normal(size=(M, N)), RNG.uniform(0.5, 1.5, N)
B = A @ RNG.uniform(size=N)


def program(**options):
    """min c·x over A x = b, x >= 0: f = c·x on the orthant, g* = b·y."""
    return solvers.PDHG(
        lambda x, a, b, c: a @ x,
        lambda x, step, a, b, c: jnp.maximum(x - step * c, 0.0),
        lambda y, step, a, b, c: y - step * b,
        **options,
    )


def test_linear_program_is_that_of_scipy_and_restarts_pay():
    exact = scipy.optimize.linprog(COSTS, A_eq=A, b_eq=B)
    steps = []
    with jax.enable_x64(True):
        start = (jnp.zeros(N), jnp.zeros(M))
        for restart in (True, False):
            solver = program(tol=1e-8, restart=restart)
            found = core.run(solver, start, *map(jnp.asarray, (A, B, COSTS)), max_steps=50_000)
            x, y = found.raise_if_failed().value
            np.testing.assert_allclose(COSTS @ x, exact.fun, rtol=1e-6)
            np.testing.assert_allclose(-B @ y, exact.fun, rtol=1e-6)
            np.testing.assert_allclose(x, exact.x, atol=1e-5)
            steps.append(int(found.steps))
    assert 2 * steps[0] < steps[1], steps


def test_total_variation_of_a_step_is_known():
    """Two plateaus, of m and n points, move towards each other by λ / m and λ / n (taut string)."""
    signal, strength = np.r_[np.zeros(4), np.full(6, 3.0)], 1.2
    with jax.enable_x64(True):
        solver = solvers.PDHG(
            lambda x, b: jnp.diff(x),
            lambda x, step, b: (x + step * b) / (1 + step),
            lambda y, step, b: jnp.clip(y, -strength, strength),
            tol=1e-8,
        )
        found = core.run(solver, (jnp.zeros(10), jnp.zeros(9)), jnp.asarray(signal), max_steps=5000)
    expected = np.r_[np.full(4, strength / 4), np.full(6, 3.0 - strength / 6)]
    np.testing.assert_allclose(found.raise_if_failed().value[0], expected, atol=1e-6)


def test_error_is_the_residual_of_the_optimality_conditions():
    """For smooth f and g* the residuals are gradients: x - b + Kᵀy and y - K x, relative."""
    b = RNG.normal(size=N)
    with jax.enable_x64(True):
        solver = solvers.PDHG(
            lambda x: jnp.asarray(A) @ x,
            lambda x, step: (x + step * jnp.asarray(b)) / (1 + step),
            lambda y, step: y / (1 + step),
            restart=False,
        )
        found = core.run(solver, (jnp.ones(N), jnp.ones(M)), max_steps=7)
    x, y = map(np.asarray, found.value)
    primal = np.linalg.norm(x - b + A.T @ y) / (1 + np.linalg.norm(A.T @ y))
    dual = np.linalg.norm(y - A @ x) / (1 + np.linalg.norm(A @ x))
    assert found.error == pytest.approx(max(primal, dual), rel=1e-9)


def test_too_long_steps_do_not_converge():
    solver = program(step_size=10.0 / np.linalg.norm(A, 2), restart=False)
    found = core.run(
        solver,
        (jnp.zeros(N), jnp.zeros(M)),
        *(jnp.asarray(x, jnp.float32) for x in (A, B, COSTS)),
        max_steps=2000,
    )
    assert found.status != core.Status.CONVERGED
