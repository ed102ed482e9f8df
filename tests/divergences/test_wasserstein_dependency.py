"""The dual value of a critic: contract, exact measures by linear programs, unbiasedness by enumeration."""

import itertools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from absl.testing import parameterized
from scipy.optimize import linprog

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(17)
SCORES = RNG.normal(size=(3, 5, 5))

dependency = jax.jit(divergences.wasserstein_dependency, static_argnames="unbiased")


def scores_and_weights(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 5, 5)), rng.uniform(0.5, 2.0, (3, 5))


def weighted(scores, weights):
    return divergences.wasserstein_dependency(scores, weights=weights)


def unbiased(scores, weights):
    return divergences.wasserstein_dependency(scores, weights=weights, unbiased=True)


ONES = np.ones((3, 5, 5), np.float32)
# The arguments are of two kinds, so that neither may stand in the other's place as `check_values` asks.
MEMBERS = (
    contract.Member(
        "wasserstein_dependency",
        weighted,
        scores_and_weights,
        nonnegative=False,
        bad=(
            lambda: weighted(ONES[:, :4], None),
            lambda: weighted(ONES[0, 0], None),
            lambda: weighted(ONES, np.ones(5)),
        ),
    ),
    contract.Member(
        "wasserstein_dependency_unbiased",
        unbiased,
        scores_and_weights,
        nonnegative=False,
        bad=(lambda: unbiased(ONES[:, :1, :1], None),),
    ),
)


@pytest.mark.paper(17)
class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


def grid_metric(m, order):
    """Distances between the m² pairs (x, y) of the grid {0, …, m - 1} / m, [m², m²]."""
    pairs = np.array(list(itertools.product(np.arange(m) / m, repeat=2)))
    return np.linalg.norm(pairs[:, None] - pairs, ord=order, axis=-1)


def exact(joint, metric):
    """The measure and its best critic [m, n]: max <f, joint - product> with f(a) - f(b) <= metric(a, b)."""
    gap = (joint - np.outer(joint.sum(1), joint.sum(0))).ravel()
    k = len(gap)
    a, b = np.nonzero(~np.eye(k, dtype=bool))
    slopes = np.zeros((len(a), k))
    slopes[np.arange(len(a)), a], slopes[np.arange(len(a)), b] = 1, -1
    pinned = [(0, 0)] + [(None, None)] * (k - 1)
    solution = linprog(-gap, slopes, metric[a, b], bounds=pinned, method="highs")
    assert solution.status == 0
    return -solution.fun, solution.x.reshape(joint.shape)


@pytest.mark.paper(17)
class TestExact:
    @pytest.mark.parametrize(("order", "measure"), [(1, 35 / 108), (2, 0.2706543)])
    def test_best_critic_certifies_the_measure_of_the_diagonal(self, order, measure):
        """y = x uniform on six points: E|x - x'| = 35/108 in the sum metric, more than that / √2 in L2."""
        value, critic = exact(np.eye(6) / 6, grid_metric(6, order))
        np.testing.assert_allclose(value, measure, atol=1e-7)
        with jax.enable_x64(True):
            np.testing.assert_allclose(dependency(critic), value, rtol=1e-9)
        np.testing.assert_allclose(dependency(critic.astype(np.float32)), value, rtol=1e-5)
        assert value > 35 / 108 / np.sqrt(2)

    @hypothesis.settings(max_examples=5)
    @hypothesis.given(hnp.arrays(np.float64, (6, 6), elements=st.floats(-1, 1)))
    def test_no_lipschitz_critic_certifies_more(self, heights):
        """Any function becomes 1-Lipschitz as min_b h(b) + d(a, b); its value stays below the measure."""
        for order, measure in ((1, 35 / 108), (2, 0.2706544)):
            critic = (heights.ravel() + grid_metric(6, order)).min(-1).reshape(6, 6)
            assert dependency(critic.astype(np.float32)) <= measure + 1e-6

    def test_distance_is_the_best_critic_of_the_sum_metric(self):
        x = np.arange(6) / 6
        with jax.enable_x64(True):
            np.testing.assert_allclose(dependency(-np.abs(x[:, None] - x)), 35 / 108, rtol=1e-12)

    def test_product_measure_is_zero(self):
        """By the linear program, and by any critic on a batch whose empirical law is a product."""
        p, q = RNG.dirichlet(np.ones(4)), RNG.dirichlet(np.ones(4))
        np.testing.assert_allclose(exact(np.outer(p, q), grid_metric(4, 2))[0], 0.0, atol=1e-12)
        x, y = (i.ravel() for i in np.mgrid[:2, :3])
        critic = RNG.normal(size=(2, 3))
        with jax.enable_x64(True):
            np.testing.assert_allclose(dependency(critic[x[:, None], y]), 0.0, atol=1e-15)


@pytest.mark.paper(17)
class TestEstimate:
    def test_both_forms_are_their_formulas(self):
        true = np.trace(SCORES, axis1=1, axis2=2)
        every = SCORES.sum((1, 2))
        with jax.enable_x64(True):
            np.testing.assert_allclose(dependency(SCORES), true / 5 - every / 25, rtol=1e-11)
            value = dependency(SCORES, unbiased=True)
            np.testing.assert_allclose(value, true / 5 - (every - true) / 20, rtol=1e-11)

    def test_unbiased_over_all_samples(self):
        """All samples of three pairs from four atoms; all pairs shrink the mean by 1 - 1/3."""
        atoms, mass = np.array([[0, 0], [0, 1], [1, 1], [2, 0]]), np.array([0.4, 0.1, 0.3, 0.2])
        critic = RNG.normal(size=(3, 2))
        joint = np.zeros((3, 2))
        joint[tuple(atoms.T)] = mass
        population = np.sum((joint - np.outer(joint.sum(1), joint.sum(0))) * critic)
        index = np.array(list(itertools.product(range(4), repeat=3)))
        drawn = atoms[index]
        scores = critic[drawn[:, :, None, 0], drawn[:, None, :, 1]]
        chance = mass[index].prod(1)
        with jax.enable_x64(True):
            distinct, all_pairs = (
                np.asarray(dependency(scores, unbiased=True)),
                np.asarray(dependency(scores)),
            )
        np.testing.assert_allclose(chance @ distinct, population, rtol=1e-12)
        np.testing.assert_allclose(chance @ all_pairs, population * 2 / 3, rtol=1e-12)

    def test_grows_with_the_unit_past_log_n(self):
        """Linear in the scores, whereas the contrastive bound stays below log N."""
        x = np.arange(16, dtype=np.float32)
        values = [float(dependency(-scale * np.abs(x[:, None] - x))) for scale in (0.25, 1.0, 4.0)]
        np.testing.assert_allclose(values, 255 / 48 * np.array([0.25, 1.0, 4.0]), rtol=1e-6)
        assert values[0] < np.log(16) < values[1]

    def test_terms_of_one_variable_do_not_matter(self):
        """Even if they are large, in float32."""
        a, b = 1e4 * RNG.integers(-5, 5, (2, 5))
        scores = np.round(64 * SCORES) / 64
        for flag in (False, True):
            value = dependency((scores + a[:, None] + b).astype(np.float32), unbiased=flag)
            np.testing.assert_allclose(value, dependency(scores.astype(np.float32), unbiased=flag), atol=5e-3)

    def test_weights_are_repetitions(self):
        """Weight 2 is a pair given twice, weight 0 an absent one, whose scores may be NaN."""
        repeats = np.array([2, 1, 0, 1, 3])
        present = repeats > 0
        padded = np.where(present[:, None] & present, SCORES, np.nan).astype(np.float32)
        weights = (repeats * np.ones((3, 1))).astype(np.float32)

        @jax.jit
        def value_and_gradient(scores):
            value, pull = jax.vjp(lambda s: weighted(s, weights), scores)
            return value, pull(value / value)[0]

        value, gradient = value_and_gradient(padded)
        index = np.repeat(np.arange(5), repeats)
        with jax.enable_x64(True):
            expected = dependency(SCORES[:, index[:, None], index])
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[:, ~present], 0.0)
        np.testing.assert_array_equal(gradient[:, :, ~present], 0.0)

    def test_errors_say_what_to_do(self):
        with pytest.raises(ValueError, match="scores must be square in their last two axes"):
            weighted(ONES[:, :4], None)
        with pytest.raises(ValueError, match="scores must hold at least 2 points for an unbiased estimate"):
            unbiased(ONES[:, :1, :1], None)
