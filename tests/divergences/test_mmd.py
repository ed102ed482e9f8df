"""Maximum mean discrepancy, kernels, energy distance: contract, numpy and scipy, unbiased by enumeration."""

import itertools
from functools import partial

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.divergences.pairwise import median_distance
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(2, 3, 6, 2))
BANDWIDTHS = np.array([0.5, 1.0, 2.0])

KERNELS = {
    "gaussian": partial(divergences.gaussian_kernel, bandwidth=0.8),
    "laplacian": partial(divergences.laplacian_kernel, bandwidth=0.8),
    "multiscale": partial(divergences.multiscale_kernel, bandwidths=BANDWIDTHS),
    "distance": partial(divergences.distance_kernel, exponent=1.3),
    "polynomial": partial(divergences.polynomial_kernel, degree=3),
}

mmd2 = jax.jit(divergences.mmd2, static_argnames=("kernel", "unbiased"))
linear_mmd2 = jax.jit(divergences.linear_mmd2, static_argnames="kernel")
energy = jax.jit(divergences.energy_distance, static_argnames="unbiased")


def samples(seed):
    return tuple(np.random.default_rng(seed).normal(size=(2, 3, 6, 2)))


def with_option(kernel, name):
    return lambda x, y, option: divergences.mmd2(x, y, kernel=partial(kernel, **{name: option}))


def multiscale(x, y, scale):
    kernel = partial(divergences.multiscale_kernel, bandwidths=scale * BANDWIDTHS.astype(scale.dtype))
    return divergences.mmd2(x, y, kernel=kernel)


def unbiased(x, y):
    return divergences.mmd2(x, y, kernel=KERNELS["gaussian"], unbiased=True)


def linear(x, y):
    return divergences.linear_mmd2(x, y, kernel=KERNELS["gaussian"])


def energy_member(x, y, exponent):
    return divergences.energy_distance(x, y, exponent=exponent)


ONES = np.ones((3, 6, 2), np.float32)


def bad(kernel, options=None, **invalid):
    fn = partial(kernel, **(options or {}))
    return (
        lambda: fn(ONES, ONES[..., :1]),
        lambda: fn(ONES, ONES[0]),
        lambda: fn(ONES[0, 0], ONES[0, 0]),
        *(lambda k=k, v=v: fn(ONES, ONES, **{k: v}) for k, vs in invalid.items() for v in vs),
    )


def kernel_member(name, kernel, option, value, **invalid):
    return contract.Member(
        f"mmd2_{name}",
        with_option(kernel, option),
        samples,
        option=value,
        symmetric=True,
        bad=bad(kernel, **invalid),
    )


MEMBERS = (
    kernel_member("gaussian", divergences.gaussian_kernel, "bandwidth", 0.8, bandwidth=(0.0, -1.0)),
    kernel_member("laplacian", divergences.laplacian_kernel, "bandwidth", 0.8, bandwidth=(0.0,)),
    kernel_member("distance", divergences.distance_kernel, "exponent", 1.3, exponent=(0.0, 2.0)),
    kernel_member(
        "polynomial", divergences.polynomial_kernel, "scale", 0.5, degree=(0,), scale=(0.0,), offset=(-1.0,)
    ),
    contract.Member(
        "mmd2_multiscale",
        multiscale,
        samples,
        option=0.9,
        symmetric=True,
        bad=bad(
            divergences.multiscale_kernel,
            {"bandwidths": BANDWIDTHS},
            bandwidths=(1.0, [1.0, -1.0], np.ones(0)),
        ),
    ),
    contract.Member(
        "mmd2_unbiased",
        unbiased,
        samples,
        nonnegative=False,
        zero_at_equality=False,
        symmetric=True,
        bad=(lambda: unbiased(ONES[:, :1], ONES), lambda: divergences.mmd2(ONES, ONES, x_weights=np.ones(6))),
    ),
    contract.Member(
        "linear_mmd2",
        linear,
        samples,
        nonnegative=False,
        symmetric=True,
        bad=(lambda: linear(ONES[:, :1], ONES[:, :1]), lambda: linear(ONES, ONES[:, :5])),
    ),
    contract.Member(
        "energy_distance",
        energy_member,
        samples,
        option=1.3,
        symmetric=True,
        bad=(
            lambda: energy_member(ONES, ONES, 2.0),
            lambda: divergences.energy_distance(ONES[:, :1], ONES, unbiased=True),
        ),
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


def squared(x, y):
    return ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)


FORMULAS = {
    "gaussian": lambda x, y: np.exp(-squared(x, y) / (2 * 0.8**2)),
    "laplacian": lambda x, y: np.exp(-np.sqrt(squared(x, y)) / 0.8),
    "multiscale": lambda x, y: np.mean([np.exp(-squared(x, y) / (2 * b**2)) for b in BANDWIDTHS], 0),
    "distance": lambda x, y: -0.5 * squared(x, y) ** 0.65,
    "polynomial": lambda x, y: (x @ np.swapaxes(y, -1, -2) / 2 + 1) ** 3,
}


def slow_mmd2(x, y, formula, *, u_statistic=False):
    def within(z):
        gram, n = formula(z, z), z.shape[-2]
        if u_statistic:
            return (gram * (1 - np.eye(n))).sum((-1, -2)) / (n * (n - 1))
        return gram.mean((-1, -2))

    return within(x) + within(y) - 2 * formula(x, y).mean((-1, -2))


class TestMMD:
    @pytest.mark.parametrize("name", KERNELS)
    def test_both_statistics_are_their_formulas(self, name):
        kernel, formula = KERNELS[name], FORMULAS[name]
        with jax.enable_x64(True):
            np.testing.assert_allclose(mmd2(X, Y, kernel=kernel), slow_mmd2(X, Y, formula), rtol=1e-11)
            np.testing.assert_allclose(
                mmd2(X, Y, kernel=kernel, unbiased=True),
                slow_mmd2(X, Y, formula, u_statistic=True),
                rtol=1e-11,
            )

    def test_v_statistic_is_the_u_statistic_shrunk_toward_the_diagonal(self):
        """Within a sample of n with k(x, x) = 1: V = (1 - 1/n) U + 1/n, so V - U = Σ (1 - U)/n."""
        gram = FORMULAS["gaussian"]
        within = sum((gram(z, z).sum((1, 2)) - 6) / 30 for z in (X, Y))
        with jax.enable_x64(True):
            gap = mmd2(X, Y, kernel=KERNELS["gaussian"]) - mmd2(
                X, Y, kernel=KERNELS["gaussian"], unbiased=True
            )
        np.testing.assert_allclose(gap, (2 - within) / 6, rtol=1e-11)

    def test_unbiased_over_all_samples(self):
        """The mean over all samples of two and two from three atoms each is the population's value."""
        atoms_x, atoms_y = RNG.normal(size=(2, 3, 2))
        p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
        pairs = np.array(list(itertools.product(range(3), repeat=4)))
        first, second = pairs[:, :2], pairs[:, 2:]
        chance = p[first].prod(1) * q[second].prod(1)
        kernel = KERNELS["gaussian"]
        with jax.enable_x64(True):
            population = float(mmd2(atoms_x, atoms_y, kernel=kernel, x_weights=p, y_weights=q))
            drawn = atoms_x[first], atoms_y[second]
            quadratic = np.asarray(mmd2(*drawn, kernel=kernel, unbiased=True))
            streamed = np.asarray(linear_mmd2(*drawn, kernel=kernel))
        np.testing.assert_allclose(chance @ quadratic, population, rtol=1e-12)
        np.testing.assert_allclose(chance @ streamed, population, rtol=1e-12)
        assert min(quadratic.min(), streamed.min()) < 0 < population

    def test_polynomial_kernel_sees_moments_up_to_its_degree(self):
        """Equal mean and variance, different skewness: 0 at degree 2, |third moments' gap|² at degree 3."""
        x = np.array([[-1.0], [-1], [-1], [-1], [0.5], [0.5], [0.5], [2.5]])
        x = (x - x.mean()) / x.std()
        with jax.enable_x64(True):
            first, second, third = (
                mmd2(x, -x, kernel=partial(divergences.polynomial_kernel, degree=k)) for k in (1, 2, 3)
            )
        np.testing.assert_allclose([first, second], 0.0, atol=1e-13)
        np.testing.assert_allclose(third, (2 * (x**3).mean()) ** 2, rtol=1e-10)

    def test_default_bandwidth_moves_with_the_unit(self):
        x, y = X.astype(np.float32), Y.astype(np.float32)
        value = mmd2(x, y)
        np.testing.assert_allclose(mmd2(64 * x, 64 * y), value, rtol=1e-5)
        for i in range(3):
            pooled = np.concatenate([X[i], Y[i]])
            i_upper = np.triu_indices(12, 1)
            bandwidth = np.median(np.sqrt(squared(pooled, pooled))[i_upper])
            expected = slow_mmd2(X[i], Y[i], lambda a, b, s=bandwidth: np.exp(-squared(a, b) / (2 * s**2)))
            np.testing.assert_allclose(value[i], expected, rtol=1e-4)

    def test_order_does_not_matter(self):
        with jax.enable_x64(True):
            value = mmd2(X[:, ::-1], np.roll(Y, 2, 1), kernel=KERNELS["gaussian"])
            np.testing.assert_allclose(value, mmd2(X, Y, kernel=KERNELS["gaussian"]), rtol=1e-12)

    def test_one_point_has_no_unbiased_estimate(self):
        with pytest.raises(ValueError, match="y must hold at least 2 points for an unbiased estimate; got 1"):
            divergences.mmd2(ONES, ONES[:, :1], kernel=KERNELS["gaussian"], unbiased=True)


class TestLinearMMD:
    def test_is_its_formula_and_drops_the_odd_point(self):
        gram = FORMULAS["gaussian"]
        expected = np.mean(
            [
                [
                    gram(x[[i]], x[[i + 1]])
                    + gram(y[[i]], y[[i + 1]])
                    - gram(x[[i]], y[[i + 1]])
                    - gram(x[[i + 1]], y[[i]])
                ]
                for i in (0, 2)
                for x, y in [(X[0, :5], Y[0, :5])]
            ]
        )
        with jax.enable_x64(True):
            value = linear_mmd2(X[0, :5], Y[0, :5], kernel=KERNELS["gaussian"])
        np.testing.assert_allclose(value, expected, rtol=1e-12)

    def test_bandwidth_per_batch_row(self):
        """As many rows as pairs, so that a misplaced axis would go unseen by shape checks."""
        scales = jnp.asarray([0.5, 1.0, 2.0], jnp.float32)
        x, y = X.astype(np.float32), Y.astype(np.float32)

        def estimate(x, y, scale):
            kernel = partial(divergences.gaussian_kernel, bandwidth=scale)
            return divergences.linear_mmd2(x, y, kernel=kernel)

        whole, each = jax.jit(lambda *args: (estimate(*args), jax.vmap(estimate)(*args)))(x, y, scales)
        np.testing.assert_allclose(whole, each, rtol=1e-5)

    def test_weights_multiply_along_a_pair(self):
        """Padding the last pair away with NaN equals the first two pairs alone."""
        weights = np.array([1, 1, 1, 1, 1, 0], np.float32) * np.ones((3, 1), np.float32)
        x, y = X.astype(np.float32), Y.astype(np.float32)
        x_padded = x.copy()
        x_padded[:, 5] = np.nan
        value = linear_mmd2(x_padded, y, kernel=KERNELS["gaussian"], x_weights=weights)
        short = linear_mmd2(x[:, :4], y[:, :4], kernel=KERNELS["gaussian"])
        np.testing.assert_allclose(value, short, rtol=1e-5, atol=1e-7)


class TestEnergy:
    def test_equals_scipys_square_in_one_dimension(self):
        u, v = RNG.uniform(size=(2, 3, 6))
        with jax.enable_x64(True):
            value = energy(X[..., :1], Y[..., :1], x_weights=u, y_weights=v)
        for i in range(3):
            expected = scipy.stats.energy_distance(X[i, :, 0], Y[i, :, 0], u[i], v[i]) ** 2
            np.testing.assert_allclose(value[i], expected, rtol=1e-11)

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_is_twice_the_discrepancy_of_the_distance_kernel(self, unbiased):
        with jax.enable_x64(True):
            half = mmd2(X, Y, kernel=KERNELS["distance"], unbiased=unbiased)
            value = energy(X, Y, exponent=1.3, unbiased=unbiased)
        np.testing.assert_allclose(value, 2 * np.asarray(half), rtol=1e-11)

    @hypothesis.given(hnp.arrays(np.float64, (2, 3, 6, 2), elements=st.floats(-1e3, 1e3)))
    def test_nonnegative(self, points):
        with jax.enable_x64(True):
            assert np.asarray(energy(*points, exponent=1.3)).min() >= -1e-8


class TestNumerics:
    def test_weights_are_repetitions(self):
        """Weight 2 is a point given twice, weight 0 an absent one that may be NaN."""
        repeats = np.array([2, 1, 0, 1, 3, 0])
        present = repeats > 0
        weights = (repeats * np.ones((3, 1))).astype(np.float32)
        padded = np.where(present[:, None], X, np.nan).astype(np.float32)

        @jax.jit
        def value_and_gradient(x, y):
            def distance(x):
                return divergences.mmd2(x, y, kernel=KERNELS["laplacian"], x_weights=weights)

            value, pull = jax.vjp(distance, x)
            return value, pull(jnp.ones_like(value))[0]

        value, gradient = value_and_gradient(padded, Y.astype(np.float32))
        expected = slow_mmd2(np.repeat(X, repeats, axis=1), Y, FORMULAS["laplacian"])
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[:, ~present], 0.0)

    @pytest.mark.parametrize("dimension", [2, 20])
    def test_coinciding_points_have_finite_gradients(self, dimension):
        """Distances of zero within and across; past 16 dimensions from inner products."""
        x = 3.0 + RNG.normal(size=(6, dimension)).astype(np.float32)
        x[1] = x[0]

        @jax.jit
        def gradient(x, y):
            def total(x, y):
                laplacian = divergences.mmd2(x, y, kernel=KERNELS["laplacian"])
                return laplacian + divergences.energy_distance(x, y, exponent=jnp.float32(0.7))

            return jax.value_and_grad(total, (0, 1))(x, y)

        value, grads = gradient(x, x)
        np.testing.assert_allclose(value, 0.0, atol=1e-3 if dimension > 16 else 1e-6)
        chex.assert_tree_all_finite((grads, gradient(x, x[::-1] + 1)))

    def test_many_dimensions_agree_with_numpy(self):
        x, y = 100.0 + RNG.normal(size=(2, 6, 20))
        kernel = partial(divergences.gaussian_kernel, bandwidth=5.0)
        expected = slow_mmd2(x, y, lambda a, b: np.exp(-squared(a, b) / 50))
        value = mmd2(x.astype(np.float32), y.astype(np.float32), kernel=kernel)
        np.testing.assert_allclose(value, expected, rtol=1e-3)


class TestMedianDistance:
    def test_by_hand(self):
        """Distances 1, 4, 5; all points equal; an absent one; more than half the distances zero."""
        points = np.array([[0.0, 1, 5], [0, 0, 0], [2, 2, 3], [0, 0, 1]], np.float32)[..., None]
        weights = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32)

        @jax.jit
        def value_and_gradient(x):
            value, pull = jax.vjp(lambda x: median_distance(x, x_weights=weights), x)
            return value, pull(jnp.ones_like(value))[0]

        value, gradient = value_and_gradient(points)
        np.testing.assert_array_equal(value, [4.0, 1.0, 1.0, 1.0])
        np.testing.assert_array_equal(gradient, 0.0)
        mostly_equal = np.array([0, 0, 0, 0, 6], np.float32)[:, None]
        np.testing.assert_allclose(jax.jit(median_distance)(mostly_equal), 4 * 6 / 10)
        np.testing.assert_array_equal(median_distance(points[:, :1]), 1.0)
