"""Proximal operators: optimality, firm nonexpansiveness, closed forms, scipy, derivatives, dtypes, bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxdiv import convex
from jaxdiv.convex import prox_elastic_net, prox_group_lasso, prox_l1, prox_nuclear, prox_tv

DRAWS, SHAPE = 12, (3, 5)
GROUPS, RIDGE = np.array([0, 1, 0, 3, 1]), 0.7


def by_label(x):
    return sum(np.linalg.norm(x[..., np.flatnonzero(g == GROUPS)], axis=-1) for g in range(5))


# Operator of one array and the penalty that it belongs to, of batches of them.
CASES = {
    "l1": (prox_l1, lambda z: np.abs(z).sum((-2, -1))),
    "elastic_net": (
        lambda x, s: prox_elastic_net(x, s, ridge=RIDGE),
        lambda z: np.abs(z).sum((-2, -1)) + RIDGE / 2 * (z**2).sum((-2, -1)),
    ),
    "group_lasso": (prox_group_lasso, lambda z: np.linalg.norm(z, axis=-1).sum(-1)),
    "group_labels": (
        lambda x, s: prox_group_lasso(x, s, groups=GROUPS),
        lambda z: by_label(z).sum(-1),
    ),
    "nuclear": (prox_nuclear, lambda z: np.linalg.svd(z, compute_uv=False).sum(-1)),
    "tv": (prox_tv, lambda z: np.abs(np.diff(z)).sum((-2, -1))),
}
NAMES = list(CASES)


def _measure(name, x, s, weights):
    """The operator and its derivatives at each array with its scale."""

    def at(x, s):
        point, pull = jax.vjp(CASES[name][0], x, s)
        push = jax.jvp(CASES[name][0], (x, s), (weights, jnp.ones_like(s)))[1]
        return point, *pull(weights), jnp.sum(push * weights)

    return jax.vmap(at)(x, s)


_measured = jax.jit(_measure, static_argnums=0)
WEIGHTS = np.random.default_rng(1).normal(size=SHAPE)
X = np.random.default_rng(0).normal(size=(DRAWS, *SHAPE)) * 2
SCALE = np.random.default_rng(2).uniform(0.1, 1.5, DRAWS)


def measure(name, x, s):
    with jax.enable_x64(True):
        return tuple(np.asarray(v) for v in _measured(name, x, s, WEIGHTS))


def inner(x, y):
    return (x * y).sum((-2, -1))


@pytest.mark.parametrize("name", NAMES)
class TestEveryOperator:
    def test_is_the_minimizer(self, name):
        """(x - z) / s is a subgradient: s g(w) ≥ s g(z) + ⟨x - z, w - z⟩ for w near, far, and scaled."""
        point, *_ = measure(name, X, SCALE)
        penalty = CASES[name][1]
        rng = np.random.default_rng(3)
        others = [point + size * rng.normal(size=point.shape) for size in (1e-4, 0.1, 1.0, 10.0)]
        for w in (*others, 1.1 * point, 0.9 * point, 0 * point, X):
            least = SCALE * penalty(point) + inner(X - point, w - point)
            assert np.all(SCALE * penalty(w) >= least - 1e-10)

    def test_is_firmly_nonexpansive(self, name):
        point, *_ = measure(name, X, np.full(DRAWS, 0.8))
        for shift in range(1, 4):
            moved, change = np.roll(X, shift, 0) - X, np.roll(point, shift, 0) - point
            assert np.all(inner(change, change) <= inner(change, moved) + 1e-12)
        assert np.any(np.abs(point - X) > 0.1)

    def test_derivatives_equal_finite_differences(self, name):
        """By x and by the scale, forward and reverse."""
        _, by_x, by_scale, push = measure(name, X, SCALE)
        slope = inner(by_x, WEIGHTS) + by_scale
        ahead, behind = (measure(name, X + t * WEIGHTS, SCALE + t)[0] for t in (1e-6, -1e-6))
        np.testing.assert_allclose(slope, inner(ahead - behind, WEIGHTS) / 2e-6, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(push, slope, rtol=1e-10, atol=1e-10)
        assert np.all(np.abs(by_scale) > 1e-6)

    def test_edges(self, name):
        """Scale 0 is the identity, a large one keeps nothing (total variation: the mean); all finite at 0."""
        x = np.concatenate([X[:2], X[:1], np.zeros((DRAWS - 3, *SHAPE))])
        point, *derivatives = measure(name, x, np.array([0.0, 0.0, 1e3, 0.0] + [0.5] * (DRAWS - 4)))
        np.testing.assert_allclose(point[:2], X[:2], atol=1e-12)
        expected = np.broadcast_to(X[0].mean(-1, keepdims=True), SHAPE) if name == "tv" else np.zeros(SHAPE)
        np.testing.assert_allclose(point[2], expected, atol=1e-12)
        np.testing.assert_array_equal(point[3:], 0.0)
        chex.assert_tree_all_finite(derivatives)

    def test_dtypes_and_traces(self, name):
        chex.clear_trace_counter()
        compiled = jax.jit(chex.assert_max_traces(CASES[name][0], n=1))
        x = X[0].astype(np.float32)
        single = compiled(x, np.float32(0.5))
        chex.assert_type(single, jnp.float32)
        np.testing.assert_allclose(single, measure(name, X, np.full(DRAWS, 0.5))[0][0], atol=2e-6)
        compiled(x + 1, np.float32(0.7))
        half = jnp.asarray(x, jnp.bfloat16)
        rounded = compiled(np.asarray(half, np.float32), np.float32(0.5))
        out = jax.jit(CASES[name][0])(half, np.float32(0.5))
        chex.assert_type(out, jnp.bfloat16)
        np.testing.assert_array_equal(out, rounded.astype(jnp.bfloat16))
        with jax.enable_x64(True):
            assert jax.eval_shape(CASES[name][0], jnp.asarray(x, jnp.float32), 0.5).dtype == jnp.float32
        assert np.any(np.isnan(compiled(np.where(np.arange(5) == 2, np.nan, x), np.float32(0.5))))


def test_l1_strength_per_entry_infinite_and_on_the_threshold():
    x, scale = jnp.array([2.0, -0.5, -3.0, 1.0, 4.0]), jnp.array([1.0, 1.0, 0.0, 1.0, jnp.inf])
    point, by_x = jax.jit(jax.value_and_grad(lambda x: jnp.sum(prox_l1(x, scale))))(x)
    assert point == 1.0 - 3.0
    np.testing.assert_array_equal(prox_l1(x, scale), [1, 0, -3, 0, 0])
    np.testing.assert_array_equal(by_x, [1, 0, 1, 0.5, 0])


def test_l1_is_the_residual_of_the_dual_ball():
    """Moreau: x = prox(x) + P(x), P the projection onto the ball of the dual norm with radius s."""
    x = X[0].astype(np.float32)
    for prox, ball in (
        (prox_l1, convex.project_linf_ball),
        (lambda x, s: prox_group_lasso(x, s, axis=None), convex.project_l2_ball),
        (prox_nuclear, convex.project_spectral_ball),
    ):
        np.testing.assert_allclose(jax.jit(prox)(x, 0.6) + jax.jit(ball)(x, 0.6), x, atol=1e-6)


def test_group_labels_equal_axes_and_take_a_strength_per_label():
    x = X[:1].astype(np.float32)[0]
    scale = np.array([0.3, 2.0, 0.0], np.float32)
    labels = np.repeat(np.arange(3), 5)
    expected = jax.jit(prox_group_lasso)(x, scale)
    out = jax.jit(lambda x, s: prox_group_lasso(x, s, groups=labels))(x.ravel(), scale)
    np.testing.assert_allclose(out.reshape(SHAPE), expected, atol=1e-6)
    tiny = prox_group_lasso(x.ravel() * 1e-30, 1e-30, groups=labels)
    np.testing.assert_allclose(
        tiny.reshape(SHAPE) * 1e30, jax.jit(prox_group_lasso)(x, np.ones(3, np.float32)), rtol=1e-4
    )
    gone = jax.jit(jax.jacrev(lambda x, s: prox_group_lasso(x, s), (0, 1)))(x, np.full(3, np.inf, np.float32))
    chex.assert_tree_all_finite(gone)


def test_nuclear_lowers_the_singular_values_and_survives_ties():
    x = np.diag([3.0, 3.0, 1.0, 0.0]).astype(np.float32)
    value, jacobian = jax.jit(lambda x: (prox_nuclear(x, 1.0), jax.jacrev(prox_nuclear)(x, 1.0)))(x)
    np.testing.assert_allclose(value, np.diag([2.0, 2.0, 0.0, 0.0]), atol=1e-6)
    chex.assert_tree_all_finite(jacobian)


class TestTotalVariation:
    def test_is_the_dual_box_problem(self):
        """x - Dᵀu with u the least squares of Dᵀu - x in the box of size s."""
        rng = np.random.default_rng(5)
        x = np.cumsum(rng.normal(size=(6, 9)), -1)
        scale = np.array([0.05, 0.3, 1.0, 2.0, 3.0, 30.0])
        with jax.enable_x64(True):
            out = np.asarray(jax.jit(prox_tv)(x, scale))
        difference = np.diff(np.eye(9), axis=0)
        for row, s, z in zip(x, scale, out, strict=True):
            u = optimize.lsq_linear(difference.T, row, (-s, s), method="bvls", tol=1e-14).x
            np.testing.assert_allclose(z, row - difference.T @ u, atol=1e-9)

    def test_optimality_of_long_signals(self):
        """u = cumsum(x - z) is within s, ends at 0 and is s at the jumps, against their sign."""
        noise = np.random.default_rng(6).normal(size=400)
        signals = [noise, np.cumsum(noise), np.linspace(0, 99, 400), np.round(noise)]
        with jax.enable_x64(True):
            points = np.asarray(jax.jit(prox_tv)(np.stack(signals), 1.3))
        for x, z in zip(signals, points, strict=True):
            dual, jump = np.cumsum(x - z), np.diff(z)
            at = np.abs(jump) > 1e-9
            assert abs(dual[-1]) < 1e-9
            assert np.abs(dual).max() <= 1.3 + 1e-9
            np.testing.assert_allclose(dual[:-1][at], -1.3 * np.sign(jump[at]), atol=1e-9)
            assert 0 < at.sum() < 399

    def test_axis_batch_and_special_signals(self):
        """By hand: the ends of a ramp move in; an infinite strength is the mean; NaN fills its signal only."""
        x = np.array([[0, 1, 5, 6], [1, 1, 1, 1], [0, np.nan, 1, 2]], np.float32)
        out = jax.jit(lambda x, s: prox_tv(x, s, axis=0))(x.T, np.array([2.0, 1.0, 0.1], np.float32)).T
        np.testing.assert_allclose(out[0], [1.5, 1.5, 4.5, 4.5])
        np.testing.assert_array_equal(out[1], 1.0)
        assert np.all(np.isnan(out[2]))
        value, by_x, by_scale = jax.jit(lambda x, s: (prox_tv(x, s), *jax.jacrev(prox_tv, (0, 1))(x, s)))(
            x[0], np.float32(np.inf)
        )
        np.testing.assert_allclose(value, 3.0)
        np.testing.assert_allclose(by_x, 0.25)
        np.testing.assert_array_equal(by_scale, 0.0)

    def test_single_entry_and_far_from_zero(self):
        x = np.array([1e6, 1e6 + 1, 1e6 + 5, 1e6 + 6], np.float32)
        single, far = jax.jit(lambda x: (prox_tv(x[:1], 0.5), prox_tv(x, 0.5)))(x)
        np.testing.assert_array_equal(single, x[:1])
        np.testing.assert_allclose(far - 1e6, [0.5, 1, 5, 5.5])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: prox_l1(jnp.arange(3))),
        ("scale", lambda: prox_l1(jnp.ones(3), -1.0)),
        ("scale", lambda: prox_l1(jnp.ones(3), jnp.ones(2))),
        ("ridge", lambda: prox_elastic_net(jnp.ones(3), 1.0, ridge=-1.0)),
        ("scale", lambda: prox_elastic_net(jnp.ones(3), np.inf)),
        ("scale", lambda: prox_group_lasso(jnp.ones((2, 3)), jnp.ones(3))),
        ("axis", lambda: prox_group_lasso(jnp.ones((2, 3)), axis=2)),
        ("axis", lambda: prox_group_lasso(jnp.ones((2, 3)), axis=None, groups=jnp.zeros(6, int))),
        ("groups", lambda: prox_group_lasso(jnp.ones(3), groups=jnp.array([0, 1]))),
        ("groups", lambda: prox_group_lasso(jnp.ones(3), groups=jnp.array([0, 1, 3]))),
        ("groups", lambda: prox_group_lasso(jnp.ones(3), groups=jnp.ones(3))),
        ("scale", lambda: prox_group_lasso(jnp.ones(3), jnp.ones(2), groups=jnp.array([0, 1, 2]))),
        ("axis", lambda: prox_nuclear(jnp.ones(3))),
        ("scale", lambda: prox_nuclear(jnp.ones((2, 3, 3)), jnp.ones(3))),
        ("x", lambda: prox_tv(jnp.ones((2, 0)))),
        ("scale", lambda: prox_tv(jnp.ones((2, 3)), np.nan)),
        ("scale", lambda: prox_tv(jnp.ones((2, 3)), jnp.ones(3))),
    ],
)
def test_bad_input_raises_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
