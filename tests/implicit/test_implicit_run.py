import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import core, implicit


class _State(NamedTuple):
    value: Any
    error: Any
    status: Any


@core.pytree_dataclass
class Descent:
    """Gradient descent on fun(y, *theta) + shift Σ y, `shift` an option of the solver."""

    learning_rate: float = 0.25
    shift: float = 0.0

    def init(self, y0, fun, theta):
        return _State(jax.tree.map(jnp.asarray, y0), jnp.asarray(jnp.inf), jnp.int32(core.RUNNING))

    def step(self, state, fun, theta):
        gradient = self.optimality(state.value, fun, theta)
        value = jax.tree.map(lambda y, g: y - self.learning_rate * g, state.value, gradient)
        error = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        return _State(value, error, jnp.where(error < 1e-5, core.Status.CONVERGED, core.RUNNING))

    def optimality(self, value, fun, theta):
        return jax.tree.map(lambda g: g + self.shift, jax.grad(fun)(value, theta))


def _fun(y, theta):
    """Minimum at u = b / a in both entries and v = Σ u."""
    u, v = y["u"], y["v"]
    return theta["a"] * u @ u / 2 - theta["b"] * jnp.sum(u) + (v - jax.lax.stop_gradient(jnp.sum(u))) ** 2 / 2


Y0 = {"u": jnp.zeros(2), "v": jnp.zeros(())}
THETA = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0)}


class RunTest(chex.TestCase):
    def test_value_gradient_and_hessian(self):
        def total(theta):
            solution = implicit.run(Descent(), Y0, _fun, theta, max_steps=100)
            return jnp.sum(solution.value["u"]), solution

        @jax.jit
        def measure(theta):
            (value, solution), grad = jax.value_and_grad(total, has_aux=True)(theta)
            return value, solution, grad, jax.hessian(lambda t: total(t)[0])(theta)

        value, solution, grad, hessian = measure(THETA)  # 2 b / a
        solution.raise_if_failed()
        np.testing.assert_allclose(value, 3.0, rtol=1e-5)
        np.testing.assert_allclose([grad["a"], grad["b"]], [-1.5, 1.0], rtol=1e-4)
        flat = [hessian[i][j] for i in "ab" for j in "ab"]
        np.testing.assert_allclose(flat, [1.5, -0.5, -0.5, 0.0], atol=1e-4)

    def test_equals_core_run_and_only_value_has_a_derivative(self):
        plain = jax.jit(lambda t: core.run(Descent(), Y0, _fun, t, max_steps=9, history=3))(THETA)
        ours = jax.jit(lambda t: implicit.run(Descent(), Y0, _fun, t, max_steps=9, history=3))(THETA)
        chex.assert_trees_all_equal(ours, plain)

        def rest(theta, y0):
            solution = implicit.run(Descent(), y0, _fun, theta, max_steps=9, history=3)
            zero = jax.tree.map(lambda v: 0 * v, solution.value)
            return solution.error + jnp.sum(solution.history) + solution.state.value["v"] + zero["v"]

        for grad in jax.tree.leaves(jax.jit(jax.grad(rest, (0, 1)))(THETA, Y0)):
            np.testing.assert_array_equal(grad, 0)

    def test_options_of_the_solver_are_parameters_and_y0_is_not(self):
        def total(rate, shift, y0):
            value = implicit.run(Descent(rate, shift), y0, _fun, THETA, max_steps=200).value
            return jnp.sum(value["u"])  # 2 (b − shift) / a

        grads = jax.jit(jax.grad(total, (0, 1, 2)))(0.25, 0.5, Y0)
        np.testing.assert_allclose(grads[:2], [0.0, -1.0], atol=1e-5)
        chex.assert_trees_all_equal(grads[2], jax.tree.map(jnp.zeros_like, Y0))

    def test_vmap_and_a_lane_that_did_not_converge(self):
        def total(a):
            solution = implicit.run(Descent(), Y0, _fun, {"a": a, "b": 3.0}, max_steps=80)
            return jnp.sum(solution.value["u"]), (solution.status, solution.value["u"])

        lanes = jnp.array([2.0, 4.0, 0.01])
        grads, (status, u) = jax.jit(jax.vmap(jax.grad(total, has_aux=True)))(lanes)
        np.testing.assert_array_equal(status, [core.Status.CONVERGED] * 2 + [core.Status.MAX_STEPS])
        np.testing.assert_allclose(grads[:2], -6 / lanes[:2] ** 2, rtol=1e-4)
        # A⁻¹ B at the value that was reached: B = u.
        np.testing.assert_allclose(grads[2], -u[2].sum() / lanes[2], rtol=1e-4)

    def test_resumes(self):
        call = functools.partial(implicit.run, Descent(), Y0, _fun, THETA)
        first = call(max_steps=4)
        second = call(max_steps=4, state=first.state)
        chex.assert_trees_all_equal(second.value, call(max_steps=8).value)

    def test_bad_input(self):
        class Silent:
            pass

        with pytest.raises(ValueError, match=r"solver must have a method optimality.*got Silent"):
            implicit.run(Silent(), Y0, max_steps=1)
        with pytest.raises(ValueError, match="max_steps must be at least 0"):
            implicit.run(Descent(), Y0, _fun, THETA, max_steps=-1)

        def closed(a):
            fun = lambda y, theta: _fun(y, {"a": a, "b": theta})  # noqa: E731
            return jnp.sum(implicit.run(Descent(), Y0, fun, 3.0, max_steps=3).value["u"])

        with pytest.raises(ValueError, match="the solver must get what is differentiated"):
            jax.grad(closed)(2.0)
