"""MAID and the error bound it rests on, against exact hypergradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel
from jaxdiv.core import Status
from jaxdiv.testing import bilevel as contract

DATA = bilevel.Data()


class MaidContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.maid(
            case.problem,
            optax.sgd(case.inner_step, momentum=0.3, nesterov=True),
            strong_convexity=1.0,
            constants=bilevel.Constants(case.coupling, 0.0, 0.0, 0.0),
            backtrack=0.5,
        )
    )
    steps, reached = 60, 1e-3

    def test_draws(self) -> None:
        """It draws nothing: with given constants all keys give one run."""
        case, run = self.runner()
        ends = [run(case.outer, case.inner, jax.random.key(k), case.data, 3)[0] for k in (0, 1)]
        chex.assert_trees_all_equal(*((state.outer, state.inner) for state in ends))


def curve(parameters):
    """One number each, every term of the bound switched by a parameter; x is small, μ = 1 + k x."""
    k, m, b, a, l, c = parameters  # noqa: E741
    return bilevel.problem(
        lambda x, y, batch: 0.5 * (1 + k * x) * y**2 + m * y**4 / 12 - b * x * y,
        lambda x, y, batch: a * y + 0.5 * l * y**2 + c * x * y,
    )


@functools.cache
def on_curve():
    @jax.jit
    def both(parameters, constants, x, y, delta):
        """The error of z and its bound."""
        k, m, b, a, l, c = parameters  # noqa: E741
        losses = bilevel.Losses(curve(parameters), ((), ()), DATA, jax.random.key(0))
        certified = bilevel.inexact_hypergradient(
            strong_convexity=lambda x: 1 + k * x, outer_lipschitz=l, constants=bilevel.Constants(*constants)
        )
        out = certified.estimate(losses, x, y, delta, certified.init(x, y, jax.random.key(0)))

        def newton(_, y):
            return y - ((1 + k * x) * y + m * y**3 / 3 - b * x) / (1 + k * x + m * y**2)

        s = jax.lax.fori_loop(0, 50, newton, x)
        exact = c * s - (k * s - b) * (a + l * s + c * x) / (1 + k * x + m * s**2)
        return jnp.abs(out.hypergradient - exact), out.error_bound

    return both


INVERSE_LIPSCHITZ = 9 / (8 * np.sqrt(3))  # of 1 / (1 + y²), at 1 / √3


@pytest.mark.paper(45)
class TestBound(chex.TestCase):
    def test_each_term_is_attained(self):
        """Alone, each constant's term is the error itself; that of H⁻¹ but for the slack of e = ‖∂G/∂y‖ / μ."""
        cases = {
            "L_F": ((0, 0, 1, 3, 2, 0), (1, 0, 0, 0), 1.0, 1.1, 1e-9, 0.999),
            "L_X": ((0, 0, 0, 0, 0, 2), (0, 0, 0, 2), 0.0, 0.1, 1e-9, 0.999),
            "L_J": ((1, 0, 0, 3, 0, 0), (0.1, 1, 0, 0), 0.0, 0.1, 1e-9, 0.999),
            "delta": ((0, 0, 1, 3, 0, 0), (1, 0, 0, 0), 1.0, 1.0, 4.0, 0.999),
            "L_I": ((0, 1, 1, 3, 0, 0), (1, 0, INVERSE_LIPSCHITZ, 0), 0.6415, 0.58, 1e-9, 0.7),
        }
        with jax.enable_x64(True):
            for name, (parameters, constants, x, y, delta, slack) in cases.items():
                floats = (tuple(map(float, numbers)) for numbers in (parameters, constants))
                error, bound = on_curve()(*floats, x, y, delta)
                assert slack * bound <= error <= bound * (1 + 1e-9), f"{name}: {error} of {bound}"

    def test_all_terms(self):
        """Together, at random points, far and near."""
        rng = np.random.default_rng(0)
        with jax.enable_x64(True):
            for distance in (1.0, 1e-1, 1e-3):
                k, b, a, l, c = rng.normal(size=5) * [1, 1, 3, 1, 1]  # noqa: E741
                x = float(rng.uniform(0, 0.3))
                y = x * b / (1 + k * x) + distance * float(rng.normal())
                constants = (abs(k * y - b), abs(k), INVERSE_LIPSCHITZ / (1 + k * x) ** 1.5, abs(c))
                error, bound = on_curve()((k, 1.0, b, a, abs(l), c), constants, x, y, distance)
                assert error <= bound

    def test_estimated_constants(self):
        """The power iteration finds B; a difference quotient is no larger than its constant."""
        with jax.enable_x64(True):
            case = Ridge()
            x = jnp.linspace(-1.0, 1.0, SIZE)
            y = case.solution(x) + 0.1
            losses = bilevel.Losses(case.problem, ((), ()), DATA, jax.random.key(0))
            certified = bilevel.inexact_hypergradient(strong_convexity=case.strong_convexity)
            estimate = jax.jit(lambda state: certified.estimate(losses, x, y, 1e-8, state))
            out = estimate(certified.init(x, y, jax.random.key(0)))
            for _ in range(10):
                out = estimate(out.state)
            right = jax.jvp(lambda x: losses.inner_gradient(x, y), (x,), (jnp.ones(SIZE),))[1]
            exact = case.constants(x, y)
            jac = jnp.abs(jnp.exp(x) * y * out.state.direction)
            np.testing.assert_allclose(jnp.linalg.norm(jac), exact.mixed_norm, rtol=1e-2)
            np.testing.assert_allclose(right, jnp.exp(x) * y)
            largest = out.state.largest
            assert 0.05 * exact.mixed_lipschitz < largest.mixed <= exact.mixed_lipschitz * (1 + 1e-6)
            assert largest.inverse < 1e-6
            assert largest.direct == 0
            assert (out.gradients, out.status) == (4, Status.CONVERGED)


SIZE, ROWS = 6, 12


class Ridge:
    """G = ½ ‖A y − b‖² + ½ Σ exp(x_i) y_i² and F = ½ ‖A_v y − b_v‖²; the logistic one has Σ log(1 + exp(−b A y)) and
    F + ½ Σ x_i y_i.
    """

    def __init__(self, logistic=False, dtype=np.float64):
        rng = np.random.default_rng(0)
        a, a_v = (jnp.asarray(rng.normal(size=(ROWS, SIZE)) / np.sqrt(ROWS), dtype) for _ in range(2))
        w = rng.normal(size=SIZE)
        b, b_v = (
            jnp.asarray(m @ w + rng.normal(size=ROWS) * 0.3, dtype) for m in (np.asarray(a), np.asarray(a_v))
        )
        largest = float(np.linalg.norm(np.asarray(a), 2) ** 2)
        self.outer_lipschitz = float(np.linalg.norm(np.asarray(a_v), 2) ** 2)
        curvature = largest / 4 if logistic else largest
        least = 0.0 if logistic else float(np.linalg.eigvalsh(np.asarray(a).T @ np.asarray(a))[0])
        rows = float(np.max(np.linalg.norm(np.asarray(a), axis=1)))
        # The third derivative of log(1 + exp) is at most 1 / (6 √3).
        hessian_lipschitz = largest * rows / (6 * np.sqrt(3)) if logistic else 0.0
        direct = 0.5 if logistic else 0.0

        def inner(x, y, batch):
            fit = jnp.sum(jax.nn.softplus(-b * (a @ y))) if logistic else 0.5 * jnp.sum((a @ y - b) ** 2)
            return fit + 0.5 * jnp.sum(jnp.exp(x) * y**2)

        self.problem = bilevel.problem(
            inner, lambda x, y, batch: 0.5 * jnp.sum((a_v @ y - b_v) ** 2) + direct * jnp.sum(x * y)
        )
        if logistic:
            curvature *= float(jnp.max(jnp.abs(b))) ** 2
            hessian_lipschitz *= float(jnp.max(jnp.abs(b))) ** 3
        self.strong_convexity = lambda x: least + jnp.exp(jnp.min(x))
        self.inner_tx = lambda x: optax.sgd(
            1 / (curvature + jnp.exp(jnp.max(x))), momentum=0.5, nesterov=True
        )
        self.constants = lambda x, y: bilevel.Constants(
            jnp.max(jnp.abs(jnp.exp(x) * y)),
            jnp.exp(jnp.max(x)),
            hessian_lipschitz / self.strong_convexity(x) ** 2,
            direct,
        )
        self.first = jnp.zeros(SIZE, dtype), jnp.zeros(SIZE, dtype)
        self.inner, self.hessian = inner, jax.hessian(inner, 1)

    def solution(self, x):
        def newton(_, y):
            return y - jnp.linalg.solve(self.hessian(x, y, None), jax.grad(self.inner, 1)(x, y, None))

        return jax.lax.fori_loop(0, 12, newton, jnp.zeros_like(x))

    def exact(self, x):
        """Φ and its gradient by dense algebra."""
        y = self.solution(x)
        outer = lambda x, y: self.problem.outer.apply((x, y), (), None, None)[0]  # noqa: E731
        f_x, f_y = jax.grad(outer, (0, 1))(x, y)
        v = jnp.linalg.solve(self.hessian(x, y, None), f_y)
        mixed = jax.jacobian(jax.grad(self.inner, 1), 0)(x, y, None)
        return outer(x, y), f_x - mixed.T @ v

    def maid(self, **options):
        return bilevel.maid(
            self.problem,
            self.inner_tx,
            strong_convexity=self.strong_convexity,
            outer_lipschitz=self.outer_lipschitz,
            **{"constants": self.constants, "backtrack": 0.5} | options,
        )

    def run(self, steps, **options):
        """A scan of steps: the last state, each step's infos and states before it."""
        init, step = self.maid(**options)

        def body(state, _):
            new, info = step(state, DATA)
            return new, (state, info)

        return jax.lax.scan(body, init(*self.first, DATA, jax.random.key(0)), length=steps)


@pytest.mark.paper(45)
class TestSteps(chex.TestCase):
    def test_certificates(self):
        """‖z − ∇Φ‖ ≤ ω at every iterate, and Φ falls with every accepted step by no less than it says."""
        for logistic in (False, True):
            with jax.enable_x64(True):
                case = Ridge(logistic)

                @jax.jit
                def run(case=case):
                    last, (states, infos) = case.run(30, step_size=1.0)
                    xs = jnp.concatenate([states.outer, last.outer[None]])
                    return xs, infos, jax.lax.map(case.exact, xs)

                xs, infos, (values, gradients) = run()
                metrics = infos.metrics
                moved = metrics["accepted"] == 1
                assert moved.sum() > 20
                zs = (xs[:-1] - xs[1:])[moved] / metrics["step_size"][moved, None]
                errors = np.linalg.norm(zs - gradients[:-1][moved], axis=-1)
                assert np.all(errors <= metrics["error_bound"][moved] + 1e-12)
                assert np.max(errors / metrics["error_bound"][moved]) > 1e-3
                fall = values[:-1] - values[1:]
                assert np.all(fall[moved] > 0)
                assert np.all(fall >= metrics["decrease"] - 1e-14)
                assert np.all(fall[~moved] == 0)
                # The logistic one has no minimum.
                norms = np.linalg.norm(gradients, axis=-1)
                assert logistic or norms[-1] < 0.2 * norms[0]
                assert metrics["epsilon"].min() < 0.01 * metrics["epsilon"].max()
                np.testing.assert_array_equal(infos.status[moved], Status.CONVERGED)

    def test_accuracies_and_steps_adapt(self):
        """Searches grow by one until they find a step below 2 / L; fixed accuracies stay. Options are traced."""
        with jax.enable_x64(True):
            case = contract.quadratic()

            @jax.jit
            @jax.vmap
            def lanes(step_size, tighten, loosen):
                init, step = bilevel.maid(
                    case.problem, optax.sgd(case.inner_step), strong_convexity=1.0,
                    constants=bilevel.Constants(case.coupling, 0.0, 0.0, 0.0), step_size=step_size,
                    backtrack=0.5, tighten=tighten, loosen=loosen, max_backtracks=2,
                )  # fmt: skip
                state = init(case.outer, case.inner, case.data, jax.random.key(0))

                def body(state, _):
                    new, info = step(state, case.data)
                    return new, (state.outer, state.extra._replace(bound=()), info)

                return jax.lax.scan(body, state, length=8)[1]

            steps = 32 * case.outer_step, 0.1
            results = lanes(jnp.asarray(steps), jnp.asarray([0.5, 1.0]), jnp.asarray([1.05, 1.0]))
            outer, extra, infos = jax.tree.map(lambda leaf: leaf[0], results)
            metrics = infos.metrics
            failed = int(np.argmax(metrics["accepted"]))
            assert failed in (3, 4)
            np.testing.assert_array_equal(extra.tries[: failed + 1], 2 + np.arange(failed + 1))
            assert extra.tries[failed + 1] == 2
            for leaf in jax.tree.leaves(outer):
                np.testing.assert_array_equal(leaf[: failed + 1], 1.0)
                assert not np.any(leaf[failed + 1] == 1.0)
            np.testing.assert_array_equal(infos.status[:failed], Status.MAX_STEPS)
            np.testing.assert_allclose(extra.epsilon[1 : failed + 1], 0.5 * metrics["epsilon"][:failed])
            np.testing.assert_allclose(extra.epsilon[failed + 1], 1.05 * metrics["epsilon"][failed])
            assert metrics["step_size"][failed] < 2.1 * case.outer_step
            np.testing.assert_allclose(extra.step_size[failed + 1], metrics["step_size"][failed] * 10 / 9)
            np.testing.assert_allclose((results[1].epsilon[1], results[1].delta[1]), 0.1)

    def test_counts(self):
        """By hand: G = ½ (y − x)² is solved by one inner step, its linear system by one of conjugate gradients."""
        problem = bilevel.problem(
            lambda x, y, batch: 0.5 * (y - x) ** 2, lambda x, y, batch: 0.5 * (y - 4) ** 2
        )
        init, step = bilevel.maid(
            problem, optax.sgd(1.0), strong_convexity=1.0, constants=bilevel.Constants(1.0, 0.0, 0.0, 0.0)
        )
        state, info = step(init(1.0, 0.0, DATA, jax.random.key(0)), DATA)
        assert info.metrics["accepted"] == 1
        np.testing.assert_allclose(state.outer, 1.3, rtol=1e-6)
        # Inner solve 2, G and F once each; at the new point 2 and F.
        assert info.metrics["gradients"] == 2 + 2 + 3
        # The residual of the first guess, one step, the residual of the end, J q.
        assert info.metrics["products"] == 4
        np.testing.assert_allclose(info.metrics["error_bound"], 0.0, atol=1e-6)

    def test_float32_stalls(self):
        """Where float32 can certify nothing any more x stays, finite, and the status says so."""
        case = Ridge(dtype=np.float32)
        last, (_, infos) = jax.jit(lambda: case.run(80, max_inner_steps=200, constants=None))()
        chex.assert_tree_all_finite((last.outer, last.inner, infos))
        assert infos.status[-1] == Status.STALLED
        assert infos.metrics["accepted"][:20].sum() > 10
        stalled = infos.status == Status.STALLED
        assert not np.any(infos.metrics["accepted"][stalled])
        assert np.all(np.diff(infos.value[infos.metrics["accepted"] == 1]) < 1e-6)

    def test_bad_options(self):
        case = Ridge(dtype=np.float32)
        for name, value in (
            ("epsilon", 0.0), ("delta", -1.0), ("step_size", 0.0), ("eta", 1.0), ("backtrack", 1.0), ("tighten", 1.5),
            ("loosen", 0.9), ("grow", 0.5), ("max_backtracks", 0), ("max_inner_steps", 0),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=name):
                case.maid(**{name: value})
        with pytest.raises(ValueError, match="strong_convexity"):
            bilevel.maid(case.problem, optax.sgd(0.1), strong_convexity=0.0)
        with pytest.raises(ValueError, match="projection"):
            bilevel.maid(
                case.problem._replace(project=lambda x, y: (x, y)), optax.sgd(0.1), strong_convexity=1.0
            )
