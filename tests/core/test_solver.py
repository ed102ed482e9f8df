from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import core
from jaxdiv.core import RUNNING, Status


class HeronState(NamedTuple):
    value: Any
    error: Any
    status: Any


@core.pytree_dataclass
class Heron:
    """Newton's method for the square root: y <- (y + a/y)/2."""

    tol: float = 1e-6

    def init(self, y0, a):
        return HeronState(y0, jnp.full_like(y0, jnp.inf), jnp.int32(RUNNING))

    def step(self, state, a):
        y = (state.value + a / state.value) / 2
        error = abs(y * y - a)
        return HeronState(y, error, jnp.where(error <= self.tol, Status.CONVERGED, RUNNING))


class WalkState(NamedTuple):
    value: Any
    error: Any
    status: Any
    key: Any
    memory: Any


@core.pytree_dataclass
class Walk:
    """Noisy gradient descent on half a squared norm; its state holds a key and a memory."""

    learning_rate: float = 0.1
    noise: float = 0.01
    slots: int = core.static_field(default=3)

    def init(self, y0, key):
        memory = jnp.zeros((self.slots, *y0.shape), y0.dtype)
        return WalkState(y0, jnp.float32(jnp.inf), jnp.int32(RUNNING), key, memory)

    def step(self, state, key):
        following, draw = jax.random.split(state.key)
        noise = self.noise * jax.random.normal(draw, state.value.shape, state.value.dtype)
        y = state.value - jnp.asarray(self.learning_rate, noise.dtype) * (state.value + noise)
        memory = jnp.concatenate([state.memory[1:], y[None]])
        return WalkState(y, jnp.linalg.norm(y.astype(jnp.float32)), state.status, following, memory)


class Record(NamedTuple):
    value: Any
    error: Any
    status: Any
    i: Any = 0


@core.pytree_dataclass
class Script:
    """Plays back values and errors; ends with status `end` at the last of them."""

    end: int = core.static_field(default=int(RUNNING))

    def init(self, y0, values, errors):
        return Record(y0, jnp.asarray(jnp.inf, errors.dtype), jnp.int32(RUNNING), jnp.int32(0))

    def step(self, state, values, errors):
        last = len(values) - 1
        i = jnp.minimum(state.i, last)
        status = jnp.where(i == last, self.end, RUNNING)
        return Record(values[i], errors[i], status, state.i + 1)


def play(values, errors, end=RUNNING, **options):
    options = {"max_steps": len(values), **options}
    script = Script(int(end))
    return core.run(script, jnp.float32(7.0), jnp.float32(values), jnp.float32(errors), **options)


class RunTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_heron_finds_the_square_root(self):
        solve = self.variant(lambda y0, a: core.run(Heron(), y0, a, max_steps=30))
        out = solve(jnp.float32(1.0), jnp.float32(2.0))
        np.testing.assert_allclose(out.value, np.sqrt(2.0), rtol=1e-6)
        assert int(out.status) == Status.CONVERGED
        # 1, 1.5, 1.41667, 1.414216, 1.41421356: |y^2 - 2| is .25, .0069, 6e-6, 0.
        assert int(out.steps) == 4
        assert out.status.dtype == jnp.int32
        out.raise_if_failed()

    def test_uneven_lanes_end_alone_and_freeze(self):
        a = jnp.array([1.0, 2.0, 100.0, 1e6])

        def solve(a, n):
            return core.run(Heron(1e-4), jnp.float32(1.0), a, max_steps=n, history=4)

        lanes, early = (jax.jit(jax.vmap(lambda a, n=n: solve(a, n)))(a) for n in (8, 5))
        assert lanes.steps.tolist() == [1, 3, 7, 8]
        assert lanes.status.tolist() == [0, 0, 0, 1]
        # The lanes that had ended after 5 steps did not move in the steps that the others took.
        ended = slice(0, 2)
        chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[ended], s) for s in (lanes, early)))
        for i, x in enumerate(a):
            alone = solve(x, 8)
            assert (int(alone.steps), int(alone.status)) == (lanes.steps[i], lanes.status[i])
            np.testing.assert_allclose(alone.value, lanes.value[i], rtol=1e-6)
        with pytest.raises(RuntimeError, match=r"1 of 4 lanes failed: \[3\] MAX_STEPS after 8"):
            lanes.raise_if_failed()

    def test_vmap_and_jvp_over_a_numeric_option(self):
        tols = jnp.array([1.0, 1e-2, 1e-6])

        def solve(tol):
            return core.run(Heron(tol), jnp.float32(1.0), jnp.float32(2.0), max_steps=9)

        assert jax.vmap(solve)(tols).steps.tolist() == [1, 2, 4]

        # The converged Newton iterate has the root's derivative, d sqrt(a) = da / (2 sqrt(a)).
        def root(a):
            return core.run(Heron(), jnp.float32(1.0), a, max_steps=9).value

        _, tangent = jax.jvp(root, (jnp.float32(2.0),), (jnp.float32(1.0),))
        np.testing.assert_allclose(tangent, 0.5 / np.sqrt(2.0), rtol=1e-5)

    def test_reverse_mode_raises(self):
        def root(a):
            return core.run(Heron(), jnp.float32(1.0), a, max_steps=9).value

        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
            jax.grad(root)(jnp.float32(2.0))

    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_resuming_is_bit_identical(self, dtype):
        y0, key = jnp.arange(4, dtype=dtype), jax.random.key(0)
        whole = core.run(Walk(), y0, key, max_steps=20, history=20)
        first = core.run(Walk(), y0, key, max_steps=10, history=10)
        second = core.run(Walk(), y0, key, max_steps=10, history=10, state=first.state)
        chex.assert_trees_all_equal(second.state, whole.state)
        chex.assert_trees_all_equal(second.value, whole.value)
        assert whole.value.dtype == dtype
        joined = jnp.concatenate([first.history, second.history])
        chex.assert_trees_all_equal(joined, whole.history)
        assert int(second.status) == Status.MAX_STEPS

    def test_resuming_under_vmap_is_bit_identical(self):
        keys = jax.random.split(jax.random.key(1), 3)

        def solve(key, n):
            return core.run(Walk(), jnp.ones(2), key, max_steps=n)

        def go_on(key, s):
            return core.run(Walk(), jnp.ones(2), key, max_steps=2, state=s)

        first = jax.vmap(lambda key: solve(key, 2))(keys)
        second = jax.vmap(go_on)(keys, first.state)
        chex.assert_trees_all_equal(second.state, jax.vmap(lambda key: solve(key, 4))(keys).state)

    def test_a_state_that_has_ended_stays(self):
        out = core.run(Heron(), jnp.float32(1.0), 2.0, max_steps=9)
        again = core.run(Heron(), jnp.float32(1.0), 2.0, max_steps=9, state=out.state)
        assert (int(again.steps), int(again.status)) == (0, Status.CONVERGED)
        chex.assert_trees_all_equal(again.state, out.state)

    def test_zero_steps_return_the_first_value(self):
        out = core.run(Heron(), jnp.float32(3.0), 2.0, max_steps=0)
        assert (float(out.value), int(out.status)) == (3.0, Status.MAX_STEPS)

    def test_options_and_problem_of_equal_shape_compile_once(self):
        traces = []

        @core.pytree_dataclass
        class Counted(Heron):
            def step(self, state, a):
                traces.append(1)
                return super().step(state, a)

        for tol, y0, a in [(1e-3, 1.0, 2.0), (1e-4, 2.0, 3.0), (1e-5, np.float32(4), jnp.ones(()))]:
            core.run(Counted(tol), jnp.float32(y0), jnp.float32(a), max_steps=5)
        assert len(traces) == 1
        # A first state of weak type resumes without a new trace of its own kind of state.
        out = core.run(Counted(), 1.0, 2.0, max_steps=2)
        count = len(traces)
        out = core.run(Counted(), 1.0, 2.0, max_steps=2, state=out.state)
        core.run(Counted(), 1.0, 2.0, max_steps=2, state=out.state)
        assert len(traces) == count + 1

    def test_functions_in_the_problem_are_static(self):
        @core.pytree_dataclass
        class FixedPoint:
            def init(self, y0, f):
                return HeronState(y0, jnp.inf * y0, jnp.int32(RUNNING))

            def step(self, state, f):
                y = f(state.value)
                error = abs(y - state.value)
                return HeronState(y, error, jnp.where(error < 1e-6, Status.CONVERGED, RUNNING))

        out = core.run(FixedPoint(), jnp.float32(1.0), jnp.cos, max_steps=99)
        np.testing.assert_allclose(out.value, 0.7390851, rtol=1e-5)

        # A closure over a traced value works too.
        def solve(c):
            return core.run(FixedPoint(), c, lambda y: y / 2 + c, max_steps=99).value

        np.testing.assert_allclose(jax.jit(solve)(jnp.float32(3.0)), 6.0, rtol=1e-5)


class EndingsTest(chex.TestCase):
    def test_nan_error_keeps_the_last_finite_state(self):
        out = play([1.0, 2.0, 3.0, 4.0], [0.5, 0.25, np.nan, 0.1], Status.CONVERGED, history=4)
        assert int(out.status) == Status.NONFINITE
        assert (float(out.value), float(out.error), int(out.steps)) == (2.0, 0.25, 2)
        assert out.history.tolist() == [0.5, 0.25, np.inf, np.inf]

    def test_nan_value_is_no_success(self):
        out = play([1.0, np.nan], [0.5, 0.0], Status.CONVERGED)
        assert (int(out.status), float(out.value)) == (Status.NONFINITE, 1.0)

    def test_nan_start_is_no_success(self):
        out = core.run(Heron(), jnp.float32(np.nan), 2.0, max_steps=9)
        assert (int(out.status), int(out.steps)) == (Status.NONFINITE, 0)

    def test_infinite_error_means_unmeasured_only_until_measured(self):
        unmeasured = play([1.0, 2.0, 3.0], [np.inf, np.inf, 0.0], Status.CONVERGED)
        assert (int(unmeasured.status), float(unmeasured.value)) == (0, 3.0)
        diverged = play([1.0, 2.0, 3.0], [1.0, np.inf, 0.0], Status.CONVERGED)
        assert (int(diverged.status), float(diverged.value)) == (Status.NONFINITE, 1.0)
        claimed = play([1.0, 2.0], [np.inf, np.inf], Status.CONVERGED)
        assert int(claimed.status) == Status.NONFINITE

    def test_infinite_entries_of_a_value_are_allowed(self):
        out = play([-np.inf], [0.0], Status.CONVERGED)
        assert (int(out.status), float(out.value)) == (Status.CONVERGED, -np.inf)

    def test_nonfinite_lane_leaves_the_others_alone(self):
        def solve(y0):
            return core.run(Heron(1e-4), y0, jnp.float32(4.0), max_steps=20)

        out = jax.vmap(solve)(jnp.array([1.0, 0.0, 2.0]))
        assert out.status.tolist() == [0, Status.NONFINITE, 0]
        np.testing.assert_allclose(out.value[::2], [2.0, 2.0], rtol=1e-6)

    def test_a_step_that_changes_nothing_stalls(self):
        # In float32 |y^2 - 2| cannot reach 1e-12, and the iteration stops moving.
        out = core.run(Heron(1e-12), jnp.float32(1.0), 2.0, max_steps=1000)
        assert int(out.status) == Status.STALLED
        assert int(out.steps) < 10
        np.testing.assert_allclose(out.value, np.sqrt(2.0), rtol=1e-6)

    def test_a_step_that_changes_only_its_counter_does_not_stall(self):
        out = play([1.0, 1.0, 1.0, 5.0], [1.0, 1.0, 1.0, 0.0], Status.CONVERGED)
        assert (int(out.status), float(out.value)) == (Status.CONVERGED, 5.0)

    def test_solver_may_end_infeasible(self):
        out = play([1.0, 2.0], [1.0, 1.0], Status.INFEASIBLE)
        with pytest.raises(RuntimeError, match="INFEASIBLE after 2 steps at error 1 "):
            out.raise_if_failed()

    def test_history_keeps_the_last_errors_oldest_first(self):
        errors = [6.0, 5.0, 4.0, 3.0, 2.0]
        for k, expected in [
            (2, [3, 2]),
            (3, [4, 3, 2]),
            (5, errors),
            (7, [*errors, np.inf, np.inf]),
        ]:
            out = play(np.arange(5.0), errors, history=k)
            assert out.history.tolist() == expected
        assert play(np.arange(5.0), errors).history.shape == (0,)


class ProgressTest(chex.TestCase):
    def test_reports_every_hundredth_of_the_limit_and_the_end(self):
        seen = []
        errors = np.linspace(1.0, 0.0, 25)
        play(
            np.arange(25.0),
            errors,
            Status.CONVERGED,
            max_steps=1000,
            progress=lambda *r: seen.append(r),
        )
        jax.effects_barrier()
        assert sorted(steps for steps, _ in seen) == [10, 20, 25]
        np.testing.assert_allclose(sorted(e for _, e in seen), sorted(errors[[9, 19, 24]]), atol=1e-6)

    def test_frozen_lanes_report_nothing(self):
        seen = []
        a = jnp.array([1.0, 100.0])

        def solve(a):
            return core.run(
                Heron(1e-3), jnp.float32(1.0), a, max_steps=50, progress=lambda n, e: seen.append(n)
            )

        out = jax.vmap(solve)(a)
        jax.effects_barrier()
        assert len(seen) == int(out.steps.sum())


class BadInputTest(chex.TestCase):
    @parameterized.parameters({"max_steps": -1}, {"max_steps": 1, "history": -1})
    def test_negative_counts_raise(self, **options):
        with pytest.raises(ValueError, match="must be at least 0; got -1"):
            core.run(Heron(), jnp.float32(1.0), 2.0, **options)

    @parameterized.parameters("dtype", "shape", "structure")
    def test_a_state_that_changes_form_raises(self, what):
        class Changing(Heron):
            def step(self, state, a):
                change = {
                    "dtype": lambda y: y.astype(jnp.float16),
                    "shape": lambda y: y[None],
                    "structure": lambda y: (y, y),
                }
                return state._replace(value=change[what](state.value))

        jax.tree_util.register_static(Changing)
        with pytest.raises(ValueError, match=r"solver\.step must keep"):
            core.run(Changing(), jnp.float32(1.0), 2.0, max_steps=2)

    def test_a_batched_status_raises(self):
        with pytest.raises(ValueError, match=r"error must be a floating scalar.*jax\.vmap over run"):
            core.run(Heron(), jnp.ones(3), 2.0, max_steps=2)
