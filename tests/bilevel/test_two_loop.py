"""Estimators of the hypergradient in `make_step`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract


def two_loops(estimator, *, rate=0.5, **options):
    def make(case, sampler):
        inner_tx, outer_tx = optax.sgd(case.inner_step), optax.sgd(rate * case.outer_step)
        chosen = estimator(case) if callable(estimator) else estimator
        return bilevel.make_step(
            case.problem, chosen, inner_tx, outer_tx, sampler=sampler, **{"inner_steps": 10} | options
        )

    return staticmethod(make)


class ImplicitContract(contract.Contract):
    make = two_loops(bilevel.implicit_gradient(rtol=1e-12))
    steps, reached = 1000, 2e-11


class NystromContract(contract.Contract):
    """The whole Hessian sketched; the ridge leaves a bias."""

    make = two_loops(bilevel.nystrom(rank=8, ridge=1e-2))
    steps, reached = 1000, 5e-2


class UnrolledContract(contract.Contract):
    """The loop's end is not the solution: a bias remains, less with more steps."""

    make = two_loops(bilevel.unrolled())
    steps, reached = 500, 2e-2


class ForwardContract(contract.Contract):
    make = two_loops(bilevel.unrolled(mode="forward"))
    steps, reached = 500, 2e-2


class TruncatedContract(contract.Contract):
    make = two_loops(bilevel.unrolled(truncate=3))
    steps, reached = 500, 0.2


class FirstOrderContract(contract.Contract):
    """Without the response of y the end is far from a solution, as it must be."""

    make = two_loops(bilevel.first_order())
    steps, reached = 500, 1.0


class FiniteDifferenceContract(contract.Contract):
    make = two_loops(lambda case: bilevel.finite_difference(case.inner_step))
    steps, reached = 500, 0.5


class OneStepContract(contract.Contract):
    make = two_loops(bilevel.one_step(steps=8))
    steps, reached = 500, 0.1


class PzoboContract(contract.Contract):
    make = two_loops(bilevel.pzobo(), rate=0.1)
    steps, reached = 3000, 1e-2


class ZerothOrderContract(contract.Contract):
    make = two_loops(bilevel.zeroth_order(), rate=0.1)
    steps, reached = 3000, 1e-2


def hypergradients(estimators, inner_steps, case=None):
    """The direction that each estimator gives at the first x, from y = 0."""
    case = contract.quadratic() if case is None else case

    @functools.partial(jax.jit, static_argnums=0)
    def directions(i):
        estimator = estimators[i]
        init, step = bilevel.make_step(
            case.problem, estimator, optax.sgd(case.inner_step), optax.sgd(1.0), inner_steps=inner_steps
        )
        state = init(case.outer, case.inner, case.data, jax.random.key(0))
        after, info = step(state, case.data)
        return optax.tree.sub(state.outer, after.outer), info

    return case, [directions(i) for i in range(len(estimators))]


class TestLimits:
    """How the estimators are related, in float64."""

    def test_converged_loops_give_the_exact_hypergradient(self):
        with jax.enable_x64(True):
            estimators = [
                bilevel.implicit_gradient(rtol=1e-12),
                bilevel.implicit_gradient(rtol=1e-12, method="cholesky"),
                bilevel.unrolled(),
                bilevel.unrolled(mode="forward"),
                bilevel.unrolled(truncate=200),
            ]
            case, found = hypergradients(estimators, 400)
            expected = case.hypergradient(case.outer)
            for direction, info in found:
                chex.assert_trees_all_close(direction, expected, rtol=1e-9)
                assert info.status == 0

    def test_a_whole_sketch_is_the_hessian_with_a_ridge(self):
        with jax.enable_x64(True):
            ridge = 1e-3
            estimators = [
                bilevel.nystrom(rank=8, ridge=ridge),
                bilevel.implicit_gradient(rtol=1e-12, ridge=ridge),
            ]
            _, found = hypergradients(estimators, 400)
            chex.assert_trees_all_close(found[0][0], found[1][0], rtol=1e-9)

    def test_truncation_is_a_neumann_series(self):
        """K differentiated steps at the solution: v = a sum_{k < K} (I - a H)^k dF/dy."""
        with jax.enable_x64(True):
            k = 3
            case, found = hypergradients([bilevel.unrolled(truncate=k), bilevel.one_step(steps=k)], 400)
            losses = bilevel.Losses(case.problem, ((), ()), case.data, jax.random.key(0))
            y = case.solution(case.outer)
            _, (f_x, f_y) = losses.outer_gradients(case.outer, y)
            _, product = losses.inner_products(case.outer, y)
            term = v = f_y
            for _ in range(k - 1):
                term = optax.tree.add_scale(term, -case.inner_step, product(term)[0])
                v = optax.tree.add(v, term)
            expected = optax.tree.add_scale(f_x, -case.inner_step, product(v)[1])
            for direction, _ in found:
                chex.assert_trees_all_close(direction, expected, rtol=1e-9)

    def test_finite_differences_are_the_last_step(self):
        with jax.enable_x64(True):
            case = contract.quadratic()
            estimators = [bilevel.finite_difference(case.inner_step), bilevel.unrolled(truncate=1)]
            _, found = hypergradients(estimators, 3, case)
            chex.assert_trees_all_close(found[0][0], found[1][0], rtol=1e-8)

    def test_random_directions_are_right_on_average(self):
        """Linear responses: perturbed loops differ from the derivative by the directions' scatter alone."""
        with jax.enable_x64(True):
            many = 20_000
            estimators = [
                bilevel.pzobo(directions=many),
                bilevel.zeroth_order(directions=many),
                bilevel.unrolled(),
            ]
            _, found = hypergradients(estimators, 10)
            exact = found[-1][0]
            for direction, _ in found[:2]:
                gap = optax.tree.norm(optax.tree.sub(direction, exact)) / optax.tree.norm(exact)
                assert gap < 5 * np.sqrt(6 / many)


class TestStates:
    def test_warm_started_adjoint_needs_fewer_products(self):
        """From the second step on the last v is the guess."""
        with jax.enable_x64(True):
            case = contract.quadratic()
            products = {}
            for warm in (True, False):
                estimator = bilevel.implicit_gradient(rtol=1e-6, warm_start=warm)
                init, step = bilevel.make_step(
                    case.problem, estimator, optax.sgd(case.inner_step), optax.sgd(1e-4), inner_steps=30
                )
                state = init(case.outer, case.inner, case.data, jax.random.key(0))
                _, infos = jax.jit(
                    lambda s, step=step: jax.lax.scan(lambda s, _: step(s, case.data), s, length=6)
                )(state)
                products[warm] = np.asarray(infos.metrics["products"])
            assert products[True][0] == products[False][0]
            assert np.all(products[True][2:] < products[False][2:])

    def test_cold_start(self):
        """Each loop begins at the first y: the second step repeats the first if x stays."""
        case = contract.quadratic(dtype=np.float32)
        init, step = bilevel.make_step(
            case.problem, bilevel.unrolled(), optax.adam(0.1), optax.sgd(0.0), inner_steps=2, warm_start=False
        )
        first, _ = jax.jit(step)(init(case.outer, case.inner, case.data, jax.random.key(0)), case.data)
        second, _ = jax.jit(step)(first, case.data)
        chex.assert_trees_all_equal(first.inner, second.inner)

    def test_an_unsolved_inner_problem_is_flagged(self):
        case = contract.quadratic(dtype=np.float32)
        statuses = {}
        for steps in (1, 200):
            init, step = bilevel.make_step(
                case.problem, bilevel.first_order(), optax.sgd(case.inner_step), optax.sgd(0.0),
                inner_steps=steps, inner_tol=1e-3,
            )  # fmt: skip
            _, info = step(init(case.outer, case.inner, case.data, jax.random.key(0)), case.data)
            statuses[steps] = int(info.status)
            assert (info.metrics["inner_error"] > 1e-3) == (steps == 1)
        assert statuses == {1: 1, 200: 0}

    def test_a_singular_hessian_is_told(self):
        """y2 is free: the adjoint system has no solution; a ridge or MINRES give one."""
        problem = bilevel.problem(
            lambda x, y, batch: 0.5 * (y[0] - x) ** 2, lambda x, y, batch: 0.5 * jnp.sum((y - 1) ** 2)
        )
        statuses = []
        for options in ({}, {"ridge": 1e-3}):
            init, step = bilevel.make_step(
                problem, bilevel.implicit_gradient(**options), optax.sgd(0.5), optax.sgd(0.1), inner_steps=3
            )
            state, info = step(init(0.0, jnp.zeros(2), bilevel.Data(), jax.random.key(0)), bilevel.Data())
            assert jnp.isfinite(state.outer)
            statuses.append(int(info.status))
        assert statuses == [2, 0]


class TestBadInput:
    def test_messages(self):
        loss = lambda x, y, batch: jnp.sum(y - x)  # noqa: E731
        fine = bilevel.problem(loss, loss)
        sgd = optax.sgd(0.1)

        def first(problem=fine, x=1.0, y=1.0, data=bilevel.Data()):  # noqa: B008
            init, step = bilevel.soba(problem, sgd, sgd)
            return step(init(x, y, data, jax.random.key(0)), data)

        calls = {
            "arguments": lambda: bilevel.problem(lambda x, y: 0.0, loss),
            "a function": lambda: bilevel.problem(None, loss),
            "inner loss must be a scalar": lambda: first(bilevel.problem(lambda x, y, b: y[None] - x, loss)),
            "outer loss must be a scalar": lambda: first(bilevel.problem(loss, lambda x, y, b: y[None] - x)),
            "floating": lambda: first(x=1),
            "floating arrays": lambda: first(y={}),
            "bilevel.Data": lambda: first(data={"inner": 1}),
            "inner_steps": lambda: bilevel.make_step(fine, bilevel.unrolled(), sgd, sgd, inner_steps=0),
            "mode": lambda: bilevel.unrolled(mode="backward"),
            "truncate": lambda: bilevel.unrolled(truncate=0),
            "damping": lambda: bilevel.one_step(damping=0.0),
            "at least 1": lambda: bilevel.minibatches(inner=0),
            "rows": lambda: bilevel.minibatches(inner=1)(
                bilevel.Data({"a": np.ones(2), "b": np.ones(3)}), jax.random.key(0)
            ),
        }
        for message, call in calls.items():
            with pytest.raises(ValueError, match=message):
                call()
