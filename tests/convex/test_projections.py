"""Projections onto simplex, box and balls: optimality, optax, closed forms, derivatives, bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize

from jaxdiv import convex

ROWS = np.random.default_rng(11).normal(size=(6, 5))
BALLS = {
    "l1": (convex.project_l1_ball, convex.l1),
    "l2": (convex.project_l2_ball, convex.l2),
    "linf": (convex.project_linf_ball, convex.linf),
    "spectral": (convex.project_spectral_ball, convex.spectral),
    "nuclear": (convex.project_nuclear_ball, convex.nuclear),
}
simplex = jax.jit(convex.project_simplex, static_argnames="axis")
box = jax.jit(convex.project_box)


def threshold(x, scale):
    """The simplex by the root of Σ max(x - τ, 0) = s."""
    tau = optimize.brentq(lambda t: np.maximum(x - t, 0).sum() - scale, x.min() - scale, x.max(), xtol=1e-14)
    return np.maximum(x - tau, 0)


class Simplex(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_with_and_without_jit(self):
        x = ROWS[0].astype(np.float32)
        np.testing.assert_allclose(
            self.variant(convex.project_simplex)(x), threshold(ROWS[0], 1.0), atol=1e-6
        )

    def test_is_the_root_of_its_threshold(self):
        scale = np.linspace(0.2, 3.0, 6)
        with jax.enable_x64(True):
            result = np.asarray(jax.jit(convex.project_simplex)(ROWS, scale))
        expected = np.stack([threshold(x, s) for x, s in zip(ROWS, scale, strict=True)])
        np.testing.assert_allclose(result, expected, atol=1e-12)
        np.testing.assert_allclose(result.sum(-1), scale, rtol=1e-12)

    def test_axis(self):
        x = ROWS.astype(np.float32)
        np.testing.assert_array_equal(simplex(x.T, axis=0), simplex(x).T)
        np.testing.assert_array_equal(np.stack([simplex(row) for row in x]), simplex(x))

    def test_is_optax_on_a_vector(self):
        x = ROWS[0].astype(np.float32)
        expected = jax.jit(optax.projections.projection_simplex)(x, 0.7)
        np.testing.assert_allclose(simplex(x, 0.7), expected, atol=1e-6)

    def test_derivatives(self):
        """By x and scale against differences; the Jacobian is I - 11ᵀ/k on the support."""

        @jax.jit
        def derivatives(x, scale):
            forward = jax.jacfwd(convex.project_simplex, (0, 1))(x, scale)
            reverse = jax.jacrev(convex.project_simplex, (0, 1))(x, scale)
            moved = scale + 1e-6 * jnp.array([0.0, 1.0, -1.0])
            return forward, reverse, jax.vmap(convex.project_simplex, (None, 0))(x, moved)

        with jax.enable_x64(True):
            outputs = jax.tree.map(np.asarray, derivatives(ROWS[0], 0.8))
        (by_x, by_scale), reverse, (point, ahead, behind) = outputs
        support = point > 0
        count = support.sum()
        assert 1 < count < 5
        expected = np.diag(support) - np.outer(support, support) / count
        np.testing.assert_allclose(by_x, expected, atol=1e-12)
        np.testing.assert_allclose(by_scale, (ahead - behind) / 2e-6, atol=1e-9)
        chex.assert_trees_all_close(reverse, (by_x, by_scale), atol=1e-12)


@given(hnp.arrays(np.float32, (5,), elements=st.floats(-100, 100, width=32)), st.floats(0, 10, width=32))
def test_simplex_optimality_for_any_values(x, scale):
    """Feasible, and ⟨x - Px, z - Px⟩ ≤ 0 at every vertex z = s e_i."""
    p = np.asarray(simplex(x, np.float32(scale)), np.float64)
    residual = x.astype(np.float64) - p
    size = 1 + np.abs(x).max() + scale
    assert np.all(p >= 0)
    np.testing.assert_allclose(p.sum(), scale, atol=1e-5 * size)
    assert np.all(scale * residual - residual @ p <= 1e-5 * size * (scale + 1))


def test_simplex_far_from_zero_at_scale_zero_and_with_minus_infinity():
    """Where optax loses the sum, or gives NaN."""
    far = simplex(np.array([1e8, 1e8 + 8, 1e8, 1e8, 0], np.float32), np.float32(1.0))
    np.testing.assert_array_equal(far, [0, 1, 0, 0, 0])
    value, (by_x, by_scale) = jax.jit(
        lambda x, s: (convex.project_simplex(x, s), jax.jacrev(convex.project_simplex, (0, 1))(x, s))
    )(jnp.array([0.5, 2.0, 2.0]), jnp.float32(0.0))
    np.testing.assert_array_equal(value, np.zeros(3))
    np.testing.assert_array_equal(by_x, np.zeros((3, 3)))
    np.testing.assert_array_equal(by_scale, [0, 0.5, 0.5])
    masked = simplex(np.array([0.5, -np.inf, 0.1, -1, -np.inf], np.float32), np.float32(1.0))
    np.testing.assert_allclose(masked, [0.7, 0, 0.3, 0, 0], rtol=1e-6)
    assert np.all(np.isnan(simplex(np.array([0.5, np.nan, 0.1, 0, 0], np.float32), np.float32(1.0))))


def test_box_is_clip_and_its_bounds_are_differentiable():
    low, high = jnp.array([-0.5, 0.0, -jnp.inf]), 1.0
    x = jnp.array([-1.0, 0.5, 3.0])
    np.testing.assert_array_equal(convex.project_box(x, low, high), [-0.5, 0.5, 1.0])
    np.testing.assert_array_equal(convex.project_box(x, -jnp.inf, jnp.inf), x)
    by_x, by_low, by_high = jax.jit(jax.grad(lambda *a: jnp.sum(convex.project_box(*a)), (0, 1, 2)))(
        x, low, high
    )
    np.testing.assert_array_equal(by_x, [0, 1, 0])
    np.testing.assert_array_equal(by_low, [1, 0, 0])
    np.testing.assert_array_equal(by_high, 1)


@given(
    hnp.arrays(np.float32, (3, 5), elements=st.floats(-9, 9, width=32)),
    st.floats(-5, 0, width=32),
    st.floats(0, 5, width=32),
)
def test_box_optimality_for_any_values(arrays, low, high):
    """The box is feasible, idempotent, and ⟨x - Px, z - Px⟩ ≤ 0."""
    x, z = arrays[0].astype(np.float64), np.clip(arrays[1], low, high).astype(np.float64)
    p = np.asarray(box(arrays[0], low, high), np.float64)
    assert np.all((p >= low) & (p <= high))
    assert (x - p) @ (z - p) <= 0
    np.testing.assert_array_equal(box(p.astype(np.float32), low, high), p)


@pytest.mark.parametrize("name", BALLS)
def test_ball_functions_are_the_projections_of_the_norms(name):
    project, norm = BALLS[name]
    x = ROWS[:4].reshape(2, 5, 2).astype(np.float32)
    radius = np.linspace(0.3, 1.5, 5, dtype=np.float32)

    @jax.jit
    def both(x, radius):
        ours = project(x[0]), project(x, radius, axis=(0, 2))
        return ours, (norm.project(x[0], 1.0), norm.over((0, 2)).project(x, radius))

    chex.assert_trees_all_equal(*both(x, radius))


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
def test_vector_balls_agree_with_optax(name):
    optax_project = getattr(optax.projections, f"projection_{name}_ball")
    both = jax.jit(lambda x, radius: (BALLS[name][0](x, radius), optax_project(x, radius)))
    for radius in (0.7, 50.0):
        chex.assert_trees_all_close(*both(ROWS[:2].astype(np.float32), radius), atol=1e-6)


class DtypesAndTraces(chex.TestCase):
    @parameterized.named_parameters(
        ("simplex", convex.project_simplex, (1.0,), (0.5,)),
        ("box", convex.project_box, (-0.5, 0.5), (-0.2, 0.1)),
    )
    def test_dtype_kept_and_traced_once(self, project, options, others):
        chex.clear_trace_counter()
        compiled = jax.jit(chex.assert_max_traces(project, n=1))
        x = jnp.asarray(ROWS, jnp.float32)
        compiled(x, *options)
        compiled(x + 1, *others)
        half = jax.jit(project)(x.astype(jnp.bfloat16), *options)
        chex.assert_type(half, jnp.bfloat16)
        expected = compiled(x.astype(jnp.bfloat16).astype(jnp.float32), *options)
        np.testing.assert_array_equal(half, expected.astype(jnp.bfloat16))
        with jax.enable_x64(True):
            for dtype in (jnp.float32, jnp.float64):
                chex.assert_type(jax.eval_shape(project, jnp.asarray(ROWS, dtype), *options), dtype)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: convex.project_simplex(jnp.arange(3))),
        ("x", lambda: convex.project_simplex(jnp.ones((3, 0)))),
        ("axis", lambda: convex.project_simplex(jnp.ones(3), axis=1)),
        ("axis", lambda: convex.project_simplex(jnp.float32(1.0))),
        ("scale", lambda: convex.project_simplex(jnp.ones(3), -1.0)),
        ("scale", lambda: convex.project_simplex(jnp.ones(3), np.inf)),
        ("scale", lambda: convex.project_simplex(jnp.ones((2, 3)), jnp.ones(3))),
        ("x", lambda: convex.project_box(jnp.arange(3), 0, 1)),
        ("low", lambda: convex.project_box(jnp.ones(3), 1.0, 0.0)),
        ("low", lambda: convex.project_box(jnp.ones(3), np.nan, 0.0)),
        ("low", lambda: convex.project_box(jnp.ones(3), jnp.zeros(2), 1.0)),
        ("high", lambda: convex.project_box(jnp.ones(3), 0.0, jnp.ones((2, 3)))),
        ("radius", lambda: convex.project_l1_ball(jnp.ones(3), -1.0)),
        ("axis", lambda: convex.project_spectral_ball(jnp.ones(3))),
    ],
)
def test_bad_input_raises_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
