"""EALNewton: contract, exact sketches, descent of the merit function, problems without constraints."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def plane(y, a, b):
    """Σ y = 1."""
    return jnp.sum(contract.join(y))[None] - 1.0


def solution(a, b):
    one = jnp.ones((3, 1), a.dtype)
    system = jnp.block([[(a + a.T) / 2, one], [one.T, jnp.zeros((1, 1), a.dtype)]])
    z = jnp.linalg.solve(system, jnp.append(b, 1.0))
    return contract.split(z[:3]), z[3:]


START = (jnp.zeros(2), jnp.zeros(1))


def norm(x):
    return jnp.sum(x**2)


MEMBER = SolverMember(
    "eal_newton",
    lambda tol, penalty: solvers.EALNewton(contract.quadratic, plane, tol=tol, penalty=penalty),
    contract.linear_system,
    lambda: (contract.zeros(), np.zeros(1)),
    solution,
    option=2.0,
    bad=(
        lambda: solvers.EALNewton("f", plane),
        lambda: solvers.EALNewton(norm, None),
        lambda: solvers.EALNewton(norm, plane, sketch="srht"),
        lambda: solvers.EALNewton(norm, plane, sketch_size=0),
        lambda: solvers.EALNewton(norm, plane, penalty=0.0),
        lambda: solvers.EALNewton(norm, plane, multiplier_penalty=-1.0),
        lambda: solvers.EALNewton(norm, plane, growth=1.0),
        lambda: solvers.EALNewton(norm, plane, armijo=0.5),
        lambda: solvers.EALNewton(norm, plane, accuracy=1.0),
        lambda: solvers.EALNewton(norm, plane, max_sketches=0),
        lambda: solvers.EALNewton(norm, lambda x: x[:1]).init(jnp.zeros(2)),
        lambda: solvers.EALNewton(norm, lambda x: x).init(START),
        lambda: solvers.EALNewton(lambda x: x, lambda x: x[:1]).init(START),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)) * np.where(RNG.uniform(size=(40, 1)) < 0.5, -1, 1)
W = np.ones(6) / np.sqrt(6)


def logistic(x):
    return jnp.mean(jax.nn.softplus(-jnp.asarray(X, x.dtype) @ x))


def sphere_and_plane(x):
    return jnp.stack([x @ x - 1.0, jnp.asarray(W, x.dtype) @ x - 0.3])


def merit(x, multipliers, penalties, constraint=sphere_and_plane):
    """Written out."""
    c, g = constraint(x), jax.jacobian(constraint)(x)
    gradient = jax.grad(logistic)(x) + g.T @ multipliers
    lagrangian = logistic(x) + multipliers @ c
    return lagrangian + penalties[0] / 2 * c @ c + penalties[1] / 2 * jnp.sum((g @ gradient) ** 2)


def path(solver, y0, steps):
    step = jax.jit(solver.step)
    states = [solver.init(y0)]
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


@functools.cache
def exact_path():
    with jax.enable_x64(True):
        y0 = (jnp.asarray(RNG.normal(size=6)), jnp.zeros(2))
        return path(solvers.EALNewton(logistic, sphere_and_plane, "exact", tol=1e-10), y0, 20)


@pytest.mark.paper(94)
def test_every_step_descends_on_the_merit_function_and_reaches_the_exact_solution():
    """Armijo's condition, recomputed: 𝓛_η falls by α β of a slope that is at most -(η₂/2)‖r‖²."""
    with jax.enable_x64(True):
        exact = exact_path()
        solver = solvers.EALNewton(logistic, sphere_and_plane, tol=1e-10, key=jax.random.key(1))
        states = path(solver, exact[0].value, 25)
        value = jax.jit(merit)
        for old, new in itertools.pairwise(states):
            before, after = (value(*state.value, new.penalties) for state in (old, new))
            residual = old.error * old.scale
            drop = 0.3 * new.size * new.penalties[1] / 2 * residual**2
            assert after <= before - drop + 1e-14
        assert max(states[-1].error, exact[-1].error) < 1e-10
        assert states[-1].sketches > 30
        x, _ = states[-1].value
        np.testing.assert_allclose(logistic(x), logistic(exact[-1].value[0]), atol=1e-6)
        np.testing.assert_allclose(sphere_and_plane(x), 0.0, atol=1e-9)


@pytest.mark.paper(94)
def test_a_full_sketch_is_the_newton_step():
    """q = n + m rows solve the system at once."""
    with jax.enable_x64(True):
        start, exact = exact_path()[:2]
        full = path(solvers.EALNewton(logistic, sphere_and_plane, sketch_size=8), start.value, 1)[1]
        chex.assert_trees_all_close(full.value, exact.value, rtol=1e-8)
        assert full.sketches == exact.sketches


@pytest.mark.paper(94)
def test_without_constraints_it_is_newton_on_the_function():
    """The merit function is f then; unit steps of damped Newton, in float32."""
    fun = lambda x: logistic(x) + jnp.sum(x**2)  # noqa: E731
    solver = solvers.EALNewton(fun, lambda x: (), "exact", tol=1e-6)
    y0 = (jnp.ones(6), ())
    _, first, *_, last = path(solver, y0, 8)
    newton = jnp.ones(6) - jnp.linalg.solve(jax.hessian(fun)(jnp.ones(6)), jax.grad(fun)(jnp.ones(6)))
    np.testing.assert_allclose(first.value[0], newton, atol=1e-5)
    assert first.size == 1
    assert last.error < 1e-6


@pytest.mark.paper(94)
def test_a_maximum_is_left():
    """Where ∇²L is negative on the null space, the convexified system still descends: the far point of a circle."""
    with jax.enable_x64(True):
        solver = solvers.EALNewton(lambda x: x[0], lambda x: x @ x - 1.0, "kaczmarz", 1, tol=1e-6)
        y0 = (jnp.array([1.0, 0.05]), jnp.array(-0.5))
        found = core.run(solver, y0, max_steps=100).raise_if_failed()
        np.testing.assert_allclose(found.value[0], [-1.0, 0.0], atol=1e-5)
        np.testing.assert_allclose(found.value[1], 0.5, atol=1e-5)
