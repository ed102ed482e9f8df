"""Algorithms made for draws of examples: series, momenta, tables and recursions."""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel, linalg
from jaxdiv.bilevel.algorithm import Draws
from jaxdiv.bilevel.joint import directions
from jaxdiv.bilevel.saga import saga, table
from jaxdiv.bilevel.series import hypergradient
from jaxdiv.bilevel.storm import rate_at, storm
from jaxdiv.testing import bilevel as contract


def made(algorithm, outer=0.2, *, series=False, inner_decay=0.0, outer_decay=0.0, **options):
    """Steps 1/L for y and `outer` / L_Φ for x, falling as ``(1 + k / 100) ** -decay``."""

    def make(case, sampler):
        given = options | ({"step_size": case.inner_step} if series else {})
        inner_tx = optax.sgd(lambda k: case.inner_step * (1 + k / 100) ** -inner_decay)
        outer_tx = optax.sgd(lambda k: outer * case.outer_step * (1 + k / 100) ** -outer_decay)
        return algorithm(case.problem, inner_tx, outer_tx, sampler=sampler, **given)

    return staticmethod(make)


class Counted:
    """Beside the contract: what a step reports to have taken.

    Attributes:
        gradients: Gradients of a step.
        products: Products of a step, or a range of them.
    """

    gradients = 2
    products = 1

    def test_counts(self) -> None:
        _, (_, info) = self.short()
        low, high = self.products if isinstance(self.products, tuple) else (self.products, self.products)
        assert info.metrics["gradients"] == self.gradients
        assert low <= info.metrics["products"] <= high


class MaSobaContract(Counted, contract.Contract):
    make = made(bilevel.ma_soba)
    steps, reached = 4000, 1e-13


class FslaContract(Counted, contract.Contract):
    make = made(bilevel.fsla)
    steps, reached = 4000, 1e-13
    gradients, products = 4, 3


class SabaContract(Counted, contract.Contract):
    @staticmethod
    def make(case, sampler):
        size = None if sampler is bilevel.full_batch else 2
        txs = optax.sgd(case.inner_step), optax.sgd(0.2 * case.outer_step)
        return bilevel.saba(case.problem, *txs, inner_size=size, outer_size=size)

    steps, reached = 4000, 1e-13


class SrbaContract(Counted, contract.Contract):
    """Its third step is a recursive one."""

    make = made(bilevel.srba, period=4)
    steps, reached = 4000, 1e-13
    gradients, products = 4, 2


class AmigoContract(Counted, contract.Contract):
    make = made(bilevel.amigo, 0.5)
    steps, reached = 1000, 1.2e-11
    gradients, products = 11, 11


class StocbioContract(Counted, contract.Contract):
    """The bias of a series of ten products."""

    make = made(bilevel.stocbio, 0.5, series=True)
    steps, reached = 1000, 1.2e-2
    gradients, products = 11, 11


class T1T2Contract(Counted, contract.Contract):
    @staticmethod
    def make(case, sampler):
        txs = optax.sgd(case.inner_step), optax.sgd(0.5 * case.outer_step)
        estimator = bilevel.t1_t2(case.inner_step)
        return bilevel.make_step(case.problem, estimator, *txs, inner_steps=10, sampler=sampler)

    steps, reached = 500, 0.5
    gradients, products = 11, 1


class BsaContract(Counted, contract.Contract):
    """The random length of the product is noise on all data too."""

    make = made(bilevel.bsa, series=True, inner_steps=5, outer_decay=0.5)
    steps, reached = 1000, 4e-2
    gradients, products = 6, (1, 10)


class TtsaContract(Counted, contract.Contract):
    make = made(bilevel.ttsa, series=True, inner_decay=0.4, outer_decay=0.6)
    steps, reached = 3000, 3e-2
    gradients, products = 2, (1, 10)


class MrboContract(Counted, contract.Contract):
    """On all data the recursion is exact; the bias of the series remains."""

    make = made(bilevel.mrbo, series=True)
    steps, reached = 1000, 1.2e-2
    gradients, products = 4, 22


class SustainContract(Counted, contract.Contract):
    make = made(bilevel.sustain, series=True, outer_decay=1 / 3)
    steps, reached = 1000, 1.2e-2
    gradients, products = 4, (2, 20)


class VrboContract(Counted, contract.Contract):
    make = made(bilevel.vrbo, 0.5, series=True, period=3, inner_steps=5)
    steps, reached = 500, 1.2e-2
    gradients, products = 24, 132


def small(noise=0.0, size=2, seed=0):
    """The problem in float64, its draws, and a point (x, y, v) away from the solution."""
    case = contract.quadratic(noise=noise, dtype=np.float64)
    sampler = bilevel.minibatches(inner=size, outer=size) if noise else bilevel.full_batch
    case = case._replace(data=jax.tree.map(jnp.asarray, case.data))
    draws = Draws(case.problem, ((), ()), case.data, sampler, jax.random.key(seed))
    rng = np.random.default_rng(1)
    point = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (case.outer, case.inner))
    return case, draws, (*point, jax.tree.map(jnp.sin, point[1]))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(step, steps, state, data):
    return jax.lax.scan(lambda s, _: step(s, data), state, length=steps)


class TestSeries:
    def test_is_the_neumann_series(self):
        """On all data: the sum written out, and the one of linalg."""
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small()
            a = case.inner_step

            @jax.jit
            def both(x, y):
                losses = draws(0)
                f_x, f_y = losses.outer_gradients(x, y)[1]
                g_y, product = losses.inner_products(x, y)
                v, _ = linalg.solve(
                    lambda u: product(u)[0], f_y, symmetric=True, method="neumann", step_size=a, max_steps=5
                )
                found = hypergradient(draws, 0, x, y, terms=5, step_size=a)
                return f_y, v, (optax.tree.sub(f_x, product(v)[1]), g_y), (found.direction, found.inner)

            f_y, v, expected, found = both(x, y)
            chex.assert_trees_all_close(found, expected, rtol=1e-12)
            hessian = np.asarray(case.data.inner["hessian"]).mean(0)
            powers = sum(np.linalg.matrix_power(np.eye(8) - a * hessian, k) for k in range(6))
            np.testing.assert_allclose(flat(v), a * powers @ flat(f_y), rtol=1e-12)

    def test_each_factor_has_its_draw(self):
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small(noise=0.3)
            a = case.inner_step

            @jax.jit
            def both(x, y):
                hessians = [jnp.mean(draws(i).batch.inner["hessian"], 0) for i in (4, 5)]
                f_x, f_y = draws(3).outer_gradients(x, y)[1]
                u, back = jax.flatten_util.ravel_pytree(f_y)
                once, twice = (u - a * hessian @ u for hessian in hessians)
                v = a * (u + once + once - a * hessians[1] @ once)
                expected = optax.tree.sub(f_x, draws(3).inner_products(x, y)[1](back(v))[1])
                return hypergradient(draws, 3, x, y, terms=2, step_size=a).direction, expected, once - twice

            found, expected, gap = both(x, y)
            chex.assert_trees_all_close(found, expected, rtol=1e-12)
            assert np.linalg.norm(gap) > 1e-2

    def test_randomized_is_unbiased(self):
        """The mean over p = 0, …, Q − 1 is the series of Q terms, and p takes those values alike."""
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small()
            a = case.inner_step

            @jax.jit
            def both(keys):
                def one(key):
                    drawn = draws._replace(key=key)
                    found = hypergradient(drawn, 0, x, y, terms=4, step_size=a, randomized=True)
                    return found.products - 1, found.direction

                return jax.lax.map(one, keys), hypergradient(draws, 0, x, y, terms=3, step_size=a).direction

            (p, found), expected = both(jax.random.split(jax.random.key(0), 200))
            np.testing.assert_array_less(30, np.bincount(p, minlength=4))
            assert max(p) == 3
            chosen = np.asarray([np.argmax(p == k) for k in range(4)])
            mean = jax.tree.map(lambda leaf: leaf[chosen].mean(0), found)
            chex.assert_trees_all_close(mean, expected, rtol=1e-12)

    def test_is_the_derivative_of_the_last_steps(self):
        """At y*(x): K products are K + 1 unrolled steps of the same size."""
        with jax.enable_x64(True):
            case, _, (x, _, _) = small()
            ends = []
            for estimator in (
                bilevel.neumann(terms=3, step_size=case.inner_step),
                bilevel.unrolled(truncate=4),
            ):
                init, step = bilevel.make_step(
                    case.problem, estimator, optax.sgd(case.inner_step), optax.sgd(1.0), inner_steps=4
                )
                state = init(x, case.solution(x), case.data, jax.random.key(0))
                ends.append(jax.jit(step)(state, case.data)[0].outer)
            chex.assert_trees_all_close(*ends, rtol=1e-10)


class TestLimits:
    def test_amigo_with_the_solved_system_is_implicit(self):
        with jax.enable_x64(True):
            case, _, (x, y, _) = small()
            txs = optax.sgd(case.inner_step), optax.sgd(1.0)
            exact = bilevel.implicit_gradient(rtol=1e-14)
            ends = []
            for init, step in (
                bilevel.amigo(case.problem, *txs, inner_steps=3, adjoint_steps=300),
                bilevel.make_step(case.problem, exact, *txs, inner_steps=3),
            ):
                state = init(x, y, case.data, jax.random.key(0))
                ends.append(jax.jit(step)(state, case.data)[0].outer)
            chex.assert_trees_all_close(*ends, rtol=1e-10)

    def test_soba_on_all_data(self):
        """An average of one, recursions and tables without noise."""
        with jax.enable_x64(True):
            case, _, (x, y, _) = small()
            txs = optax.sgd(case.inner_step), optax.sgd(0.2 * case.outer_step)
            ends = []
            for make in (
                bilevel.soba,
                functools.partial(bilevel.ma_soba, rate=1.0),
                functools.partial(bilevel.srba, period=4),
                bilevel.saba,
            ):
                init, step = make(case.problem, *txs)
                ends.append(run(step, 7, init(x, y, case.data, jax.random.key(0)), case.data)[0].outer)
            for end in ends[1:]:
                chex.assert_trees_all_close(end, ends[0], rtol=1e-12)

    def test_recursive_momentum_on_all_data_is_plain(self):
        """Any rate gives the trajectory of rate 1."""
        with jax.enable_x64(True):
            case, _, (x, y, _) = small()
            a = case.inner_step

            @jax.jit
            def end(rate):
                txs = optax.sgd(a), optax.sgd(0.2 * case.outer_step)
                init, step = bilevel.mrbo(case.problem, *txs, step_size=a, terms=2, rate=rate)
                return run(step, 7, init(x, y, case.data, jax.random.key(0)), case.data)[0].outer

            chex.assert_trees_all_close(end(1.0), end(0.2), rtol=1e-12)


class TestRecursions:
    def test_storm(self):
        """By hand: 5 + 0.75 (1 − 3) and the two ends."""
        last, new, old = (jnp.asarray(value) for value in (1.0, 5.0, 3.0))
        assert storm(last, new, old, 0.25) == 3.5
        assert storm(last, new, old, 1.0) == new
        assert storm(last, new, old, 0.0) == last + new - old

    def test_the_first_direction_is_plain(self):
        assert rate_at(0.3, jnp.asarray(0)) == 1
        chex.assert_trees_all_close(rate_at(lambda k: 1 / (1 + k), jnp.asarray(3)), 0.25)

    def test_srba_restarts_on_all_data(self):
        """Draws of two in between; the fourth step has the exact directions again."""
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small(noise=0.3)
            txs = optax.sgd(case.inner_step), optax.sgd(0.2 * case.outer_step)
            init, step = bilevel.srba(case.problem, *txs, period=3, sampler=draws.sampler)
            step = jax.jit(step)
            state = init(x, y, case.data, jax.random.key(0))
            exact = jax.jit(lambda *point: directions(draws.on(case.data, draws.key), *point)[1])
            errors, restarts = [], []
            for _ in range(4):
                point = state.outer, state.inner, state.extra.joint.adjoint
                state, info = step(state, case.data)
                gap = optax.tree.sub(state.extra.directions, exact(*point))
                errors.append(float(optax.tree.norm(gap)))
                restarts.append(bool(info.metrics["restart"]))
            assert restarts == [True, False, False, True]
            assert errors[0] < 1e-12 > errors[3]
            assert min(errors[1:3]) > 1e-4

    def test_vrbo_directions_belong_to_the_end(self):
        """On all data, two steps after the restart they are those at (x, y): moves of x and of y are in them."""
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small()
            a = case.inner_step
            txs = optax.sgd(a), optax.sgd(0.2 * case.outer_step)
            init, step = bilevel.vrbo(case.problem, *txs, step_size=a, period=9, inner_steps=2, terms=2)
            state, info = run(step, 2, init(x, y, case.data, jax.random.key(0)), case.data)
            found = hypergradient(draws, 0, state.outer, state.inner, terms=2, step_size=a)
            chex.assert_trees_all_close(state.extra.directions, (found.inner, found.direction), rtol=1e-10)
            assert info.metrics["restart"].tolist() == [True, False]
            assert info.metrics["gradients"].tolist() == [14, 12]
            assert info.metrics["products"].tolist() == [21, 18]

    def test_the_inner_loop_sees_the_projected_outer_variable(self):
        """y* = x, and x stops at 1."""
        problem = bilevel.problem(
            lambda x, y, batch: jnp.sum((y - x) ** 2),
            lambda x, y, batch: jnp.sum((y - 3.0) ** 2),
            project=lambda x, y: (jnp.clip(x, 0.0, 1.0), y),
        )
        init, step = bilevel.vrbo(problem, optax.sgd(0.4), optax.sgd(0.1), step_size=0.4, period=4, terms=2)
        state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        state, _ = run(step, 10, state, bilevel.Data())
        chex.assert_trees_all_close((state.outer, state.inner), (jnp.ones(2), jnp.ones(2)), rtol=1e-5)


class TestTables:
    def test_saga(self):
        """By hand, two blocks: 4 after 6 on the first and 2 on the second."""
        memory = table(2, jnp.zeros(()))
        first, memory = saga(memory, jnp.asarray(0), jnp.asarray(6.0))
        second, memory = saga(memory, jnp.asarray(1), jnp.asarray(2.0))
        third, memory = saga(memory, jnp.asarray(0), jnp.asarray(4.0))
        assert (first, second, third) == (6, 5, 2)
        assert memory.mean == 3
        assert memory.rows.tolist() == [4, 2]

    def test_tables_hold_the_mean_after_a_pass(self):
        """Variables at rest: once all blocks were seen the direction is that of all data."""
        with jax.enable_x64(True):
            case, draws, (x, y, _) = small(noise=0.3)
            rest = optax.sgd(0.0)
            init, step = bilevel.saba(case.problem, rest, rest, inner_size=4, outer_size=8)
            state = init(x, y, case.data, jax.random.key(0))
            v = case.solution(x)
            state = state._replace(extra=state.extra._replace(joint=state.extra.joint._replace(adjoint=v)))
            state, info = run(step, 40, state, case.data)
            losses = draws.on(case.data, draws.key)
            gradient, product = losses.inner_products(x, y)
            chex.assert_trees_all_close(state.extra.inner.mean, (gradient, *product(v)), rtol=1e-12)
            chex.assert_trees_all_close(state.extra.outer.mean, losses.outer_gradients(x, y)[1], rtol=1e-12)
            exact = optax.tree.norm(directions(losses, x, y, v)[1].outer)
            chex.assert_trees_all_close(info.metrics["hypergradient"][-1], exact, rtol=1e-12)
            for rows in jax.tree.leaves(state.extra.inner.rows[:2]):
                assert np.min(np.ptp(rows, 0)) > 1e-2

    def test_constant_steps_converge_with_reduced_variance_only(self):
        """Blocks of two of sixteen: SABA and SRBA pass 1e-6 where SOBA stays above 1e-3."""
        with jax.enable_x64(True):
            case, draws, _ = small(noise=0.3)
            txs = optax.sgd(0.5 * case.inner_step), optax.sgd(0.05 * case.outer_step)
            reached = {}
            for name, options in (
                ("soba", {"sampler": draws.sampler}),
                ("srba", {"sampler": draws.sampler, "period": 16}),
                ("saba", {"inner_size": 2, "outer_size": 2}),
            ):
                init, step = getattr(bilevel, name)(case.problem, *txs, **options)

                @jax.jit
                def end(state, data, step=step):
                    return jax.lax.fori_loop(0, 6000, lambda _, s: step(s, data)[0], state)

                state = end(init(case.outer, case.inner, case.data, jax.random.key(0)), case.data)
                ends, begins = (optax.tree.norm(case.hypergradient(x)) for x in (state.outer, case.outer))
                reached[name] = float(ends / begins)
            assert reached["saba"] < 1e-6 > reached["srba"]
            assert reached["soba"] > 1e-3


class TestArguments:
    def test_options_are_traced_and_differentiable(self):
        with jax.enable_x64(True):
            case, _, (x, y, _) = small()

            def loss(options):
                txs = optax.sgd(case.inner_step), optax.sgd(case.outer_step)
                init, step = bilevel.mrbo(case.problem, *txs, terms=2, **options)
                state = init(x, y, case.data, jax.random.key(0))
                # As if a step had been taken along directions of zero.
                state = state._replace(step=jnp.ones((), jnp.int32))
                return optax.tree.norm(step(state, case.data)[0].outer)

            options = {"step_size": jnp.asarray(0.1), "rate": jnp.asarray(0.4)}
            value, slopes = jax.jit(jax.value_and_grad(loss))(options)
            assert np.isfinite(value)
            for slope in slopes.values():
                assert np.isfinite(slope)
                assert slope != 0

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("stocbio", {"step_size": 0.1, "terms": -1}, "terms must lie in"),
            ("bsa", {"step_size": 0.1, "terms": 0}, "terms must lie in"),
            ("sustain", {"step_size": 0.0}, "step_size must lie in"),
            ("amigo", {"adjoint_steps": 0}, "adjoint_steps must lie in"),
            ("srba", {"period": 0}, "period must lie in"),
            ("vrbo", {"step_size": 0.1, "period": 0}, "period must lie in"),
            ("ma_soba", {"rate": 0.0}, "rate must lie in"),
        ],
    )
    def test_ranges(self, name, options, message):
        case = contract.quadratic(dtype=np.float32)
        with pytest.raises(ValueError, match=message):
            getattr(bilevel, name)(case.problem, optax.sgd(0.1), optax.sgd(0.1), **options)

    def test_blocks_must_be_equal(self):
        case = contract.quadratic(dtype=np.float32)
        init, _ = bilevel.saba(case.problem, optax.sgd(0.1), optax.sgd(0.1), inner_size=3)
        with pytest.raises(ValueError, match="inner_size must divide the number of examples, 16; got 3"):
            init(case.outer, case.inner, case.data, jax.random.key(0))
