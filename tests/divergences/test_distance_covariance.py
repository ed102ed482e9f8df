"""Distance covariance: contract, numpy double centering, unbiasedness by enumeration, intersections."""

import itertools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(35)
X, Y, Z = RNG.normal(size=(3, 3, 6, 2))

dcov2 = jax.jit(divergences.dcov2, static_argnames="unbiased")
dcor2 = jax.jit(divergences.dcor2, static_argnames="unbiased")
joint = jax.jit(divergences.joint_dcov2)
concat = jax.jit(divergences.concat_dcov2, static_argnames=("standardize", "unbiased"))


def samples(seed):
    return tuple(np.random.default_rng(seed).normal(size=(2, 3, 6, 2)))


def with_attributes(seed):
    x, y, z = np.random.default_rng(seed).normal(size=(3, 3, 6, 2))
    return x, {"a": y, "b": z}


def joint_member(x, attributes, c):
    return divergences.joint_dcov2([x, attributes["a"], attributes["b"]], c=c)


def concat_member(x, attributes):
    return divergences.concat_dcov2(x, [attributes["a"], attributes["b"]])


ONES = np.ones((3, 6, 2), np.float32)


def bad(fn):
    return (
        lambda: fn(ONES, ONES[:, :5]),
        lambda: fn(ONES[0, 0], ONES[0, 0]),
        lambda: fn(ONES, ONES, weights=np.ones(6)),
        lambda: fn(ONES[:, :3], ONES[:, :3], unbiased=True),
        lambda: fn(ONES, ONES, unbiased=True, weights=2 * np.ones((3, 6))),
    )


def unbiased_dcov2(x, y):
    return divergences.dcov2(x, y, unbiased=True)


MEMBERS = (
    contract.Member(
        "dcov2",
        divergences.dcov2,
        samples,
        symmetric=True,
        zero_at_equality=False,
        bad=bad(divergences.dcov2),
    ),
    contract.Member(
        "dcov2_unbiased", unbiased_dcov2, samples, nonnegative=False, symmetric=True, zero_at_equality=False
    ),
    contract.Member(
        "dcor2",
        divergences.dcor2,
        samples,
        symmetric=True,
        zero_at_equality=False,
        bad=bad(divergences.dcor2),
    ),
)
# Their arguments are of two kinds, so that neither may stand in the other's place as `check_values` asks.
JOINT_MEMBERS = (
    contract.Member(
        "joint_dcov2",
        joint_member,
        with_attributes,
        option=0.8,
        bad=(
            lambda: divergences.joint_dcov2([ONES]),
            lambda: divergences.joint_dcov2([ONES, ONES[:, :5]]),
            lambda: divergences.joint_dcov2([ONES, ONES], c=-1.0),
        ),
    ),
    contract.Member(
        "concat_dcov2",
        concat_member,
        with_attributes,
        bad=(
            lambda: divergences.concat_dcov2(ONES, []),
            lambda: divergences.concat_dcov2(ONES, [ONES], standardize=[True, False]),
            lambda: divergences.concat_dcov2(ONES, [ONES, ONES[:, :5]]),
        ),
    ),
)


@pytest.mark.paper(35)
class TestContract(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.CALLS))
    def test_calls(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS + JOINT_MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


def distances(x):
    return np.sqrt(((x[..., :, None, :] - x[..., None, :, :]) ** 2).sum(-1))


def centered(x):
    a = distances(x)
    return a - a.mean(-1, keepdims=True) - a.mean(-2, keepdims=True) + a.mean((-1, -2), keepdims=True)


def u_centered(x):
    a = distances(x)
    n = a.shape[-1]
    rows, total = a.sum(-1, keepdims=True), a.sum((-1, -2), keepdims=True)
    result = a - (rows + np.swapaxes(rows, -1, -2)) / (n - 2) + total / ((n - 1) * (n - 2))
    return result * (1 - np.eye(n))


def slow_dcov2(x, y):
    return (centered(x) * centered(y)).mean((-1, -2))


def slow_unbiased(x, y):
    n = x.shape[-2]
    return (u_centered(x) * u_centered(y)).sum((-1, -2)) / (n * (n - 3))


@pytest.mark.paper(35)
class TestFormulas:
    def test_three_points_by_hand(self):
        """x = 0, 1, 2 has A = 1/9 [-10 2 8; 2 -4 2; 8 2 -10]; y = 0, 1, 0 is uncorrelated but dependent."""
        x, y = np.array([[0.0], [1], [2]]), np.array([[0.0], [1], [0]])
        assert np.corrcoef(x[:, 0], y[:, 0])[0, 1] == 0
        with jax.enable_x64(True):
            np.testing.assert_allclose(dcov2(x, x), 40 / 81, rtol=1e-14)
            np.testing.assert_allclose(dcov2(x, y), 8 / 81, rtol=1e-14)

    def test_double_centering(self):
        with jax.enable_x64(True):
            values = dcov2(X, Y), dcov2(X, Y, unbiased=True), dcor2(X, Y), dcor2(X, Y, unbiased=True)
        for fn, plain, ratio in ((slow_dcov2, *values[::2]), (slow_unbiased, *values[1::2])):
            np.testing.assert_allclose(plain, fn(X, Y), rtol=1e-11)
            np.testing.assert_allclose(ratio, fn(X, Y) / np.sqrt(fn(X, X) * fn(Y, Y)), rtol=1e-11)

    def test_joint(self):
        u = [-centered(v) for v in (X, Y, Z)]
        with jax.enable_x64(True):
            for c in (0.0, 0.7, 1.0):
                expected = ((u[0] + c) * (u[1] + c) * (u[2] + c)).mean((-1, -2)) - c**3
                np.testing.assert_allclose(joint([X, Y, Z], c=c), expected, rtol=1e-11)

    def test_joint_of_two_is_the_distance_covariance(self):
        with jax.enable_x64(True):
            for c in (1.0, 0.0, 3.0):
                np.testing.assert_allclose(joint([X, Y], c=c), dcov2(X, Y), rtol=1e-11)

    def test_joint_weighs_pairs_by_c(self):
        """For three vectors: the triple term + c times the sum of the pairwise distance covariances."""
        with jax.enable_x64(True):
            pairs = dcov2(X, Y) + dcov2(X, Z) + dcov2(Y, Z)
            np.testing.assert_allclose(
                joint([X, Y, Z], c=2.5) - joint([X, Y, Z], c=0.0), 2.5 * pairs, rtol=1e-10
            )

    def test_concatenation(self):
        scaled = [(v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True) for v in (Y, Z)]
        both = np.concatenate([10 * Y, Z], -1)
        mixed = np.concatenate([scaled[0], Z], -1)
        with jax.enable_x64(True):
            attributes = [10 * Y, Z]
            raw = concat(X, attributes, standardize=False)
            np.testing.assert_allclose(raw, slow_dcov2(X, both), rtol=1e-11)
            value = concat(X, attributes)
            np.testing.assert_allclose(value, slow_dcov2(X, np.concatenate(scaled, -1)), rtol=1e-11)
            value = concat(X, attributes, standardize=(True, False), unbiased=True)
            np.testing.assert_allclose(value, slow_unbiased(X, mixed), rtol=1e-11)

    def test_many_dimensions(self):
        """Past 16 dimensions distances come from inner products."""
        x = 5.0 + RNG.normal(size=(6, 20))
        x[1] = x[0]
        value, gradient = jax.jit(jax.value_and_grad(divergences.dcov2))(
            *(v.astype(np.float32) for v in (x, x))
        )
        np.testing.assert_allclose(value, slow_dcov2(x, x), rtol=1e-3)
        chex.assert_tree_all_finite(gradient)


@pytest.mark.paper(35)
class TestUnbiased:
    def test_mean_over_all_permutations_is_zero(self):
        """Under independence every pairing is as likely; the V-statistic stays positive."""
        orders = np.array(list(itertools.permutations(range(5))))
        x, y = X[0, :5], Y[0, :5]
        with jax.enable_x64(True):
            every = np.broadcast_to(x, (len(orders), 5, 2)), y[orders]
            unbiased, biased = np.asarray(dcov2(*every, unbiased=True)), np.asarray(dcov2(*every))
        assert np.abs(unbiased).max() > 0.01
        np.testing.assert_allclose(unbiased.mean(), 0.0, atol=1e-14)
        assert biased.min() > 0

    def test_mean_over_all_samples_is_the_population_value(self):
        """All 81 samples of four from three atoms, which the weighted V-statistic gives exactly."""
        x, y = np.array([[0.0], [1], [3]]), np.array([[1.0], [0], [0.5]])
        mass = np.array([0.5, 0.3, 0.2])
        index = np.array(list(itertools.product(range(3), repeat=4)))
        with jax.enable_x64(True):
            population = float(dcov2(x, y, weights=mass))
            estimates = np.asarray(dcov2(x[index], y[index], unbiased=True))
        np.testing.assert_allclose(mass[index].prod(1) @ estimates, population, rtol=1e-12)
        assert population > 0.1


def balanced(n):
    """Two fair coins, every combination equally often, and their exclusive or: [n, 1] each."""
    cells = np.resize([[0, 0], [0, 1], [1, 0], [1, 1]], (n, 2)).astype(np.float64)
    s1, s2 = cells[:, :1], cells[:, 1:]
    return s1, s2, (s1 != s2).astype(np.float64)


@pytest.mark.paper(35)
class TestIntersections:
    def test_exclusive_or_exactly(self):
        """Pairwise 0; joint 1/8; concatenated 1/4 - √2/8, twice that at unit variance."""
        s1, s2, y = balanced(8)
        with jax.enable_x64(True):
            np.testing.assert_allclose([dcov2(y, s1), dcov2(y, s2), dcov2(s1, s2)], 0.0, atol=1e-15)
            np.testing.assert_allclose(joint([y, s1, s2]), 1 / 8, rtol=1e-12)
            np.testing.assert_allclose(
                concat(y, [s1, s2], standardize=False), 1 / 4 - np.sqrt(2) / 8, rtol=1e-12
            )
            np.testing.assert_allclose(concat(y, [s1, s2]), 1 / 2 - np.sqrt(2) / 4, rtol=1e-12)

    def test_noisy_exclusive_or_stands_out_of_independence(self):
        """Against the mean over 15 permutations: concatenated 40 times, joint 25, pairwise below 5."""
        rng = np.random.default_rng(0)
        s1, s2, y = balanced(600)
        y = y + 0.1 * rng.normal(size=y.shape)
        every = np.stack([y, *(rng.permutation(y) for _ in range(15))])

        @jax.jit
        def dependence(y):
            return jnp.stack(
                [
                    divergences.concat_dcov2(y, [s1, s2], standardize=False),
                    divergences.joint_dcov2([y, s1, s2]),
                    divergences.dcov2(y, s1),
                    divergences.dcov2(y, s2),
                ]
            )

        s1, s2 = s1.astype(np.float32), s2.astype(np.float32)
        values = np.array([dependence(v) for v in every.astype(np.float32)])
        ratio = values[0] / values[1:].mean(0)
        assert ratio[0] > 40
        assert ratio[1] > 25
        assert ratio[2:].max() < 5

    def test_binary_attributes_have_finite_gradients(self):
        """Ties in the attributes and in the predictions, in float32."""
        s1, s2, y = (v.astype(np.float32) for v in balanced(8))

        def total(y):
            joint_part = divergences.joint_dcov2([y, s1, s2])
            return (
                divergences.concat_dcov2(y, [s1, s2]) + joint_part + divergences.dcor2(y, s1, unbiased=True)
            )

        gradient = jax.jit(jax.grad(total))
        chex.assert_tree_all_finite((gradient(y), gradient(jnp.zeros_like(y))))
        np.testing.assert_array_equal(gradient(jnp.zeros_like(y)), 0.0)


@pytest.mark.paper(35)
class TestProperties:
    @hypothesis.given(hnp.arrays(np.float64, (2, 3, 6, 2), elements=st.floats(-5, 5)))
    def test_correlation_lies_between_zero_and_one(self, points):
        with jax.enable_x64(True):
            value = np.asarray(dcor2(*points))
        assert value.min() >= -1e-10
        assert value.max() <= 1 + 1e-10

    def test_rotation_translation_and_scale(self):
        rotation = np.array([[0.6, 0.8], [-0.8, 0.6]])
        with jax.enable_x64(True):
            moved = dcov2(3.0 * X @ rotation + 7.0, -0.5 * Y)
            np.testing.assert_allclose(moved, 1.5 * dcov2(X, Y), rtol=1e-10)
            np.testing.assert_allclose(dcor2(X, 2.0 * X @ rotation + 1.0), 1.0, rtol=1e-10)

    def test_independent_grid_is_zero(self):
        """All pairs of three x and two y: the empirical law is a product."""
        x = np.repeat(X[:, :3], 2, axis=1)
        y = np.tile(Y[:, :2], (1, 3, 1))
        with jax.enable_x64(True):
            np.testing.assert_allclose(dcov2(x, y), 0.0, atol=1e-14)
            np.testing.assert_allclose(joint([x, y, np.ones_like(x)]), 0.0, atol=1e-14)

    def test_constant_has_no_correlation(self):
        for constant in (0.0, 0.1):
            np.testing.assert_array_equal(dcor2(X.astype(np.float32), np.full_like(ONES, constant)), 0.0)

    def test_order_of_the_examples_does_not_matter(self):
        order = np.array([3, 1, 5, 0, 2, 4])
        moved = [v[:, order] for v in (X, Y, Z)]
        with jax.enable_x64(True):
            np.testing.assert_allclose(joint(moved, c=0.5), joint([X, Y, Z], c=0.5), rtol=1e-11)
            np.testing.assert_allclose(
                dcov2(*moved[:2], unbiased=True), dcov2(X, Y, unbiased=True), rtol=1e-11
            )

    def test_weights_are_repetitions(self):
        """Weight 2 is an example given twice, weight 0 an absent one that may be NaN."""
        repeats = np.array([2, 1, 0, 1, 3, 0])
        present = repeats > 0
        padded = [np.where(present[:, None], v, np.nan).astype(np.float32) for v in (X, Y, Z)]

        @jax.jit
        def terms_and_gradients(arrays, weights):
            def terms(arrays):
                x, *rest = arrays
                return divergences.joint_dcov2(arrays, weights=weights), divergences.concat_dcov2(
                    x, rest, weights=weights
                )

            values, pull = jax.vjp(terms, arrays)
            return values, pull(jax.tree.map(lambda v: v / v, values))[0]

        weights = (repeats * np.ones((3, 1))).astype(np.float32)
        values, grads = terms_and_gradients(padded, weights)
        x, y, z = (np.repeat(v, repeats, axis=1) for v in (X, Y, Z))
        u = [-centered(v) for v in (x, y, z)]
        np.testing.assert_allclose(
            values[0], ((u[0] + 1) * (u[1] + 1) * (u[2] + 1)).mean((-1, -2)) - 1, rtol=1e-4
        )
        scaled = [(v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True) for v in (y, z)]
        np.testing.assert_allclose(values[1], slow_dcov2(x, np.concatenate(scaled, -1)), rtol=1e-4)
        chex.assert_tree_all_finite(grads)
        for g in grads:
            np.testing.assert_array_equal(g[:, ~present], 0.0)

    def test_unbiased_skips_absent_examples(self):
        present = np.array([True, True, False, True, True, False])
        padded = [np.where(present[:, None], v, np.nan) for v in (X, Y)]
        with jax.enable_x64(True):
            value = dcov2(*padded, unbiased=True, weights=present * np.ones((3, 1)))
        np.testing.assert_allclose(value, slow_unbiased(X[:, present], Y[:, present]), rtol=1e-11)

    def test_errors_say_what_to_do(self):
        with pytest.raises(ValueError, match="unbiased=True needs at least 4 examples; got 3"):
            divergences.dcov2(ONES[:, :3], ONES[:, :3], unbiased=True)
        with pytest.raises(ValueError, match="arrays must hold at least 2 arrays; got 1"):
            divergences.joint_dcov2([ONES])
        with pytest.raises(ValueError, match=r"attributes\[1\] must hold the same examples"):
            divergences.concat_dcov2(ONES, [ONES, ONES[:, :4]])
