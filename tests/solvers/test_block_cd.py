"""BlockCD: contract, guaranteed decreases, rules, active sets and finite ends."""

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

BLOCKS = np.array([[0, 2], [1, -1]])
BAD = (
    lambda: solvers.BlockCD("f"),
    lambda: solvers.BlockCD(contract.quadratic, rule="gauss"),
    lambda: solvers.BlockCD(contract.quadratic, update="exact"),
    lambda: solvers.BlockCD(contract.quadratic, prox="l2"),
    lambda: solvers.BlockCD(contract.quadratic, update="matrix", prox="l1"),
    lambda: solvers.BlockCD(contract.quadratic, rule="gsq", prox="l1"),
    lambda: solvers.BlockCD(contract.quadratic, 2, rule="cyclic"),
    lambda: solvers.BlockCD(contract.quadratic, 0, rule="gs"),
    lambda: solvers.BlockCD(contract.quadratic, ((0, 0),)),
    lambda: solvers.BlockCD(contract.quadratic, ((0,), ())),
    lambda: solvers.BlockCD(contract.quadratic, "pairs"),
    lambda: solvers.BlockCD(contract.quadratic, strength=-1.0),
    lambda: solvers.BlockCD(jnp.sum, ((0, 1),)).init(jnp.zeros(3)),
    lambda: solvers.BlockCD(jnp.sum, 4, rule="gs").init(jnp.zeros(3)),
    lambda: solvers.BlockCD(jnp.sum, bounds=jnp.ones(2)).init(jnp.zeros(3)),
    lambda: solvers.BlockCD(lambda y: y).init(jnp.zeros(2)),
)


def separable(y, d, b):
    return 0.5 * jnp.sum(d * (contract.join(y) - b) ** 2)


def problem(seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(1.0, 3.0, 3), np.array([2.0, -0.1, -3.0]) + 0.1 * rng.normal(size=3)


def soft(x, threshold):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


MATRIX = SolverMember(
    "block_cd",
    lambda tol, _: solvers.BlockCD(contract.quadratic, BLOCKS, "gsq", "matrix", tol=tol),
    contract.linear_system,
    contract.zeros,
    contract.solve_symmetric,
    bad=BAD,
)
CYCLIC = SolverMember(
    "block_cd_cyclic_l1",
    lambda tol, bound: solvers.BlockCD(
        separable, BLOCKS, "cyclic", "lipschitz", "l1", tol, 0.7, bounds=bound * jnp.ones(2)
    ),
    problem,
    contract.zeros,
    lambda d, b: contract.split(soft(b, 0.7 / d)),
    option=3.0,
)
NEWTON = SolverMember(
    "block_cd_newton_l1",
    lambda tol, strength: solvers.BlockCD(separable, None, "gs", "newton", "l1", tol, strength),
    problem,
    contract.zeros,
    lambda d, b: contract.split(soft(b, 0.7 / d)),
    option=0.7,
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(
        contract.contract([MATRIX]) + contract.contract([CYCLIC])[:3] + contract.contract([NEWTON])[:1]
    )
    def test_solver(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 8)) * np.exp(RNG.normal(size=8))
T = X[:, :3] @ np.array([1.0, -2.0, 1.5]) + 0.1 * RNG.normal(size=30)
H = X.T @ X
PAIRS = np.arange(8).reshape(4, 2)


def squares(y):
    return 0.5 * jnp.sum((jnp.asarray(X, y.dtype) @ y - jnp.asarray(T, y.dtype)) ** 2)


def path(solver, y0, steps):
    state = solver.init(y0)
    step = jax.jit(solver.step)
    states = [state]
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


@pytest.mark.paper(81)
@pytest.mark.parametrize("rule", ["gs", "gsl", "gsd", "gsq"])
def test_rules_choose_their_block_and_matrix_updates_decrease_as_modelled(rule):
    """f(y) - f(y⁺) = ½ ∇_bᵀ H_b⁻¹ ∇_b for a quadratic; scores written out."""
    with jax.enable_x64(True):
        states = path(solvers.BlockCD(squares, PAIRS, rule, "matrix"), jnp.zeros(8), 6)
        value = jax.jit(squares)
        for old, new in itertools.pairwise(states):
            g = np.asarray(old.gradient)[PAIRS]
            h = np.stack([H[np.ix_(b, b)] for b in PAIRS])
            scores = {
                "gs": np.linalg.norm(g, axis=1),
                "gsl": np.sum(g**2, 1) / np.linalg.eigvalsh(h)[:, -1],
                "gsd": np.sum(g**2 / (2 * np.diagonal(h, axis1=1, axis2=2)), 1),
                "gsq": np.einsum("bi,bi->b", g, np.linalg.solve(h, g[..., None])[..., 0]),
            }
            np.testing.assert_array_equal(new.block, PAIRS[np.argmax(scores[rule])])
            drop = float(value(old.value) - value(new.value))
            np.testing.assert_allclose(
                drop, scores["gsq"][np.argmax(scores[rule])] / 2, rtol=1e-9, atol=1e-10
            )


@pytest.mark.paper(81)
def test_one_block_of_everything_solves_least_squares_in_one_step():
    exact = np.linalg.lstsq(X, T, rcond=None)[0]
    with jax.enable_x64(True):
        for update in ("matrix", "newton"):
            solver = solvers.BlockCD(squares, [range(8)], "cyclic", update, tol=1e-10)
            found = core.run(solver, jnp.zeros(8), max_steps=3).raise_if_failed()
            assert found.steps == 1
            np.testing.assert_allclose(found.value, exact, rtol=1e-8)


@pytest.mark.paper(81)
def test_variable_blocks_are_the_largest_scores():
    """The decrease of a lipschitz update is at least ‖∇_b f‖² / (2 L_b)."""
    with jax.enable_x64(True):
        old, new = path(solvers.BlockCD(squares, 3, "gsd"), jnp.zeros(8), 1)
        g = np.asarray(old.gradient)
        expected = np.argsort(-(g**2) / np.diag(H))[:3]
        np.testing.assert_array_equal(np.sort(new.block), np.sort(expected))
        bound = np.linalg.eigvalsh(H[np.ix_(expected, expected)])[-1]
        moved = np.zeros(8)
        moved[expected] = -g[expected] / bound
        np.testing.assert_allclose(new.value, moved, rtol=1e-9)
        assert squares(old.value) - squares(new.value) >= np.sum(g[expected] ** 2) / (2 * bound) * (1 - 1e-9)
        found = core.run(solvers.BlockCD(squares, 3, "gs", "newton", tol=1e-8), jnp.zeros(8), max_steps=500)
    np.testing.assert_allclose(found.raise_if_failed().value, np.linalg.lstsq(X, T, rcond=None)[0], atol=1e-6)


@pytest.mark.paper(81)
def test_newton_is_exact_once_the_zeros_are_found():
    """Lasso with one block: after identification the signs give a linear system, solved in one step."""
    strength = 20.0
    with jax.enable_x64(True):
        run = functools.partial(core.run, y0=jnp.zeros(8), max_steps=20_000)
        first = solvers.BlockCD(squares, None, "gsl", prox="l1", strength=strength, tol=1e-10)
        slow = run(first).raise_if_failed()
        solver = solvers.BlockCD(squares, [range(8)], "cyclic", "newton", "l1", 1e-10, strength)
        quick = run(solver).raise_if_failed()
        np.testing.assert_allclose(quick.value, slow.value, atol=1e-7)
        zeros = np.asarray(quick.value) == 0
        assert 0 < zeros.sum() < 8
        np.testing.assert_array_equal(np.asarray(slow.value) == 0, zeros)
        # The gap δ by which the zeros are held.
        assert np.min(strength - np.abs(np.asarray(quick.state.gradient)[zeros])) > 0
        states = path(solver, jnp.zeros(8), int(quick.steps))
        same = [np.array_equal(np.asarray(s.value) == 0, zeros) for s in states]
        found = next(i for i in range(len(same)) if all(same[i:]))
        assert int(quick.steps) <= found + 2
        assert int(quick.steps) * 5 < int(slow.steps)


@pytest.mark.paper(81)
@pytest.mark.parametrize("prox", ["l1", "nonneg"])
def test_scores_with_a_prox_are_decreases_of_its_model(prox):
    """Twice that of g d + L d² / 2 + h(y + d) at the minimum over d, by a fine grid; entries reach and cross 0."""
    weight = 2.0 if prox == "l1" else 0.0
    y = np.array([1.0, 0.2, 0.0, 0.0, 0.5, 3.0] if prox == "nonneg" else [1.0, 0.2, 0.0, 0.0, -0.5, 3.0])
    g, bound = np.array([1.0, 4.0, 5.0, -1.0, -9.0, -2.0]), np.array([1.0, 2.0, 3.0, 4.0, 2.0, 1.0])
    grid = np.linspace(-8.0, 8.0, 160_001)

    def penalty(z):
        return weight * np.abs(z) + (np.where(z < -1e-12, np.inf, 0.0) if prox == "nonneg" else 0.0)

    expected = [
        -2 * np.min(g[i] * grid + bound[i] * grid**2 / 2 + penalty(y[i] + grid) - penalty(y[i]))
        for i in range(6)
    ]
    solver = solvers.BlockCD(squares, prox=prox, strength=weight)
    got = solver._score(*(jnp.asarray(x, jnp.float32)[:, None] for x in (y, g, bound)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.paper(81)
def test_nonnegative_least_squares_is_that_of_scipy():
    from scipy.optimize import nnls

    expected, _ = nnls(X, T)
    with jax.enable_x64(True):
        solver = solvers.BlockCD(squares, PAIRS, "gsl", "newton", "nonneg", tol=1e-9)
        found = core.run(solver, -jnp.ones(8), max_steps=5000).raise_if_failed()
    np.testing.assert_allclose(found.value, expected, atol=1e-6)
    assert np.min(np.asarray(found.value)) == 0


@pytest.mark.paper(81)
def test_newton_descends_where_the_function_is_not_convex():
    """From a point of negative curvature, with the curvature at the bottom as bound."""
    solver = solvers.BlockCD(
        lambda y: jnp.sum(1 - jnp.cos(y)), ((0, 1),), "cyclic", "newton", bounds=jnp.ones(1), tol=1e-5
    )
    found = core.run(solver, jnp.array([2.5, -2.0]), max_steps=50).raise_if_failed()
    np.testing.assert_allclose(found.value, 0.0, atol=1e-4)


def test_random_blocks_follow_the_key():
    """Two keys, two paths; a rest of many blocks is no stall."""

    def last(key):
        solver = solvers.BlockCD(squares, None, "random", "matrix", prox=None, tol=0.0, key=key)
        return core.run(solver, jnp.zeros(8), max_steps=40)

    one, again, other = (last(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one.value, again.value)
    assert not np.array_equal(one.value, other.value)
    assert one.status == core.Status.MAX_STEPS
