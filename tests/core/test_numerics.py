import functools
from fractions import Fraction

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
import scipy.special
from absl.testing import parameterized

from jaxdiv import core

INF = np.inf


def summed(f, **options):
    return lambda *args: jnp.sum(f(*args, **options))


class LogSumExpTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_scipy(self):
        rng = np.random.default_rng(0)
        x, w = 30 * rng.normal(size=(3, 4, 2)), rng.uniform(size=(4, 1))
        with jax.enable_x64(True):
            for axis, keepdims in [(None, False), (1, True), ((0, -1), False)]:
                f = self.variant(lambda x, w, a=axis, k=keepdims: core.logsumexp(x, a, weights=w, keepdims=k))
                expected = scipy.special.logsumexp(x, axis, b=w, keepdims=keepdims)
                np.testing.assert_allclose(f(jnp.array(x), jnp.array(w)), expected, rtol=1e-12)

    def test_derivatives_equal_finite_differences(self):
        with jax.enable_x64(True):
            x, w = jnp.array([[0.5, -1.0, 2.0], [3.0, 0.1, 0.2]]), jnp.array([0.3, 1.5, 0.7])
            where = jnp.array([[True, True, False], [True, True, True]])
            f = summed(lambda x, w: core.logsumexp(x, -1, weights=w, where=where))
            jax.test_util.check_grads(jax.jit(f), (x, w), order=2, rtol=1e-5)
            g = summed(lambda x, w: core.logmeanexp(x, -1, weights=w, where=where))
            jax.test_util.check_grads(jax.jit(g), (x, w), order=2, rtol=1e-5)

    def test_weights_of_zero_have_their_true_derivative(self):
        # d/dw_i log sum_j w_j exp(x_j) = exp(x_i - lse), for w_i = 0 too.
        x, w = jnp.array([1.0, 0.0, 3.0]), jnp.array([0.0, 1.0, 0.0])
        dx, dw = jax.grad(lambda x, w: core.logsumexp(x, weights=w), (0, 1))(x, w)
        np.testing.assert_allclose(dx, [0.0, 1.0, 0.0])
        np.testing.assert_allclose(dw, np.exp([1.0, 0.0, 3.0]), rtol=1e-6)

    @parameterized.named_parameters(
        ("all masked", [1.0, 2.0], None, [False, False]),
        ("all minus infinity", [-INF, -INF], None, None),
        ("all weights zero", [1.0, 2.0], [0.0, 0.0], None),
        ("masked weights", [1.0, -INF], [1.0, 1.0], [False, True]),
    )
    def test_an_empty_row_is_minus_infinity_with_zero_gradient(self, x, w, where):
        x = jnp.array([x, [0.0, 1.0]])
        w = None if w is None else jnp.array([w, [1.0, 1.0]])
        where = None if where is None else jnp.array([where, [True, True]])
        for f, shift in [(core.logsumexp, 0.0), (core.logmeanexp, np.log(2))]:
            value = f(x, -1, weights=w, where=where)
            np.testing.assert_allclose(value, [-INF, np.log(1 + np.e) - shift], rtol=1e-6)
            for argnum in (0, 1)[: 1 if w is None else 2]:
                g = jax.grad(lambda x, w, f=f: f(x, -1, weights=w, where=where).sum(), argnum)(x, w)
                assert np.isfinite(g).all()
                if argnum == 0:
                    np.testing.assert_allclose(g, [[0, 0], jax.nn.softmax(x[1])], rtol=1e-6)

    @parameterized.parameters(INF, -INF, np.nan, 1000.0)
    def test_what_does_not_count_may_hold_anything(self, junk):
        x, keep = jnp.array([0.0, junk, 1.0]), jnp.array([True, False, True])
        for options in ({"where": keep}, {"weights": keep.astype(jnp.float32)}):
            value, g = jax.value_and_grad(functools.partial(core.logsumexp, **options))(x)
            np.testing.assert_allclose(value, np.log(1 + np.e), rtol=1e-6)
            p = 1 / (1 + np.e)
            np.testing.assert_allclose(g, [p, 0.0, 1 - p], rtol=1e-6)
            dw = jax.grad(lambda w: core.logsumexp(x, weights=w))(keep.astype(jnp.float32))
            assert np.isfinite(dw).all()

    def test_nan_stays_nan_in_its_row(self):
        out = core.logsumexp(jnp.array([[0.0, np.nan], [0.0, 0.0]]), -1)
        np.testing.assert_allclose(out, [np.nan, np.log(2)], rtol=1e-6)

    def test_large_exponents_do_not_overflow(self):
        x = jnp.array([1e4, 1e4])
        np.testing.assert_allclose(core.logsumexp(x), 1e4 + np.log(2), rtol=1e-6)
        np.testing.assert_allclose(core.logmeanexp(-x), -1e4, rtol=1e-6)

    def test_half_precision_is_reduced_in_float32(self):
        x = jnp.full(300, 0.0, jnp.bfloat16)
        np.testing.assert_allclose(core.logsumexp(x), np.log(300), rtol=1e-6)
        assert core.logsumexp(x).dtype == jnp.float32
        with pytest.raises(ValueError, match="x must be floating point"):
            core.logsumexp(jnp.arange(3))


class BoundaryTest(chex.TestCase):
    def test_xlogy_equals_scipy_away_from_and_at_zero(self):
        x, y = np.meshgrid([0.0, 0.5, 2.0], [0.0, 0.5, 3.0])
        np.testing.assert_allclose(core.xlogy(x, y), scipy.special.xlogy(x, y), rtol=1e-6)

    @parameterized.parameters(
        (0.0, 0.0, 0.0, 0.0), (0.0, INF, 0.0, 0.0), (0.0, 2.0, np.log(2), 0.0), (3.0, 2.0, np.log(2), 1.5)
    )
    def test_xlogy_derivatives(self, x, y, dx, dy):
        np.testing.assert_allclose(jax.grad(core.xlogy, (0, 1))(x, y), (dx, dy), rtol=1e-6)

    def test_sqrt_has_zero_derivative_at_and_below_zero(self):
        x = jnp.array([-1e-9, 0.0, 4.0])
        np.testing.assert_allclose(core.safe_sqrt(x), [0.0, 0.0, 2.0])
        np.testing.assert_allclose(jax.vmap(jax.grad(core.safe_sqrt))(x), [0.0, 0.0, 0.25])
        assert np.isnan(core.safe_sqrt(jnp.nan))

    @chex.variants(with_jit=True, without_jit=True)
    def test_norm_equals_numpy_over_any_axes(self):
        x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
        for axis, keepdims in [(None, False), (-1, True), ((0, 2), False), ((0, 1, 2), True)]:
            f = self.variant(lambda x, a=axis, k=keepdims: core.safe_norm(x, a, keepdims=k))
            expected = np.sqrt(np.sum(x**2, axis=axis, keepdims=keepdims))
            np.testing.assert_allclose(f(x), expected, rtol=1e-6)

    def test_norm_at_zero_and_at_the_ends_of_float32(self):
        x = jnp.array([[0.0, 0.0], [3e-30, 4e-30], [3e30, 4e30], [3.0, 4.0]])
        norm = lambda x: core.safe_norm(x, -1)  # noqa: E731
        np.testing.assert_allclose(norm(x), [0.0, 5e-30, 5e30, 5.0], rtol=1e-6)
        g = jax.grad(lambda x: norm(x).sum())(x)
        np.testing.assert_allclose(g, [[0.0, 0.0]] + 3 * [[0.6, 0.8]], rtol=1e-6)
        # The squares of optax.safe_norm vanish here; if that changes, ours can go.
        assert optax.safe_norm(x[1], 0.0) == 0.0

    def test_norm_derivatives_equal_finite_differences(self):
        with jax.enable_x64(True):
            x = jnp.array([[1.0, -2.0, 0.5], [0.1, 0.0, 3.0]])
            f = summed(core.safe_norm, axis=0)
            jax.test_util.check_grads(jax.jit(f), (x,), order=2, rtol=1e-5)

    def test_norm_of_the_largest_floats(self):
        top = np.finfo(np.float32).max
        np.testing.assert_allclose(
            core.safe_norm(jnp.array([0.5 * top, 0.5 * top])), top * np.sqrt(0.5), rtol=1e-6
        )
        np.testing.assert_allclose(core.safe_norm(jnp.array([top])), top, rtol=1e-6)

    @parameterized.product(f=(core.logsumexp, core.safe_norm, core.compensated_sum), axis=(3, (0, 0)))
    def test_a_wrong_axis_raises(self, f, axis):
        with pytest.raises(ValueError, match="axis must name distinct axes of x"):
            f(jnp.ones((2, 2)), axis)


class CompensatedSumTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_survives_the_compiler_where_the_plain_sum_fails(self):
        # 1 is below half an ulp of 1e8: the plain sum loses every 1, the compensated one none.
        x = np.tile(np.float32([1e8, 1.0, -1e8, 1.0]), 50)
        assert abs(float(self.variant(jnp.sum)(x)) - 100.0) > 10
        assert float(self.variant(core.compensated_sum)(x)) == 100.0

    @hypothesis.given(hnp.arrays(np.float32, 37, elements=st.floats(-(2.0**40), 2.0**40, width=32)))
    def test_error_is_that_of_twice_the_precision(self, x):
        # XLA flushes subnormals to zero.
        x = np.where(np.abs(x) < 1e-30, np.float32(0), x)
        exact = sum(map(Fraction, map(float, x)), Fraction(0))
        eps = Fraction(2) ** -24
        bound = eps * abs(exact) + 37**2 * eps**2 * sum(abs(Fraction(float(v))) for v in x)
        assert abs(Fraction(float(core.compensated_sum(x))) - exact) <= bound + Fraction(1, 10**30)

    def test_two_sum_is_exact(self):
        rng = np.random.default_rng(2)
        a, b = (np.float32(rng.normal(size=50) * 10.0 ** rng.integers(-8, 8, 50)) for _ in "ab")
        s, e = jax.jit(core.two_sum)(a, b)
        for values in zip(a, b, s, e, strict=True):
            x, y, hi, lo = (Fraction(float(v)) for v in values)
            assert x + y == hi + lo

    def test_axes_and_derivatives_are_those_of_the_sum(self):
        x = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
        for axis, keepdims in [(None, False), (1, True), ((2, 0), False)]:
            out = core.compensated_sum(x, axis, keepdims=keepdims)
            np.testing.assert_allclose(out, x.sum(axis, keepdims=keepdims), rtol=1e-5)
        g = jax.grad(lambda x: (core.compensated_sum(x, 1) ** 2).sum())(x)
        np.testing.assert_allclose(g, 2 * x.sum(1, keepdims=True).repeat(3, 1), rtol=1e-5)
        chex.assert_trees_all_close(jax.vmap(core.compensated_sum)(x), x.sum((1, 2)), rtol=1e-5)

    def test_edges(self):
        assert core.compensated_sum(jnp.zeros((0,))) == 0.0
        assert core.compensated_sum(jnp.float32(3.0)) == 3.0
        assert core.compensated_sum(jnp.array([1.0, INF, 2.0])) == INF
        assert np.isnan(core.compensated_sum(jnp.array([INF, -INF])))
        assert core.compensated_sum(jnp.full(1000, 1.0, jnp.bfloat16)) == 1000.0
