"""Gradient-normalized smoothness against its closed forms, and the step that it allows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import core, diagnostics, linalg, solvers

KEY = jax.random.key(0)


@pytest.mark.paper(34)
def test_closed_forms():
    """‖∇f‖ / L without curvature, √(2 ‖∇f‖ / M) for a Hessian of slope M, infinite for a quadratic's own."""

    @jax.jit
    @chex.assert_max_traces(1)
    def smoothness(x, lipschitz, slope, curvature):
        def fun(x):
            return jnp.sum(lipschitz * x**2 / 2 + slope * x**3 / 6)

        return diagnostics.gn_smoothness(fun, x, lambda v: curvature * v, directions=3, key=KEY)

    with jax.enable_x64(True):
        x = jnp.array([3.0])
        np.testing.assert_allclose(smoothness(x, 4.0, 0.0, 0.0), 12.0 / 4.0, rtol=1e-6)
        np.testing.assert_allclose(smoothness(x, 0.0, 5.0, 15.0), np.sqrt(2 * 22.5 / 5.0), rtol=1e-6)
        assert np.isinf(smoothness(x, 4.0, 0.0, 4.0))
        # A hundredfold the curvature: below the shortest length that is looked at.
        assert smoothness(1e-6 * x, 4.0, 0.0, 0.0) == 0


@pytest.mark.paper(34)
def test_a_step_within_it_is_accepted_at_once():
    """In one dimension the estimate is exact: its radius passes the test of the solver."""
    with jax.enable_x64(True):
        x = jnp.array([3.0])

        def fun(x):
            return jnp.sum(jnp.cosh(x))

        radius = jax.jit(
            lambda x: diagnostics.gn_smoothness(
                fun, x, linalg.hessian_operator(fun, x), directions=3, key=KEY
            )
        )(x)
        state = core.run(solvers.GNSNewton(fun, radius=radius), x, max_steps=1).state
        # r(t) t = ‖∇f‖ with r(t) t = sinh(x + t) - sinh(x) - t cosh(x), at the sign where it is largest.
        gap = np.sinh(3.0 + radius) - np.sinh(3.0) - radius * np.cosh(3.0)
        np.testing.assert_allclose(gap, np.sinh(3.0), rtol=1e-6)
        assert state.solves == 1
        np.testing.assert_allclose(state.radius, float(radius) * 2)


def test_trees_and_bad_input():
    tree = {"a": jnp.ones(2), "b": jnp.ones(())}

    def fun(x):
        return jnp.sum(x["a"] ** 2) + x["b"] ** 4

    def zero(v):
        return jax.tree.map(jnp.zeros_like, v)

    radii = jnp.array([0.1, 1.0, 10.0])
    assert 0.1 < jax.jit(lambda x: diagnostics.gn_smoothness(fun, x, zero, radii=radii, key=KEY))(tree) < 2.5
    with pytest.raises(ValueError, match="radii must have rank 1"):
        diagnostics.gn_smoothness(fun, tree, zero, radii=jnp.ones(()), key=KEY)
    with pytest.raises(ValueError, match="directions must lie"):
        diagnostics.gn_smoothness(fun, tree, zero, directions=0, key=KEY)
