import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import implicit
from jaxdiv.core import Status


def _condition(y, theta, shift):
    """Linear, not symmetric, on a pytree: [[2, 1], [-1, 3]] y = theta * shift."""
    return {"u": 2 * y["u"] + y["v"] - theta * shift, "v": 3 * y["v"] - y["u"] + theta}


A = np.array([[2.0, 1.0], [-1.0, 3.0]])
SOL = {"u": jnp.array(1.0), "v": jnp.array(-1.0)}
ARGS = (jnp.array(4.0), jnp.array(0.25))
B = np.array([[-0.25, -4.0], [1.0, 0.0]])


class ProductsTest(chex.TestCase):
    def test_equal_the_dense_formula(self):
        tangent = jax.jit(lambda t: implicit.root_jvp(_condition, SOL, ARGS, t))(
            (jnp.array(1.0), jnp.array(2.0))
        )
        np.testing.assert_allclose([*tangent.values()], -np.linalg.solve(A, B @ [1, 2]), rtol=1e-5)
        # jaxopt's keywords.
        cotangent = {"u": jnp.array(1.0), "v": jnp.array(-2.0)}
        cotangents = jax.jit(
            lambda c: implicit.root_vjp(
                optimality_fun=_condition, sol=SOL, args=ARGS, cotangent=c, solve="lu"
            )
        )(cotangent)
        np.testing.assert_allclose(cotangents, -B.T @ np.linalg.solve(A.T, [1, -2]), rtol=1e-5)

    def test_none_is_a_zero_tangent(self):
        tangent = jax.jit(lambda t: implicit.root_jvp(_condition, SOL, ARGS, (t, None)))(jnp.array(1.0))
        np.testing.assert_allclose([*tangent.values()], -np.linalg.solve(A, B[:, 0]), rtol=1e-5)

    def test_cotangents_are_like_the_arguments(self):
        def condition(y, fun, floats, index, nothing):
            return fun(y) - floats["a"] * floats["b"][index]

        y, args = jnp.array(6.0), (jnp.asarray, {"a": 3.0, "b": jnp.array([1.0, 2.0])}, jnp.array(1), None)
        got = implicit.root_vjp(
            condition, y, args, jnp.array(1.0), lambda matvec, b: b / matvec(jnp.ones_like(b))
        )
        assert got[0] is None
        assert got[3] is None
        np.testing.assert_allclose(got[1]["a"], 2.0)
        np.testing.assert_allclose(got[1]["b"], [0.0, 3.0])
        assert got[2].dtype == jax.dtypes.float0

    def test_zero_cotangent_gives_zero_without_a_step(self):
        zero = jax.tree.map(jnp.zeros_like, SOL)
        got, adjoint = jax.jit(lambda c: implicit.root_vjp(_condition, SOL, ARGS, c, return_adjoint=True))(
            zero
        )
        np.testing.assert_array_equal(got, 0)
        assert (adjoint.info.status, adjoint.info.steps) == (Status.CONVERGED, 0)

    @parameterized.named_parameters(
        (
            "count",
            lambda: implicit.root_jvp(_condition, SOL, ARGS, ARGS[:1]),
            "one entry for each of the 2 args",
        ),
        (
            "tangent",
            lambda: implicit.root_jvp(_condition, SOL, ARGS, (jnp.ones(2), None)),
            r"tangents\[0\] must have the structure",
        ),
        ("cotangent", lambda: implicit.root_vjp(_condition, SOL, ARGS, {"u": 1.0}), "cotangent must have"),
        ("init", lambda: implicit.root_vjp(_condition, SOL, ARGS, SOL, init=jnp.ones(2)), "init must have"),
        (
            "output",
            lambda: implicit.root_vjp(lambda y, a: y["u"], SOL, (1.0,), SOL),
            "the output of optimality_fun",
        ),
        ("sol", lambda: implicit.root_vjp(lambda y: y, 1, (), 1), "sol must be floating"),
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class WarmStartTest(chex.TestCase):
    def test_adjoint_is_carried_through_a_loop(self):
        # A drifts slowly; each adjoint starts from the last. In a scan the state carries it.
        rng = np.random.default_rng(0)
        matrix = jnp.asarray(rng.normal(size=(12, 12)) / 12 + 3 * np.eye(12), jnp.float32)

        def condition(y, theta):
            return matrix @ y + theta * y - 1

        def products(warm):
            def step(adjoint, theta):
                got, kept = implicit.root_vjp(
                    condition, jnp.ones(12), (theta,), jnp.ones(12), init=adjoint if warm else None,
                    return_adjoint=True,
                )  # fmt: skip
                return kept.value, (got[0], kept.info.steps, kept.info.status)

            return jax.jit(lambda thetas: jax.lax.scan(step, jnp.zeros(12), thetas)[1])

        thetas = 1 + 1e-5 * jnp.arange(4.0)
        warm, warm_steps, warm_status = products(True)(thetas)
        cold, cold_steps, _ = products(False)(thetas)
        np.testing.assert_array_equal(warm_status, Status.CONVERGED)
        assert warm_steps[0] == cold_steps[0]
        assert 2 * max(warm_steps[1:]) <= min(cold_steps[1:])
        np.testing.assert_allclose(warm, cold, rtol=1e-4)

    def test_tangent_is_an_init_too(self):
        def call(init):
            return implicit.root_jvp(
                _condition, SOL, ARGS, (jnp.array(1.0), None), init=init, return_adjoint=True
            )[1]

        first = jax.jit(call)(None)
        assert first.info.steps > 0
        assert jax.jit(call)(first.value).info.steps == 0
