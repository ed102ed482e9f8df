"""Sinkhorn divergence: peers, closed forms and limits, nonnegative however loosely solved, honest status."""

import dataclasses
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.optimize
from hypothesis import given
from ott.geometry import pointcloud
from ott.tools import sinkhorn_divergence as ott_divergence

from jaxdiv import core, divergences, ot

RNG = np.random.default_rng(9)
X, Y = RNG.normal(size=(8, 2)), 0.7 + RNG.normal(size=(8, 2)) * [0.5, 1.5]
A, B = RNG.dirichlet(np.ones(8)), RNG.dirichlet(np.ones(8))
SINGLE = tuple(np.float32(z) for z in (X, Y, A, B))


def compiled(solver=ot.Sinkhorn, **options):
    """(x, y, a, b, epsilon, tol) -> the divergence and the derivatives of its value in all but tol."""

    def divergence(x, y, a, b, epsilon, tol):
        out = ot.sinkhorn_divergence(x, y, a, b, epsilon=epsilon, solver=solver(tol=tol), **options)
        return out.value, out

    with_gradients = jax.value_and_grad(divergence, (0, 1, 2, 3, 4), has_aux=True)

    @jax.jit
    def both(*arguments):
        (_, out), gradients = with_gradients(*arguments)
        return out, gradients

    return both


balanced = compiled()
unbalanced = compiled(marginals=(ot.KL(2.0), ot.KL(3.0)))
rough = compiled(lambda tol: ot.Sinkhorn(tol=tol, max_steps=3), cost=ot.Euclidean())


def dual_optimum(x, y, a, b, epsilon, rho_a, rho_b):
    """Unbalanced OT by a quasi-Newton method on its dual, from the definition."""
    cost = np.sum((x[:, None] - y) ** 2, -1)

    def negative(z):
        f, g = np.split(z, 2)
        plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / epsilon)
        kept_a, kept_b = a * np.exp(-f / rho_a), b * np.exp(-g / rho_b)
        prices = rho_a * np.sum(a - kept_a) + rho_b * np.sum(b - kept_b)
        slope = np.append(kept_a - plan.sum(1), kept_b - plan.sum(0))
        return epsilon * (plan.sum() - a.sum() * b.sum()) - prices, -slope

    out = scipy.optimize.minimize(
        negative, np.zeros(16), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}
    )
    return -out.fun


class TestValue:
    def test_equals_ott(self):
        with jax.enable_x64(True):
            own = balanced(X, Y, A, B, 0.3, 1e-12)[0].value
            theirs, _ = jax.jit(
                lambda: ott_divergence.sinkhorn_divergence(
                    pointcloud.PointCloud, X, Y, a=A, b=B, epsilon=0.3, solve_kwargs={"threshold": 1e-10}
                )
            )()
        np.testing.assert_allclose(own, theirs, rtol=1e-8)

    def test_of_unequal_masses_is_its_definition(self):
        """The penalty of x on both sides of OT(a, a), that of y on both of OT(b, b)."""
        a, b, epsilon = 2.0 * A, 0.5 * B, 0.3
        cross = dual_optimum(X, Y, a, b, epsilon, 2.0, 3.0)
        own = dual_optimum(X, X, a, a, epsilon, 2.0, 2.0) + dual_optimum(Y, Y, b, b, epsilon, 3.0, 3.0)
        with jax.enable_x64(True):
            out, _ = unbalanced(X, Y, a, b, epsilon, 1e-11)
        np.testing.assert_allclose(out.value, cross - own / 2 + epsilon / 2 * 1.5**2, rtol=1e-8)

    def test_equals_the_closed_form_of_gaussians(self):
        """Janati, Muzellec, Peyré, Cuturi (2020), theorem 1: for variances u, v and epsilon = 2 s^2, with
        D = sqrt(4 u v + s^4), OT = |m - k|^2 + u + v - D + s^2 (1 - log 2 s^2 + log(D + s^2))."""
        s = 0.4

        def closed(first, second):
            (m, u), (k, v) = first, second
            root = np.sqrt(4 * u * v + s**4)
            return (m - k) ** 2 + u + v - root + s * s * (1 - np.log(2 * s * s) + np.log(root + s * s))

        def grid(mean, variance):
            z = np.linspace(-6.5, 6.5, 131)
            weights = np.exp(-0.5 * z * z)
            return (mean + np.sqrt(variance) * z)[:, None], weights / weights.sum()

        first, second = (0.0, 1.0), (0.7, 0.5)
        (x, a), (y, b) = grid(*first), grid(*second)
        expected = closed(first, second) - (closed(first, first) + closed(second, second)) / 2
        solver = ot.Sinkhorn(tol=1e-9)
        with jax.enable_x64(True):
            fn = jax.jit(lambda *z: ot.sinkhorn_divergence(*z, epsilon=2 * s * s, solver=solver).value)
            np.testing.assert_allclose(fn(x, y, a, b), expected, rtol=1e-6)

    def test_small_epsilon_is_the_transport_cost(self):
        with jax.enable_x64(True):
            out, _ = balanced(X, Y, A, B, 0.02, 1e-6)
        expected = pot.emd2(A, B, np.sum((X[:, None] - Y) ** 2, -1))
        assert out.status == core.Status.CONVERGED
        np.testing.assert_allclose(out.value, expected, rtol=0.02)

    def test_large_epsilon_is_a_distance_of_means_or_half_an_energy_distance(self):
        with jax.enable_x64(True):
            out, _ = balanced(X, Y, A, B, 1e5, 1e-14)
        np.testing.assert_allclose(out.value, np.sum((A @ X - B @ Y) ** 2), rtol=1e-3)
        x, y, a, b = SINGLE
        energy = divergences.energy_distance(x, y, x_weights=a, y_weights=b)
        np.testing.assert_allclose(rough(x, y, a, b, 100.0, 1e-5)[0].value, energy / 2, rtol=0.02)

    def test_is_0_at_equal_measures(self):
        x, _, a, _ = SINGLE
        halves, thirds = np.concatenate([x[:4], x[:4]]), np.concatenate([x[:4], x[3::-1]])
        half = np.concatenate([a[:4], a[:4]]) / (2 * a[:4].sum())
        third = np.concatenate([a[:4], 2 * a[3::-1]]) / (3 * a[:4].sum())
        for y, b in ((x, a), (x[::-1], a[::-1])):
            assert 0 <= balanced(x, y, a, b, 0.1, 1e-6)[0].value < 1e-6
        assert 0 <= balanced(halves, thirds, half, third, 0.1, 1e-6)[0].value < 1e-6


@st.composite
def clouds(draw):
    """Two clouds near or far, small or large, weights flat or spiky, often the same; any tolerance."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, offset = 10.0 ** draw(st.integers(-3, 3)), draw(st.sampled_from([0.0, 1.0, 10.0]))
    apart = 10.0 ** draw(st.integers(-8, 1))
    x = offset + rng.normal(size=(8, 2))
    y = x + apart * rng.normal(size=(8, 2))
    a = rng.dirichlet(np.full(8, draw(st.sampled_from([0.1, 1.0, 10.0]))))
    b = a if draw(st.booleans()) else rng.dirichlet(np.ones(8))
    epsilon = draw(st.sampled_from([0.01, 0.1, 1.0, 10.0])) * scale**2
    tol = draw(st.sampled_from([0.3, 1e-2, 1e-4, 1e-6]))
    x, y, a, b = (v.astype(np.float32) for v in (scale * x, scale * y, a, b))
    return x, y, a / a.sum(), b / b.sum(), epsilon, tol


class TestPositivity:
    """exp(-cost / epsilon) is positive definite in these; all in float32."""

    @given(clouds())
    def test_of_squared_distances(self, drawn):
        assert balanced(*drawn)[0].value >= 0

    @given(clouds())
    def test_of_unequal_masses(self, drawn):
        x, y, a, b, epsilon, tol = drawn
        assert unbalanced(x, y, 3 * a, b, epsilon, tol)[0].value >= 0

    @given(clouds())
    def test_after_three_steps(self, drawn):
        assert rough(*drawn)[0].value >= 0

    def test_other_kernels_keep_their_sign_and_rounding_keeps_the_gradient(self, monkeypatch):
        """-|x - y|^2 at a large epsilon: minus the squared distance of the means."""
        x, y, a, b = SINGLE
        means = a @ x - b @ y

        def value(x, y):
            cost = lambda x, y: -jnp.sum((x - y) ** 2)  # noqa: E731
            return ot.sinkhorn_divergence(x, y, a, b, cost=cost, epsilon=300.0, solver=ot.Sinkhorn()).value

        np.testing.assert_allclose(jax.jit(value)(x, y), -np.sum(means**2), rtol=0.05)
        monkeypatch.setattr(sys.modules[ot.sinkhorn_divergence.__module__], "_SLACK", 1e9)
        cut, gradient = jax.jit(jax.value_and_grad(value))(x, y)
        assert cut == 0
        np.testing.assert_allclose(gradient, -2 * a[:, None] * means, rtol=0.1, atol=1e-3)


class TestDerivatives:
    @pytest.mark.parametrize("divergence", [balanced, unbalanced])
    def test_finite_differences(self, divergence):
        h = 1e-5
        u, v, s, t = (RNG.normal(size=z.shape) for z in (X, Y, A, B))
        s, t = (s - s.mean()) / 100, (t - t.mean()) / 100
        with jax.enable_x64(True):
            _, gradients = divergence(X, Y, A, B, 0.3, 1e-12)
            there, back = (
                float(divergence(X + r * u, Y + r * v, A + r * s, B + r * t, 0.3 + r, 1e-12)[0].value)
                for r in (h, -h)
            )
            slope = sum(np.vdot(g, w) for g, w in zip(gradients, (u, v, s, t, 1.0), strict=True))
        np.testing.assert_allclose(slope, (there - back) / (2 * h), rtol=1e-6)

    def test_potentials_are_the_derivative_in_the_weights(self):
        """Up to a constant, which no change of weights at fixed mass sees."""
        with jax.enable_x64(True):
            out, gradients = balanced(X, Y, A, B, 0.3, 1e-12)
            excess = gradients[2] - (out.xy.f - out.xx.f)
        np.testing.assert_allclose(excess, excess[0], rtol=1e-9)

    def test_is_0_at_equal_measures(self):
        x, _, a, _ = SINGLE
        _, gradients = balanced(x, x, a, a, 0.1, 1e-6)
        np.testing.assert_allclose(gradients[0], 0.0, atol=1e-5)


class TestStatus:
    def test_is_the_worst_and_raises(self):
        out, _ = balanced(*SINGLE, 0.1, 1e-5)
        assert out.raise_if_failed().status == core.Status.CONVERGED
        assert out.error == max(t.error for t in (out.xy, out.xx, out.yy)) <= 1e-5
        for term in ("xy", "xx", "yy"):
            stopped = dataclasses.replace(getattr(out, term), status=jnp.int32(core.Status.MAX_STEPS))
            failed = dataclasses.replace(out, **{term: stopped})
            assert failed.status == core.Status.MAX_STEPS
            with pytest.raises(RuntimeError, match="MAX_STEPS"):
                failed.raise_if_failed()

    def test_unequal_masses_that_are_traced_are_infeasible(self):
        x, y, a, b = SINGLE
        assert balanced(x, y, a, 2 * b, 0.1, 1e-4)[0].status == core.Status.INFEASIBLE

    def test_lanes(self):
        epsilon, tol = np.float32([0.1, 0.5]), np.float32([1e-5, 0.0])
        out = jax.jit(jax.vmap(lambda e, t: balanced(*SINGLE, e, t)[0]))(epsilon, tol)
        single = [balanced(*SINGLE, e, t)[0] for e, t in zip(epsilon, tol, strict=True)]
        np.testing.assert_array_equal(out.status, [s.status for s in single])
        np.testing.assert_allclose(out.value, [s.value for s in single], rtol=1e-4)
        assert out.status.tolist() == [core.Status.CONVERGED, core.Status.STALLED]
        with pytest.raises(RuntimeError, match=r"\[1\] STALLED"):
            out.raise_if_failed()


class TestBorders:
    def test_points_of_weight_0_may_be_anywhere(self):
        """In the default epsilon too, and with Newton's method for the cross term."""
        a, b = (np.where(np.arange(8) < k, w, 0.0) for k, w in ((7, A), (6, B)))
        a, b = a / a.sum(), b / b.sum()
        far = np.where(a[:, None] > 0, X, 50.0), np.where(b[:, None] > 0, Y, -70.0)

        @jax.jit
        def value_and_gradient(x, y):
            def value(x):
                return ot.sinkhorn_divergence(x, y, a, b, solver=ot.SinkhornNewton(tol=1e-11)).value

            return jax.value_and_grad(value)(x)

        with jax.enable_x64(True):
            (value, gradient), (again, same) = value_and_gradient(X, Y), value_and_gradient(*far)
        np.testing.assert_allclose(again, value, rtol=1e-10)
        np.testing.assert_allclose(same, gradient, rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(same[a == 0], 0.0)

    def test_streamed_is_the_same_and_so_is_padded(self, monkeypatch):
        a, b = A[:7] / A[:7].sum(), B[:6] / B[:6].sum()
        monkeypatch.setattr("jaxdiv.ot.point_cloud.DENSE_LIMIT", 20)
        monkeypatch.setattr("jaxdiv.ot.point_cloud.BLOCK_LIMIT", 20)
        with jax.enable_x64(True):
            streamed, gradients = compiled()(X[:7], Y[:6], a, b, 0.3, 1e-11)
            monkeypatch.undo()
            padded, expected = balanced(X, Y, np.append(a, 0.0), np.append(b, [0.0, 0.0]), 0.3, 1e-11)
        assert isinstance(streamed.xy.problem.geometry, ot.PointCloud)
        np.testing.assert_allclose(streamed.value, padded.value, rtol=1e-9)
        np.testing.assert_allclose(gradients[0], expected[0][:7], rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(expected[0][7:], 0.0)

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="b must have one weight per point"):
            ot.sinkhorn_divergence(X, Y, A, A[:3])
        with pytest.raises(ValueError, match="b must lie in"):
            ot.sinkhorn_divergence(X, Y, A, -B)
        with pytest.raises(ValueError, match="solver must not be symmetric"):
            ot.sinkhorn_divergence(X, Y, solver=ot.Sinkhorn(symmetric=True))
        with pytest.raises(ValueError, match="points of one dimension"):
            ot.sinkhorn_divergence(X, Y[:, :1])
