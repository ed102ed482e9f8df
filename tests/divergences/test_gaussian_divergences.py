"""Divergences between Gaussians: contract, quadrature, closed forms in numpy, invariances, edges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RENYI_ORDERS = (0.0, 0.3, 0.999, 1.0, 1.001, 1.2)


def renyi(p, q, alpha):
    return divergences.gaussian_renyi(*p, *q, alpha=alpha)


FUNCTIONS = {
    "kl": lambda p, q: divergences.gaussian_kl(*p, *q),
    "cs": lambda p, q: divergences.gaussian_cs(*p, *q),
    "sq_hellinger": lambda p, q: divergences.gaussian_sq_hellinger(*p, *q),
    "w2": lambda p, q: divergences.gaussian_w2(*p, *q),
}


@jax.jit
def everything(p, q):
    """All divergences of two Gaussians at once: one compilation per shape."""
    values = {name: fn(p, q) for name, fn in FUNCTIONS.items()}
    values["renyi"] = jax.vmap(lambda a: renyi(p, q, a))(jnp.asarray(RENYI_ORDERS, values["kl"].dtype))
    return values


def exact(p, q):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, everything(p, q))


def gaussians(seed):
    """Means [3, 2] and covariances [3, 2, 2] with eigenvalues between 0.5 and about 2."""
    rng = np.random.default_rng(seed)

    def one():
        root = rng.normal(size=(3, 2, 2))
        return rng.normal(size=(3, 2)), 0.5 * np.eye(2) + 0.3 * root @ np.swapaxes(root, -1, -2)

    return one(), one()


def full(variances):
    return variances[..., None] * np.eye(variances.shape[-1])


def bad(fn):
    mean, cov = np.zeros((3, 2), np.float32), np.broadcast_to(np.eye(2, dtype=np.float32), (3, 2, 2))
    return (
        lambda: fn((mean, cov[0]), (mean, cov)),
        lambda: fn((mean, cov), (mean[:, :1], cov)),
        lambda: fn((mean[0, 0], cov), (mean[0, 0], cov)),
    )


MEMBERS = (
    *(
        contract.Member(f"gaussian_{name}", fn, gaussians, symmetric=name != "kl", bad=bad(fn))
        for name, fn in FUNCTIONS.items()
    ),
    contract.Member(
        "gaussian_renyi",
        renyi,
        gaussians,
        option=0.7,
        bad=(*bad(lambda p, q: renyi(p, q, 0.5)), lambda: renyi(*gaussians(0), -0.1)),
    ),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.CALLS))
    def test_calls(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


def closed_forms(p, q, alpha):
    """Textbook formulas with inverses and determinants, one pair."""
    (m1, s1), (m2, s2) = p, q
    delta, d = m1 - m2, len(m1)
    inverse, log_det = np.linalg.inv, lambda s: np.linalg.slogdet(s)[1]
    average = (s1 + s2) / 2
    root = scipy.linalg.sqrtm(s1)
    mixed = (1 - alpha) * s1 + alpha * s2
    return {
        "kl": (np.trace(inverse(s2) @ s1) - d + delta @ inverse(s2) @ delta + log_det(s2) - log_det(s1)) / 2,
        "cs": delta @ inverse(s1 + s2) @ delta + log_det(average) - (log_det(s1) + log_det(s2)) / 2,
        "sq_hellinger": 1
        - np.exp(
            (log_det(s1) + log_det(s2)) / 4 - log_det(average) / 2 - delta @ inverse(average) @ delta / 8
        ),
        "w2": delta @ delta + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(root @ s2 @ root)).real,
        "renyi": alpha * delta @ inverse(mixed) @ delta / 2
        - (log_det(mixed) - (1 - alpha) * log_det(s1) - alpha * log_det(s2)) / (2 * (alpha - 1)),
    }


class TestValues:
    def test_quadrature_in_one_dimension(self):
        """The trapezoidal rule on the densities, which converges beyond any power of the step."""
        p, q = gaussians(1)
        # A second coordinate that is the same in both adds nothing.
        for mean, cov in (p, q):
            mean[:, 1], cov[:, 1, 0], cov[:, 0, 1], cov[:, 1, 1] = 0.5, 0.0, 0.0, 2.0
        value = exact(p, q)
        x, step = np.linspace(-40, 40, 40001, retstep=True)
        for i in range(3):
            log_p, log_q = (
                -0.5 * ((x - m[i, 0]) ** 2 / s[i, 0, 0] + np.log(2 * np.pi * s[i, 0, 0])) for m, s in (p, q)
            )

            def integral(log_density, factor=1.0):
                return step * (np.exp(log_density) * factor).sum()

            kl = integral(log_p, log_p - log_q)
            np.testing.assert_allclose(value["kl"][i], kl, rtol=1e-10)
            overlap = integral(log_p + log_q)
            cs = np.log(integral(2 * log_p) * integral(2 * log_q)) - 2 * np.log(overlap)
            np.testing.assert_allclose(value["cs"][i], cs, rtol=1e-10)
            hellinger = 1 - integral((log_p + log_q) / 2)
            np.testing.assert_allclose(value["sq_hellinger"][i], hellinger, rtol=1e-10)
            for k, a in enumerate(RENYI_ORDERS):
                expected = kl if a == 1 else np.log(integral(a * log_p + (1 - a) * log_q)) / (a - 1)
                np.testing.assert_allclose(value["renyi"][k, i], expected, rtol=1e-9, atol=1e-12)

    def test_textbook_formulas(self):
        p, q = gaussians(2)
        value = exact(p, q)
        for i in range(3):
            pair = [[v[i] for v in side] for side in (p, q)]
            expected = closed_forms(*pair, 0.3)
            for name in FUNCTIONS:
                np.testing.assert_allclose(value[name][i], expected[name], rtol=1e-11)
            for k in (0, 1, 5):
                renyi_value = closed_forms(*pair, RENYI_ORDERS[k])["renyi"]
                np.testing.assert_allclose(value["renyi"][k, i], renyi_value, rtol=1e-11, atol=1e-14)

    def test_variances_are_diagonal_covariances(self):
        (m1, _), (m2, _) = gaussians(3)
        v1, v2 = np.random.default_rng(3).uniform(0.5, 2.0, (2, 3, 2))
        matrices = exact((m1, full(v1)), (m2, full(v2)))
        chex.assert_trees_all_close(exact((m1, v1), (m2, v2)), matrices, rtol=1e-10, atol=1e-13)
        with jax.enable_x64(True):
            mixed = jax.jit(FUNCTIONS["kl"])((m1, v1), (m2, full(v2)))
        np.testing.assert_allclose(mixed, matrices["kl"], rtol=1e-10)

    def test_coordinates_do_not_matter(self):
        """KL, Rényi, CS and Hellinger under an affine map, W2 under a rigid motion."""
        p, q = gaussians(4)
        value = exact(p, q)

        def moved(matrix):
            return exact(*((m @ matrix.T + 3.0, matrix @ s @ matrix.T) for m, s in (p, q)))

        sheared, rotated = (
            moved(np.array([[2.0, 1.0], [-0.5, 0.3]])),
            moved(np.array([[0.6, 0.8], [-0.8, 0.6]])),
        )
        for name in ("kl", "cs", "sq_hellinger", "renyi"):
            np.testing.assert_allclose(sheared[name], value[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rotated["w2"], value["w2"], rtol=1e-10)

    def test_identities_between_them(self):
        """Rényi 1/2 is -2 log(1 - H²); CS is Rényi 1/2 of the normalized squares N(m, S/2)."""
        p, q = gaussians(5)
        value = exact(p, q)
        with jax.enable_x64(True):
            half = np.asarray(jax.jit(renyi)(p, q, 0.5))
            squares = ((m, s / 2) for m, s in (p, q))
            normalized = np.asarray(jax.jit(renyi)(*squares, 0.5))
        np.testing.assert_allclose(half, -2 * np.log1p(-value["sq_hellinger"]), rtol=1e-10)
        np.testing.assert_allclose(normalized, value["cs"], rtol=1e-10)


class TestRenyi:
    def test_derivative_in_the_order_passes_through_one(self):
        """At 1 it is half the variance of log(p/q) under p."""
        p, q = gaussians(6)
        with jax.enable_x64(True):
            slope = np.asarray(jax.jit(jax.jacfwd(renyi, 2))(p, q, 1.0))
        for i in range(3):
            (m1, s1), (m2, s2) = [[v[i] for v in side] for side in (p, q)]
            precision = np.linalg.inv(s2)
            # log p/q is quadratic with Hessian H = S2⁻¹ - S1⁻¹ and slope S2⁻¹ δ at m1.
            hessian, tilt = precision - np.linalg.inv(s1), precision @ (m1 - m2)
            variance = np.trace(hessian @ s1 @ hessian @ s1) / 2 + tilt @ s1 @ tilt
            np.testing.assert_allclose(slope[i], variance / 2, rtol=1e-8)

    def test_nondecreasing_in_the_order(self):
        value = exact(*gaussians(7))["renyi"]
        assert (np.diff(value, axis=0) > 0).all()
        np.testing.assert_allclose(value[0], 0.0, atol=1e-14)

    def test_infinite_where_the_integral_diverges(self):
        """(1 - α) S1 + α S2 loses definiteness at α = 1/(1 - 1/4) for S1 = 4 S2."""
        mean = jnp.zeros((3, 2))
        orders = np.array([1.3, 1.34, 5.0], np.float32)

        def value_and_grad(cov1, cov2, alpha):
            return jax.value_and_grad(
                lambda c1, c2: divergences.gaussian_renyi(mean[0], c1, mean[0], c2, alpha=alpha), (0, 1)
            )(cov1, cov2)

        for cov in (jnp.eye(2), jnp.ones(2)):
            value, grads = jax.jit(jax.vmap(value_and_grad, (None, None, 0)))(4.0 * cov, cov, orders)
            np.testing.assert_array_equal(np.isinf(value), [False, True, True])
            chex.assert_tree_all_finite(grads)
            for g in grads:
                np.testing.assert_array_equal(g[1:], 0.0)
                assert np.abs(g[0]).max() > 1

    def test_infinite_order_raises(self):
        with pytest.raises(ValueError, match="alpha must lie in"):
            renyi(*gaussians(0), np.inf)


def bures_gradient(s1, s2):
    """∂/∂S1 = I - T, T = S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2) the optimal map."""
    root = scipy.linalg.sqrtm(s1)
    inverse = np.linalg.inv(root)
    return np.eye(len(s1)) - inverse @ scipy.linalg.sqrtm(root @ s2 @ root) @ inverse


@jax.jit
def w2_of_covariances(s1, s2):
    def distance(a, b):
        zero = jnp.zeros(a.shape[-1], a.dtype)
        return divergences.gaussian_w2(zero, a, zero, b)

    grads = jax.vmap(jax.grad(distance, (0, 1)))(s1, s2)
    return jax.vmap(distance)(s1, s2), grads, jax.vmap(jax.hessian(distance))(s1, s2)


class TestBuresWasserstein:
    def test_commuting_covariances(self):
        """Σ (√λ - √μ)² for shared eigenvectors; repeated eigenvalues among them."""
        basis = np.linalg.qr(np.random.default_rng(8).normal(size=(2, 2)))[0]
        first, second = (
            np.array([[1.0, 4.0], [2.0, 2.0], [9.0, 0.25]]),
            np.array([[4.0, 1.0], [0.5, 0.5], [9.0, 1]]),
        )
        with jax.enable_x64(True):
            value, grads, hessian = w2_of_covariances(
                *(basis * v[:, None] @ basis.T for v in (first, second))
            )
        np.testing.assert_allclose(value, ((np.sqrt(first) - np.sqrt(second)) ** 2).sum(-1), rtol=1e-12)
        expected = basis * (1 - np.sqrt(second / first))[:, None] @ basis.T
        np.testing.assert_allclose(grads[0], expected, atol=1e-12)
        chex.assert_tree_all_finite(hessian)

    def test_gradient_is_identity_minus_the_optimal_map(self):
        (_, s1), (_, s2) = gaussians(9)
        with jax.enable_x64(True):
            _, grads, _ = w2_of_covariances(s1, s2)
        for i in range(3):
            np.testing.assert_allclose(grads[0][i], bures_gradient(s1[i], s2[i]), atol=1e-11)
            np.testing.assert_allclose(grads[1][i], bures_gradient(s2[i], s1[i]), atol=1e-11)

    def test_equal_covariances(self):
        """Distance of the means, zero gradient; at S = I the Hessian along a symmetric H is |H|²/2."""
        (m1, s), (m2, _) = gaussians(10)
        np.testing.assert_allclose(exact((m1, s), (m2, s))["w2"], ((m1 - m2) ** 2).sum(-1), rtol=1e-12)
        eye = np.broadcast_to(np.eye(2), (3, 2, 2))
        single = w2_of_covariances(*(np.asarray(v, np.float32) for v in (s, s)))
        chex.assert_tree_all_finite(single)
        np.testing.assert_allclose(single[1][0], 0.0, atol=1e-5)
        with jax.enable_x64(True):
            value, grads, hessian = w2_of_covariances(eye, eye)
        np.testing.assert_array_equal(value, 0.0)
        np.testing.assert_array_equal(grads[0], 0.0)
        h = np.array([[1.0, 0.3], [0.3, -2.0]])
        np.testing.assert_allclose(np.einsum("ij,bijkl,kl->b", h, hessian, h), (h**2).sum() / 2, rtol=1e-12)

    def test_nearly_singular_covariances(self):
        """Float32 against float64 with condition numbers up to 10⁶."""
        basis = np.array([[0.6, -0.8], [0.8, 0.6]])
        first = np.array([[1.0, 1e-6], [1e-4, 1.0], [1.0, 1e-2]])
        second = np.array([[1.0, 1e-5], [1.0, 1e-3], [1e-2, 1.0]])
        s1, s2 = ((basis * v[:, None] @ basis.T).astype(np.float32) for v in (first, second))
        value, grads, _ = w2_of_covariances(s1, s2)
        chex.assert_tree_all_finite(grads)
        with jax.enable_x64(True):
            expected, _, _ = w2_of_covariances(s1.astype(np.float64), s2.astype(np.float64))
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


class TestNumerics:
    def test_close_gaussians_keep_relative_accuracy(self):
        """Float32 KL and W2 where traces and log-determinants would cancel to noise."""
        (m, s), _ = gaussians(11)
        p = m.astype(np.float32), s.astype(np.float32)
        q = (m + 1e-3).astype(np.float32), (s + 1e-3 * np.array([[1, 0.5], [0.5, -1]])).astype(np.float32)
        value = everything(p, q)
        expected = exact(*([v.astype(np.float64) for v in side] for side in (p, q)))
        for name in ("kl", "w2"):
            np.testing.assert_allclose(value[name], expected[name], rtol=3e-3)

    def test_indefinite_covariance_is_nan(self):
        p = np.zeros((3, 2), np.float32), np.broadcast_to(np.eye(2, dtype=np.float32), (3, 2, 2)).copy()
        q = p[0], p[1].copy()
        q[1][1] = [[1.0, 2.0], [2.0, 1.0]]
        value = everything(p, q)
        for name in ("kl", "cs", "w2", "renyi"):
            np.testing.assert_array_equal(np.isnan(np.atleast_2d(value[name])[-1]), [False, True, False])

    def test_errors_say_which_shape(self):
        with pytest.raises(
            ValueError, match=r"cov2 must have shape \(2, 2\), or \(2,\) for variances; got \(3,\)"
        ):
            divergences.gaussian_kl(jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.ones(3))
