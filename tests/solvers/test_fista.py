"""Fista: contract, the lasso of scikit-learn, rates, restarts, projections."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from sklearn.linear_model import Lasso

from jaxdiv import convex, core, solvers
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def soft(x, threshold):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def separable(y, d, b, strength):
    return 0.5 * jnp.sum(d * (contract.join(y) - b) ** 2)


def shrink(y, step, d, b, strength):
    return jax.tree.map(lambda x: soft(x, step * strength), y)


def problem(seed):
    rng = np.random.default_rng(seed)
    # Entries on both sides of their thresholds.
    d, b = rng.uniform(1.0, 3.0, 3), np.array([2.0, -0.1, -3.0]) + 0.1 * rng.normal(size=3)
    return d, b, np.array(0.7)


def member(name, step_size, option=None, **options):
    return SolverMember(
        name,
        lambda tol, size: solvers.Fista(separable, shrink, tol, size if step_size else None, **options),
        problem,
        contract.zeros,
        lambda d, b, strength: contract.split(soft(b, strength / d)),
        option=option,
        bad=(
            lambda: solvers.Fista(separable, None),
            lambda: solvers.Fista(separable, shrink, step_size=0.0),
            lambda: solvers.Fista(separable, shrink, strong_convexity=-1.0),
            lambda: solvers.Fista(jnp.sin, shrink).init(jnp.zeros(2)),
            lambda: solvers.Fista(jnp.sum, lambda y, s: y[:1]).optimality(jnp.zeros(2)),
        ),
    )


MEMBERS = (
    member("fista", False),
    member("proximal_gradient", True, 0.3, accelerate=False),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS))
    def test_solver(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(0)
N, P = 40, 20
X = RNG.normal(size=(N, P)) * np.linspace(0.2, 2.0, P)
T = X[:, :4] @ np.array([1.0, -2.0, 3.0, 1.5]) + 0.1 * RNG.normal(size=N)


def loss(y, x, t):
    return 0.5 * jnp.mean((x @ y - t) ** 2)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_lasso_is_that_of_scikit_learn(scale):
    """Also in other units: the first step comes from the curvature."""
    alpha = 0.05
    with jax.enable_x64(True):
        solver = solvers.Fista(
            lambda y, *data: scale * loss(y, *data), lambda y, s, *_: soft(y, scale * alpha * s), tol=1e-10
        )
        found = core.run(solver, jnp.zeros(P), jnp.asarray(X), jnp.asarray(T), max_steps=5000)
    theirs = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, T)
    np.testing.assert_allclose(found.raise_if_failed().value, theirs.coef_, atol=1e-7)
    assert np.array_equal(np.asarray(found.value) == 0, theirs.coef_ == 0)


CURVATURES = np.geomspace(1e-3, 1.0, 30)


def ill(y):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, y.dtype) * (y - 1.0) ** 2)


def steps(**options):
    solver = solvers.Fista(ill, lambda y, s: y, tol=1e-8, step_size=1.0, **options)
    with jax.enable_x64(True):
        found = core.run(solver, jnp.zeros(30), max_steps=20_000)
    return int(found.raise_if_failed().steps)


def test_momentum_restarts_and_strong_convexity_pay():
    """At condition 1000 momentum alone halves the count, in waves; restarts come near knowing μ."""
    plain, without = steps(accelerate=False), steps(restart=False)
    restarted, known = steps(), steps(strong_convexity=1e-3)
    assert 2 * without < plain
    assert 1.5 * restarted < without
    assert restarted < 2 * known


def test_step_is_at_most_the_inverse_curvature():
    """On a quadratic the search accepts 1/L up to a factor of 2, and no more than the largest that descends."""
    found = core.run(solvers.Fista(ill, lambda y, s: y), jnp.zeros(30), max_steps=200)
    assert 0.5 <= found.state.size <= 1.1 / CURVATURES[0]
    np.testing.assert_array_less(ill(found.value), ill(jnp.zeros(30)))


def test_projected_gradient_onto_the_simplex():
    """The projection of b, by another way."""
    b = jnp.asarray(RNG.normal(size=6), jnp.float32)
    solver = solvers.Fista(
        lambda y, b: jnp.sum((y - b) ** 2), lambda y, step, b: convex.project_simplex(y), tol=1e-6
    )
    found = core.run(solver, jnp.full(6, 1 / 6), b, max_steps=200).raise_if_failed()
    np.testing.assert_allclose(found.value, convex.project_simplex(b), atol=1e-5)
