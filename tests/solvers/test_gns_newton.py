"""GNSNewton: contract, the acceptance inequality, its limits, stand-ins for the Hessian."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import core, linalg, solvers
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def member(name, **options):
    return SolverMember(
        name,
        lambda tol, radius: solvers.GNSNewton(contract.quadratic, tol=tol, radius=radius, **options),
        contract.linear_system,
        contract.zeros,
        contract.solve_symmetric,
        option=0.5,
        bad=(
            lambda: solvers.GNSNewton("f"),
            lambda: solvers.GNSNewton(contract.quadratic, "exact"),
            lambda: solvers.GNSNewton(contract.quadratic, radius=0.0),
            lambda: solvers.GNSNewton(contract.quadratic, linear="lu"),
            lambda: solvers.GNSNewton(contract.quadratic, max_trials=0),
            lambda: solvers.GNSNewton(lambda y: y).init(jnp.zeros(2)),
            lambda: solvers.GNSNewton(jnp.sum, metric=jnp.eye(3)).init(jnp.zeros(2)),
        ),
    )


MEMBERS = (member("gns_newton"), member("gns_newton_cg", linear="cg"))


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS[:1]) + contract.contract(MEMBERS[1:])[:2])
    def test_solver(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)) * np.geomspace(1.0, 0.1, 5)
S = np.where(RNG.uniform(size=60) < 1 / (1 + np.exp(-X @ RNG.normal(size=5))), 1.0, -1.0)


def losses(y, x, s):
    return jax.nn.softplus(-s * (x @ y))


def logistic(y, x, s):
    return jnp.mean(losses(y, x, s)) + 5e-4 * jnp.sum(y**2)


def zero(y, *args):
    return lambda v: 0 * v


def fisher(y, x, s):
    return linalg.empirical_fisher_operator(lambda y: losses(y, x, s), y)


def gauss_newton(y, x, s):
    return linalg.gauss_newton_operator(lambda y: x @ y, lambda z: jnp.mean(jax.nn.softplus(-s * z)), y)


METRIC = X.T @ X / 240 + 1e-3 * np.eye(5)


def path(solver, y0, *args, steps):
    """The states of a run, one after the other."""
    state = solver.init(y0, *args)
    step = jax.jit(solver.step)
    states = [state]
    for _ in range(steps):
        states.append(step(states[-1], *args))
    return states


@pytest.mark.paper(34)
@pytest.mark.parametrize(
    ("curvature", "metric"), [(None, None), (zero, None), (fisher, METRIC), (gauss_newton, None)]
)
def test_every_step_decreases_as_promised_within_its_radius(curvature, metric):
    """f(y) - f(y⁺) >= ‖∇f(y⁺)‖*² / (8 λ) and ‖y⁺ - y‖ <= γ, recomputed from the states."""
    b = np.eye(5) if metric is None else metric
    with jax.enable_x64(True):
        args = (jnp.asarray(X), jnp.asarray(S))
        given = None if metric is None else jnp.asarray(metric)
        solver = solvers.GNSNewton(logistic, curvature, tol=0.0, metric=given)
        states = path(solver, jnp.zeros(5), *args, steps=6)
        for old, new in itertools.pairwise(states):
            g, after = np.asarray(old.gradient), np.asarray(new.gradient)
            radius = float(new.radius) / 2
            strength = np.sqrt(g @ np.linalg.solve(b, g)) / radius
            gain = float(old.objective - new.objective)
            assert gain + 1e-14 >= after @ np.linalg.solve(b, after) / (8 * strength)
            move = np.asarray(new.value - old.value)
            assert np.sqrt(move @ b @ move) <= radius * (1 + 1e-9)


@pytest.mark.paper(34)
def test_step_is_the_regularized_newton_step():
    """y⁺ = y - (H + λ B)⁻¹ g with λ of the accepted radius, against numpy."""
    with jax.enable_x64(True):
        args = (jnp.asarray(X), jnp.asarray(S))
        solver = solvers.GNSNewton(logistic, metric=jnp.asarray(METRIC))
        old, new = path(solver, jnp.ones(5), *args, steps=1)
        h = np.asarray(jax.hessian(logistic)(old.value, *args))
    g = np.asarray(old.gradient)
    strength = np.sqrt(g @ np.linalg.solve(METRIC, g)) / (float(new.radius) / 2)
    expected = np.ones(5) - np.linalg.solve(h + strength * METRIC, g)
    np.testing.assert_allclose(new.value, expected, rtol=1e-10)


@pytest.mark.paper(34)
def test_without_curvature_it_is_the_normalized_gradient_step():
    with jax.enable_x64(True):
        args = (jnp.asarray(X), jnp.asarray(S))
        old, new = path(solvers.GNSNewton(logistic, zero), jnp.ones(5), *args, steps=1)
        g = np.asarray(old.gradient)
    expected = np.ones(5) - float(new.radius) / 2 * g / np.linalg.norm(g)
    np.testing.assert_allclose(new.value, expected, rtol=1e-12)


@pytest.mark.paper(34)
def test_indefinite_trials_are_refused():
    """Near the maximum of cos no λ <= cos(0.1) makes the matrix positive; the first radius gives λ = 0.1."""
    with jax.enable_x64(True):
        solver = solvers.GNSNewton(lambda y: -jnp.cos(y), tol=1e-9)
        found = core.run(solver, jnp.array(np.pi - 0.1), max_steps=50).raise_if_failed()
        np.testing.assert_allclose(found.value % (2 * np.pi), 0.0, atol=1e-8)
        _, new = path(solver, jnp.array(np.pi - 0.1), steps=1)
        assert new.solves > 1
        # λ = sin(0.1) / γ must exceed cos(0.1).
        assert float(new.radius) / 2 < np.tan(0.1)


@pytest.mark.paper(34)
def test_float32_reaches_the_minimum_in_few_steps():
    args = (jnp.asarray(X, jnp.float32), jnp.asarray(S, jnp.float32))
    run = functools.partial(core.run, max_steps=40)
    found = run(solvers.GNSNewton(logistic, tol=1e-6), jnp.zeros(5), *args).raise_if_failed()
    again = run(solvers.GNSNewton(logistic, gauss_newton, tol=1e-5, linear="cg"), jnp.zeros(5), *args)
    assert found.steps < 20
    np.testing.assert_allclose(again.raise_if_failed().value, found.value, atol=2e-2)


def test_a_search_without_success_keeps_the_point_and_says_so():
    """One trial, at a radius that leaves the valley."""
    solver = solvers.GNSNewton(lambda y: jnp.sum(y**4), zero, radius=100.0, max_trials=1)
    found = core.run(solver, jnp.ones(2), max_steps=5)
    assert found.status == core.Status.STALLED
    assert found.steps == 1
    np.testing.assert_array_equal(found.value, 1.0)
