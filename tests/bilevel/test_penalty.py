"""Algorithms of the penalty family, which take gradients alone, on problems in closed form."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.flatten_util import ravel_pytree

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract

DATA = bilevel.Data()


class F2saContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.f2sa(
            case.problem,
            optax.sgd(1 / (1 / case.inner_step + 1)),
            optax.sgd(0.3 * case.outer_step),
            inner_steps=5,
            sampler=sampler,
        )
    )
    steps, reached = 4000, 1.4e-2

    def test_bias_falls_as_the_penalty_grows(self):
        with jax.enable_x64(True):
            case, run = self.runner(dtype=np.float64)
            first, later = (
                optax.tree.norm(case.hypergradient(run(*start(case), steps)[0].outer))
                for steps in (self.steps, 20000)
            )
            # 5^(1/3) = 1.71 times the penalty.
            np.testing.assert_allclose(first / later, 5 ** (1 / 3), rtol=0.02)
            assert later <= 8.1e-3 * optax.tree.norm(case.hypergradient(case.outer))


class F3saContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.f3sa(
            case.problem,
            optax.sgd(1 / (1 / case.inner_step + 1)),
            optax.sgd(0.1 * case.outer_step),
            sampler=sampler,
        )
    )
    steps, reached = 4000, 1.4e-2


def pbgd(case, sampler=bilevel.full_batch, penalty=10.0):
    curvature = penalty * (1 / case.inner_step + case.coupling) + 1
    txs = optax.sgd(case.inner_step), optax.sgd(1 / (1.5 * curvature))
    return bilevel.pbgd(case.problem, *txs, penalty=penalty, inner_steps=5, sampler=sampler)


class PbgdContract(contract.Contract):
    make = staticmethod(pbgd)
    steps, reached = 20000, 2.1e-2


class BomeContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.bome(
            case.problem, optax.sgd(case.inner_step), optax.sgd(0.02), sampler=sampler
        )
    )
    steps, reached = 4000, 6e-2

    def test_with_the_value_as_barrier(self):
        with jax.enable_x64(True):
            case = contract.quadratic()
            txs = optax.sgd(case.inner_step), optax.sgd(0.02)
            algorithm = bilevel.bome(case.problem, *txs, barrier="value")
            end = jax.jit(lambda: scanned(algorithm, case, 4000, case.data).outer)()
            first = optax.tree.norm(case.hypergradient(case.outer))
            assert optax.tree.norm(case.hypergradient(end)) <= 4.5e-2 * first


class MehaContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.meha(
            case.problem, optax.sgd(1 / (1 / case.inner_step + 0.1)), optax.sgd(0.1), sampler=sampler
        )
    )
    steps, reached = 20000, 3e-3


def start(case):
    return case.outer, case.inner, jax.random.key(0), case.data


def scanned(algorithm, case, steps, data=None):
    data = DATA if data is None else data
    init, step = algorithm
    state = init(case.outer, case.inner, data, jax.random.key(0))
    return jax.lax.fori_loop(0, steps, lambda _, state: step(state, data)[0], state)


def losses_of(problem, data=DATA, seed=0):
    return bilevel.Losses(problem, ((), ()), data, jax.random.key(seed))


def minimizer(loss, start):
    """Of a quadratic: one Newton step."""
    flat, tree = ravel_pytree(start)

    def of_flat(y):
        return loss(tree(y))

    return tree(flat - jnp.linalg.solve(jax.hessian(of_flat)(flat), jax.grad(of_flat)(flat)))


@pytest.mark.paper(88)
class TestPenaltyFunction(chex.TestCase):
    SIGMAS = (1e-1, 1e-2, 1e-3, 1e-4)

    def errors(self, seed, central):
        """Of value and gradient against Φ in closed form, for each sigma."""
        case = contract.quadratic(seed)
        losses, x = losses_of(case.problem, case.data), case.outer
        exact = losses.outer(x, case.solution(x)), case.hypergradient(x)

        def of(sigma):
            def penalized(s):
                return minimizer(lambda y: s * losses.outer(x, y) + losses.inner(x, y), case.inner)

            at = x, penalized(sigma), penalized(-sigma if central else 0.0), sigma
            value = bilevel.penalty_value(losses, *at, central=central)
            gradient = bilevel.penalty_hypergradient(losses, *at, central=central)
            return abs(value - exact[0]), optax.tree.norm(optax.tree.sub(gradient, exact[1]))

        return jax.jit(jax.vmap(of))(jnp.asarray(self.SIGMAS))

    @parameterized.parameters(0, 1, 2)
    def test_error_is_of_first_order(self, seed):
        with jax.enable_x64(True):
            for error in self.errors(seed, False):
                slopes = np.diff(np.log10(error)) / np.diff(np.log10(self.SIGMAS))
                np.testing.assert_allclose(slopes, 1, atol=0.1)

    def test_error_of_the_central_quotient_is_of_second_order(self):
        with jax.enable_x64(True):
            for error in self.errors(0, True):
                # Below 1e-3 rounding of G over sigma takes over.
                slopes = np.diff(np.log10(error[:3])) / np.diff(np.log10(self.SIGMAS[:3]))
                np.testing.assert_allclose(slopes, 2, atol=0.1)

    def test_is_the_derivative_of_the_value(self):
        """Danskin: the solutions count as constants, though they move with x."""
        with jax.enable_x64(True):
            case = contract.quadratic()
            losses = losses_of(case.problem, case.data)

            def solved(x):
                y = minimizer(lambda y: 0.1 * losses.outer(x, y) + losses.inner(x, y), case.inner)
                return y, minimizer(lambda y: losses.inner(x, y), case.inner)

            @jax.jit
            def both(x):
                through = jax.grad(lambda x: bilevel.penalty_value(losses, x, *solved(x), 0.1))(x)
                return through, bilevel.penalty_hypergradient(losses, x, *solved(x), 0.1)

            chex.assert_trees_all_close(*both(case.outer), rtol=1e-9)

    def test_degenerate(self):
        """At y_σ = ((x + σ)/(1 + σ), x) the gradient is (x − 1)/(1 + σ), whatever second entry z has."""
        case = contract.degenerate(np.float32)
        losses, x = losses_of(case.problem), jnp.float32(-1.0)
        for sigma in (0.5, 0.25):
            y = jnp.stack([(x + sigma) / (1 + sigma), x])
            got = bilevel.penalty_hypergradient(losses, x, y, jnp.stack([x, 7.0]), sigma)
            np.testing.assert_allclose(got, (x - 1) / (1 + sigma), rtol=1e-5)

    def test_no_outer_loss(self):
        """F = 0 gives exactly 0: y and z go the same way."""
        case = contract.quadratic(dtype=np.float32)
        problem = bilevel.problem(
            lambda x, y, batch: case.problem.inner.apply((x, y), (), batch, None)[0],
            lambda x, y, batch: jnp.zeros(()),
        )
        algorithm = bilevel.f2sa(problem, optax.sgd(0.1, momentum=0.5), optax.sgd(0.1), prox_rho=2.0)
        state = jax.jit(lambda: scanned(algorithm, case, 5, case.data))()
        chex.assert_trees_all_equal(state.outer, case.outer)
        chex.assert_trees_all_equal(state.inner, state.extra.z)

    def test_both_gradients_of_the_inner_loss_share_their_noise(self):
        problem = bilevel.problem(
            lambda x, y, batch, key: y * jax.random.normal(key) + x * jnp.sin(y + jax.random.normal(key)),
            lambda x, y, batch: 0.0 * y,
        )
        assert bilevel.penalty_hypergradient(losses_of(problem), 1.0, 0.3, 0.3, 1e-6) == 0
        assert bilevel.penalty_value(losses_of(problem), 1.0, 0.3, 0.3, 1e-6) == 0

    def test_bad_sigma(self):
        for f in (bilevel.penalty_value, bilevel.penalty_hypergradient):
            with pytest.raises(ValueError, match="sigma"):
                f(losses_of(contract.degenerate(np.float32).problem), 0.0, jnp.zeros(2), jnp.zeros(2), 0.0)


@pytest.mark.paper(88)
class TestF2sa(chex.TestCase):
    def test_one_step_by_hand(self):
        """Prox, averaging and projections, on F = ½(y − 3)² + xy, G = ½(y − x)²."""
        problem = bilevel.problem(
            lambda x, y, batch: 0.5 * (y - x) ** 2,
            lambda x, y, batch: 0.5 * (y - 3) ** 2 + x * y,
            project=lambda x, y: (jnp.clip(x, -1, 0.9), jnp.clip(y, -9, 0.3)),
        )
        tau, alpha, lam, rho, beta, x, y = 0.5, 0.4, 4.0, 2.0, 0.75, 0.8, -0.5
        init, step = bilevel.f2sa(
            problem, optax.sgd(tau), optax.sgd(alpha), penalty=lam, inner_steps=2, prox_rho=rho, beta=beta
        )
        state, info = step(init(x, y, DATA, jax.random.key(0)), DATA)
        u = w = y
        for _ in range(2):
            u = min(u - tau * ((u - 3 + x) / lam + u - x + (u - y) / rho), 0.3)
            w = min(w - tau * (w - x + (w - y) / rho), 0.3)
        new, z = ((1 - beta) * y + beta * end for end in (u, w))
        gradient = new + lam * ((x - new) - (x - z))
        np.testing.assert_allclose(state.inner, new, rtol=1e-6)
        np.testing.assert_allclose(state.extra.z, z, rtol=1e-6)
        np.testing.assert_allclose(state.outer, min(x - alpha * gradient, 0.9), rtol=1e-5)
        np.testing.assert_allclose(info.metrics["hypergradient"], abs(gradient), rtol=1e-5)

    def test_degenerate(self):
        """The best of all inner minimizers; the inverse of H plus a ridge ends at (1 + 3) / 2."""
        case = contract.degenerate(np.float32)
        txs = optax.sgd(0.5), optax.sgd(0.1)
        penalized = bilevel.f2sa(case.problem, *txs, penalty=10.0, prox_rho=10.0, inner_steps=20)
        ridge = bilevel.make_step(
            case.problem, bilevel.implicit_gradient(method="cholesky", ridge=1e-3), *txs, inner_steps=20
        )
        best, other = jax.jit(lambda: (scanned(penalized, case, 300), scanned(ridge, case, 300)))()
        np.testing.assert_allclose(best.outer, case.solution[0], rtol=1e-3)
        np.testing.assert_allclose(best.inner, case.solution[1], rtol=1e-3)
        np.testing.assert_allclose(other.outer, 2.0, rtol=1e-2)


@pytest.mark.paper(88)
class TestF3sa(chex.TestCase):
    def test_on_all_data_every_rate_is_the_plain_gradient(self):
        case = contract.quadratic(dtype=np.float32)

        def end(rate):
            algorithm = bilevel.f3sa(case.problem, optax.sgd(0.2), optax.sgd(0.01), rate=rate)
            return scanned(algorithm, case, 10, case.data).outer

        ends = jax.jit(jax.vmap(end))(jnp.asarray([1.0, 0.1]))
        chex.assert_trees_all_close(*(jax.tree.map(lambda x, i=i: x[i], ends) for i in (0, 1)), rtol=1e-4)

    def test_recursion_reduces_the_noise(self):
        """With fixed variables the direction is the mean of all draws, with rate 1 the last one's."""
        case = contract.quadratic(noise=0.3, dtype=np.float32)
        sampler = bilevel.minibatches(inner=2, outer=2)
        data, still = jax.tree.map(jnp.asarray, case.data), optax.sgd(0.0)

        def error(seed, recursive):
            rate = (lambda step: 1 / (step + 1)) if recursive else 1.0
            init, step = bilevel.f3sa(case.problem, still, still, penalty=1.0, rate=rate, sampler=sampler)
            state = init(case.outer, case.inner, data, jax.random.key(seed))
            state = jax.lax.fori_loop(0, 100, lambda _, state: step(state, data)[0], state)
            exact = losses_of(case.problem, data).inner_gradient(case.outer, case.inner)
            return optax.tree.norm(optax.tree.sub(state.extra.directions[1], exact), squared=True)

        means = [
            jnp.mean(jax.jit(jax.vmap(partial(error, recursive=r)))(jnp.arange(20))) for r in (True, False)
        ]
        assert 50 < means[1] / means[0] < 200, means


class TestPbgd(chex.TestCase):
    def test_bias_falls_as_the_penalty_grows(self):
        """At 1, 10 and 100."""
        with jax.enable_x64(True):
            case = contract.quadratic()

            def end(penalty):
                state = scanned(pbgd(case, penalty=penalty), case, 20000, case.data)
                return optax.tree.norm(case.hypergradient(state.outer))

            ends = jax.jit(jax.vmap(end))(jnp.asarray([1.0, 10.0, 100.0]))
            relative = ends / optax.tree.norm(case.hypergradient(case.outer))
            assert np.all(relative < np.array([0.15, 2.1e-2, 2.4e-3])), relative
            assert np.all(ends[:-1] / ends[1:] > 5), relative


class TestBome(chex.TestCase):
    @parameterized.parameters("gradient", "value")
    def test_direction_is_the_nearest_that_decreases_the_gap(self, barrier):
        case = contract.quadratic(dtype=np.float32)
        still = optax.sgd(1.0)
        init, step = bilevel.bome(
            case.problem, optax.sgd(case.inner_step), still, barrier=barrier, inner_steps=3
        )

        @jax.jit
        def one():
            state, info = step(init(case.outer, case.inner, case.data, jax.random.key(0)), case.data)
            z = case.inner
            losses = losses_of(case.problem, case.data)
            for _ in range(3):
                z = optax.tree.add_scale(z, -case.inner_step, losses.inner_gradient(case.outer, z))
            q, dq = jax.value_and_grad(lambda x, y: losses.inner(x, y) - losses.inner(x, z), (0, 1))(
                case.outer, case.inner
            )
            moved = optax.tree.sub((case.outer, case.inner), (state.outer, state.inner))
            return info.metrics["penalty"], moved, losses.outer_gradients(case.outer, case.inner)[1], q, dq

        penalty, moved, df, q, dq = one()
        phi = 0.5 * (q if barrier == "value" else optax.tree.norm(dq, squared=True))
        assert penalty > 0
        np.testing.assert_allclose(optax.tree.vdot(moved, dq), phi, rtol=1e-4)
        chex.assert_trees_all_close(moved, optax.tree.add_scale(df, penalty, dq), rtol=1e-4, atol=1e-5)

    def test_without_gap_it_is_plain_descent(self):
        problem = bilevel.problem(lambda x, y, batch: 0.0 * y, lambda x, y, batch: 0.5 * (x + y) ** 2)
        init, step = bilevel.bome(problem, optax.sgd(0.1), optax.sgd(0.1))
        state, info = step(init(1.0, 2.0, DATA, jax.random.key(0)), DATA)
        assert info.metrics["penalty"] == 0
        np.testing.assert_allclose((state.outer, state.inner), (0.7, 1.7), rtol=1e-6)


FAMILY = {
    "f2sa": partial(bilevel.f2sa, inner_steps=1),
    "f3sa": bilevel.f3sa,
    "pbgd": partial(bilevel.pbgd, inner_steps=1),
    "bome": partial(bilevel.bome, inner_steps=1),
    "meha": bilevel.meha,
    "lv_hba": partial(bilevel.lv_hba, extragradient=True),
}


class TestFamily(chex.TestCase):
    @parameterized.parameters(*FAMILY)
    def test_gradients_are_counted(self, name):
        """The backward passes of one step, of both losses."""
        passes = []

        @jax.custom_vjp
        def counted(value):
            return value

        def backward(_, cotangent):
            passes.append(1)
            return (cotangent,)

        counted.defvjp(lambda value: (value, None), backward)
        problem = bilevel.problem(
            lambda x, y, batch: counted((y - x) ** 2), lambda x, y, batch: counted((y - 1) ** 2)
        )
        init, step = FAMILY[name](problem, optax.sgd(0.1), optax.sgd(0.1))
        state = init(0.0, 0.0, DATA, jax.random.key(0))
        passes.clear()
        _, info = step(state, DATA)
        assert info.metrics["gradients"] == len(passes)
        assert info.metrics["products"] == 0

    @parameterized.product(name=tuple(FAMILY), dtype=(jnp.bfloat16, jnp.float32))
    def test_dtypes_stay(self, name, dtype):
        """Adam's states and every memory, though the schedules are float32."""
        case = contract.quadratic(dtype=dtype)
        init, step = FAMILY[name](case.problem, optax.adam(0.1), optax.adam(0.1))
        first = jax.eval_shape(init, case.outer, case.inner, case.data, jax.random.key(0))
        second = jax.eval_shape(step, first, case.data)[0]
        chex.assert_trees_all_equal_shapes_and_dtypes(first, second)

    @parameterized.parameters(*FAMILY)
    def test_states_hold_no_buffer_twice(self, name):
        """A state that does cannot be donated."""
        case = contract.quadratic(dtype=np.float32)
        init, _ = FAMILY[name](case.problem, optax.sgd(0.1), optax.sgd(0.1))
        state = init(case.outer, case.inner, case.data, jax.random.key(0))
        leaves = [leaf for leaf in jax.tree.leaves(state._replace(key=None)) if leaf.size]
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)

    def test_projections(self):
        """z stays in Y, by the problem's own projection or by `project_inner`, which goes first."""
        problem = bilevel.problem(
            lambda x, y, batch: (y - 3) ** 2,
            lambda x, y, batch: y**2,
            project=lambda x, y: (x, jnp.clip(y, -1, 1)),
        )
        for name, algorithm in FAMILY.items():
            for options, end in (({}, 1.0), ({"project_inner": lambda y: jnp.clip(y, -1, 0.5)}, 0.5)):
                init, step = algorithm(problem, optax.sgd(0.4), optax.sgd(0.0), **options)
                state, info = step(init(0.0, 0.0, DATA, jax.random.key(0)), DATA)
                if name == "bome":
                    np.testing.assert_allclose(info.metrics["gap"], 9 - (end - 3) ** 2)
                else:
                    saddle = name in ("meha", "lv_hba")
                    assert (state.extra.saddle[0] if saddle else state.extra.z) == end

    def test_bad_options(self):
        problem, txs = contract.degenerate(np.float32).problem, (optax.sgd(0.1), optax.sgd(0.1))
        for name, algorithm in FAMILY.items():
            if name != "bome":
                with pytest.raises(ValueError, match="penalty"):
                    algorithm(problem, *txs, penalty=0.0)
            if name != "f3sa":
                with pytest.raises(ValueError, match="inner_steps"):
                    algorithm(problem, *txs, inner_steps=0)
        with pytest.raises(ValueError, match="prox_rho"):
            bilevel.f2sa(problem, *txs, prox_rho=-1.0)
        with pytest.raises(ValueError, match="rate"):
            bilevel.f3sa(problem, *txs, rate=1.5)
        with pytest.raises(ValueError, match="barrier"):
            bilevel.bome(problem, *txs, barrier="norm")
        with pytest.raises(ValueError, match="lv_hba"):
            bilevel.meha(contract.coupled(np.float32).problem, *txs)

    def test_order_of_biases(self):
        """Exact < penalty < one term of the Neumann series < no response at all."""
        with jax.enable_x64(True):
            case = contract.quadratic()
            inner, outer = optax.sgd(case.inner_step), optax.sgd(0.2 * case.outer_step)
            by_loops = partial(
                bilevel.make_step, case.problem, inner_tx=inner, outer_tx=outer, inner_steps=10
            )
            algorithms = [
                (bilevel.soba(case.problem, inner, outer), 4000),
                (pbgd(case), 20000),
                (by_loops(bilevel.t1_t2(case.inner_step)), 1000),
                (by_loops(bilevel.first_order()), 1000),
            ]

            @jax.jit
            def reached():
                ends = [scanned(algorithm, case, steps, case.data).outer for algorithm, steps in algorithms]
                norms = [optax.tree.norm(case.hypergradient(x)) for x in (*ends, case.outer)]
                return jnp.stack(norms[:-1]) / norms[-1]

            exact, penalized, short, alternating = reached()
            assert exact < 1e-12 < 1e-3 < penalized < 0.05 < short < 0.4 < alternating, reached()
