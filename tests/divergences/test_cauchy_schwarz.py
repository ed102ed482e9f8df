"""Cauchy–Schwarz estimators: contract, the formulas in numpy, Gaussian closed forms, documented pitfalls."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.special
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(8)
X, Y = RNG.normal(size=(2, 3, 6, 2))
T = np.tanh(X @ RNG.normal(size=(2, 2))) + 0.3 * RNG.normal(size=(3, 6, 2))


@jax.jit
def divergence(x, y, sigma, x_weights=None, y_weights=None):
    return divergences.cs_divergence(x, y, sigma=sigma, x_weights=x_weights, y_weights=y_weights)


@jax.jit
def information(x, t, sigma_x, sigma_t, weights=None):
    return divergences.cs_qmi(x, t, sigma_x=sigma_x, sigma_t=sigma_t, weights=weights)


normalized = jax.jit(lambda x, t: divergences.cs_qmi(x, t, normalized=True))


def conditional(x, y, y_hat, sigma_x=1.5, sigma_y=0.8, denominator="paper", weights=None):
    return divergences.conditional_cs(
        x, y, y_hat, sigma_x=sigma_x, sigma_y=sigma_y, denominator=denominator, weights=weights
    )


compiled_conditional = jax.jit(conditional, static_argnames="denominator")
conditional_and_gradient = jax.jit(
    jax.value_and_grad(lambda x, y, y_hat: conditional(x, y, y_hat).sum(), argnums=2)
)


def gram(u, v, sigma):
    return np.exp(-((u[..., :, None, :] - v[..., None, :, :]) ** 2).sum(-1) / (2 * sigma**2))


def two_samples(x, y, sigma):
    within = np.log(gram(x, x, sigma).mean((1, 2)) * gram(y, y, sigma).mean((1, 2)))
    return within - 2 * np.log(gram(x, y, sigma).mean((1, 2)))


def mutual_information(x, t, sigma_x, sigma_t):
    k, q = gram(x, x, sigma_x), gram(t, t, sigma_t)
    joint, product = (k * q).mean((1, 2)), k.mean((1, 2)) * q.mean((1, 2))
    return np.log(joint * product) - 2 * np.log((k.mean(2) * q.mean(2)).mean(1))


def conditional_divergence(x, y, y_hat, denominator="paper"):
    """L21_ji = G(ŷ_j, y_i); the paper divides by (Σ K)², the released code by Σ K²."""
    k = gram(x, x, 1.5)
    below = k.sum(2) ** 2 if denominator == "paper" else (k**2).sum(2)

    def log_sum(a, b):
        return np.log(((k * gram(a, b, 0.8)).sum(2) / below).sum(1))

    return log_sum(y, y) + log_sum(y_hat, y_hat) - 2 * log_sum(y_hat, y)


def samples(seed):
    return tuple(np.random.default_rng(seed).normal(size=(2, 3, 6, 2)))


def regression(seed):
    x, y, y_hat = np.random.default_rng(seed).normal(size=(3, 3, 6, 2))
    return {"x": x, "y": y}, {"x": x, "y": y_hat}


def cs(x, y, sigma):
    return divergences.cs_divergence(x, y, sigma=sigma)


def qmi(x, t, sigma):
    return divergences.cs_qmi(x, t, sigma_x=sigma, sigma_t=0.9)


def conditional_member(p, q, sigma):
    return conditional(p["x"], p["y"], q["y"], sigma_y=sigma)


ONES = np.ones((3, 6, 2), np.float32)
MEMBERS = (
    contract.Member(
        "cs_divergence",
        cs,
        samples,
        option=0.8,
        symmetric=True,
        bad=(
            lambda: cs(ONES, ONES, 0.0),
            lambda: cs(ONES, ONES[..., :1], 1.0),
            lambda: cs(ONES[0, 0], ONES[0, 0], 1.0),
            lambda: cs(ONES[:, :0], ONES, 1.0),
            lambda: divergences.cs_divergence(ONES, ONES, x_weights=np.ones(6)),
        ),
    ),
    contract.Member(
        "cs_qmi",
        qmi,
        samples,
        option=1.2,
        zero_at_equality=False,
        bad=(lambda: qmi(ONES, ONES[:, :5], 1.0), lambda: qmi(ONES, ONES, -1.0)),
    ),
    contract.Member(
        "conditional_cs",
        conditional_member,
        regression,
        option=0.8,
        nonnegative=False,
        bad=(
            lambda: conditional(ONES, ONES, ONES[..., :1]),
            lambda: conditional(ONES[:, :5], ONES, ONES),
            lambda: conditional(ONES, ONES, ONES, sigma_x=0.0),
            lambda: conditional(ONES, ONES, ONES, denominator="neither"),
        ),
    ),
)


@pytest.mark.paper(8)
class TestContract(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.CALLS))
    def test_calls(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


def quadrature(mean, cov, nodes=24):
    """Gauss–Hermite nodes and weights of a plane Gaussian: a sample without sampling error."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    weights = np.outer(w, w).ravel() / w.sum() ** 2
    return mean + grid @ np.linalg.cholesky(cov).T, weights


def closed_form(m1, s1, m2, s2, sigma):
    """The entry's log N(0; 0, 2 S1) + log N(0; 0, 2 S2) - 2 log N(m1 - m2; 0, S1 + S2), S + σ²I/2."""

    def log_normal(x, cov):
        return -0.5 * (x @ np.linalg.solve(cov, x) + np.linalg.slogdet(2 * np.pi * cov)[1])

    s1, s2 = (s + sigma**2 / 2 * np.eye(2) for s in (s1, s2))
    zero = np.zeros(2)
    return log_normal(zero, 2 * s1) + log_normal(zero, 2 * s2) - 2 * log_normal(m1 - m2, s1 + s2)


MEAN1, MEAN2 = np.array([0.3, -0.2]), np.array([-0.4, 0.6])
COV1, COV2 = np.array([[1.0, 0.4], [0.4, 0.7]]), np.array([[0.6, -0.2], [-0.2, 1.2]])


@pytest.mark.paper(8)
class TestGaussianLimit:
    def test_exact_expectations_give_the_closed_form(self):
        (x, u), (y, v) = quadrature(MEAN1, COV1), quadrature(MEAN2, COV2)
        sigma = 1.0
        with jax.enable_x64(True):
            value = divergence(x, y, sigma, u, v)
            smoothed = (s + sigma**2 / 2 * np.eye(2) for s in (COV1, COV2))
            gaussian = divergences.gaussian_cs(MEAN1, next(smoothed), MEAN2, next(smoothed))
        expected = closed_form(MEAN1, COV1, MEAN2, COV2, sigma)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gaussian, expected, rtol=1e-12)

    def test_two_thousand_points_are_within_three_percent(self):
        """Low-discrepancy points (Roberts' R2 sequence): random ones scatter by 5%."""
        uniform = (0.5 + np.arange(1, 4001)[:, None] * [0.7548776662466927, 0.5698402909980532]) % 1
        points = scipy.special.ndtri(uniform)
        x, y = (
            (m + z @ np.linalg.cholesky(s).T).astype(np.float32)
            for m, s, z in ((MEAN1, COV1, points[:2000]), (MEAN2, COV2, points[2000:]))
        )
        expected = closed_form(MEAN1, COV1, MEAN2, COV2, 1.0)
        np.testing.assert_allclose(divergence(x, y, 1.0), expected, rtol=0.03)

    def test_information_of_correlated_gaussians(self):
        """The divergence of the joint covariance from the product's, both smoothed; 0 when independent."""
        zero = np.zeros(2)
        product = np.diag([1.0, 0.7])
        values = []
        for cov in (COV1, product):
            points, weights = quadrature(zero, cov)
            with jax.enable_x64(True):
                values.append(float(information(points[:, :1], points[:, 1:], 1.0, 1.0, weights)))
        np.testing.assert_allclose(values[0], closed_form(zero, COV1, zero, product, 1.0), rtol=1e-6)
        assert abs(values[1]) < 1e-12

    def test_information_of_a_sample(self):
        zero, cov = np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]])
        points = np.random.default_rng(1).multivariate_normal(zero, cov, 1000).astype(np.float32)
        value = information(points[:, :1], points[:, 1:], 1.0, 1.0)
        np.testing.assert_allclose(value, closed_form(zero, cov, zero, np.eye(2), 1.0), rtol=0.15)


@pytest.mark.paper(8)
class TestFormulas(parameterized.TestCase):
    def test_two_samples(self):
        with jax.enable_x64(True):
            np.testing.assert_allclose(divergence(X, Y, 0.7), two_samples(X, Y, 0.7), rtol=1e-12)

    def test_information(self):
        with jax.enable_x64(True):
            value = information(X, T, 1.3, 0.6)
        np.testing.assert_allclose(value, mutual_information(X, T, 1.3, 0.6), rtol=1e-12)

    @parameterized.parameters("paper", "code")
    def test_conditional(self, denominator):
        with jax.enable_x64(True):
            value = compiled_conditional(X, Y, T, denominator=denominator)
        np.testing.assert_allclose(value, conditional_divergence(X, Y, T, denominator), rtol=1e-11)

    def test_the_denominators_differ(self):
        first, second = (
            compiled_conditional(*(v.astype(np.float32) for v in (X, Y, T)), denominator=d)
            for d in ("paper", "code")
        )
        assert np.abs(first / second - 1).min() > 1e-3

    def test_width_per_batch_row(self):
        sigma = np.array([0.5, 1.0, 2.0])
        with jax.enable_x64(True):
            value = divergence(X, Y, sigma)
            each = [divergence(X, Y, s)[i] for i, s in enumerate(sigma)]
            np.testing.assert_allclose(value, np.array(each), rtol=1e-12)


@pytest.mark.paper(8)
class TestPitfalls:
    def test_perfect_predictions_are_zero_but_not_stationary(self):
        """An estimate, not a divergence: a step along the gradient from ŷ = y falls below 0."""
        x, y = X.astype(np.float32), Y.astype(np.float32)
        value, gradient = conditional_and_gradient(x, y, y)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        with jax.enable_x64(True):
            np.testing.assert_allclose(compiled_conditional(X, Y, Y), 0.0, atol=1e-15)
        assert np.abs(gradient).max() > 0.01
        lower, _ = conditional_and_gradient(x, y, y - 0.1 * gradient)
        assert lower < -1e-3

    def test_gradient_survives_where_all_kernel_values_underflow(self):
        """cs_divergence at a distance of 1000 widths between single points is |x - y|²/σ²."""
        x = np.zeros((3, 6, 2), np.float32)
        value, slope = jax.jit(jax.value_and_grad(lambda s: divergence(x + s, x, 1.0).sum()))(1000.0)
        np.testing.assert_allclose(value, 3 * 2e6, rtol=1e-5)
        np.testing.assert_allclose(slope, 3 * 4e3, rtol=1e-5)

    def test_constant_features_have_no_information(self):
        x, constant = X.astype(np.float32), np.full((3, 6, 2), 0.3, np.float32)
        np.testing.assert_allclose(information(x, constant, 1.0, 1.0), 0.0, atol=1e-6)
        np.testing.assert_allclose(normalized(x, constant), 0.0, atol=1e-6)

    def test_normalized_information_of_itself_is_one(self):
        np.testing.assert_allclose(normalized(X.astype(np.float32), X.astype(np.float32)), 1.0, rtol=1e-5)


@pytest.mark.paper(8)
class TestProperties:
    @hypothesis.given(hnp.arrays(np.float64, (2, 3, 6, 2), elements=st.floats(-5, 5)))
    def test_nonnegative_and_zero_for_equal_samples(self, points):
        x, y = points
        with jax.enable_x64(True):
            values = np.concatenate([divergence(x, y, 1.0), information(x, y, 1.3, 0.6)])
            np.testing.assert_allclose(divergence(x, x[:, ::-1], 1.0), 0.0, atol=1e-13)
        assert values.min() > -1e-13

    def test_order_of_the_examples_does_not_matter(self):
        order = np.array([3, 1, 5, 0, 2, 4])
        with jax.enable_x64(True):
            for fn, joint in (
                (lambda x, y: divergence(x, y, 0.7), False),
                (lambda x, t: information(x, t, 1.3, 0.6), True),
                (lambda y, t: compiled_conditional(y, y, t), True),
            ):
                moved = fn(X[:, order], T[:, order] if joint else T)
                np.testing.assert_allclose(moved, fn(X, T), rtol=1e-12)

    def test_weights_are_repetitions(self):
        """Weight 2 is a point given twice, weight 0 an absent one that may be NaN."""
        repeats = np.array([2, 1, 0, 1, 3, 0])
        present = repeats > 0

        @jax.jit
        def terms_and_gradients(x, t, weights):
            def terms(x, t):
                return (
                    divergences.cs_divergence(x, t, sigma=0.7, x_weights=weights, y_weights=weights),
                    divergences.cs_qmi(x, t, sigma_x=1.3, sigma_t=0.6, weights=weights),
                    conditional(x, x, t, weights=weights),
                )

            values, pull = jax.vjp(terms, x, t)
            return values, pull(jax.tree.map(lambda v: v / v, values))

        padded = [np.where(present[:, None], v, np.nan).astype(np.float32) for v in (X, T)]
        weights = (repeats * np.ones((3, 1))).astype(np.float32)
        values, grads = terms_and_gradients(*padded, weights)
        x, t = (np.repeat(v, repeats, axis=1) for v in (X, T))
        expected = two_samples(x, t, 0.7), mutual_information(x, t, 1.3, 0.6), conditional_divergence(x, x, t)
        chex.assert_trees_all_close(values, expected, rtol=2e-5, atol=1e-6)
        chex.assert_tree_all_finite(grads)
        for g in grads:
            np.testing.assert_array_equal(g[:, ~present], 0.0)
            assert np.abs(g[:, present]).min() > 0

    def test_default_widths_move_with_the_unit(self):
        x, y = X.astype(np.float32), T.astype(np.float32)

        @jax.jit
        def defaults(x, y):
            return (
                divergences.cs_divergence(x, y),
                divergences.cs_qmi(x, y),
                divergences.conditional_cs(x, y, x),
            )

        chex.assert_trees_all_close(defaults(x, y), defaults(64 * x, 64 * y), rtol=1e-5)

    def test_unknown_denominator_is_named(self):
        with pytest.raises(ValueError, match="denominator must be one of 'paper', 'code'; got 'released'"):
            conditional(ONES, ONES, ONES, denominator="released")
