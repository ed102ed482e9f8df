"""Divergence between groups: scipy on numpy's histograms, limits, empty groups, padding, intersections."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from jaxdiv import diagnostics

RNG = np.random.default_rng(35)
GROUPS = np.resize([0, 1, 2], 60)
SCORES = (RNG.beta(2.0, 3.0, 60) + 0.2 * GROUPS).astype(np.float32)

group_jsd = jax.jit(diagnostics.group_jsd, static_argnames=("num_groups", "bins"))


def reference(scores, groups, num_groups, bins, limits, weights=None):
    histograms = [
        np.histogram(
            np.clip(scores[groups == g], *limits),
            bins,
            limits,
            weights=None if weights is None else weights[groups == g],
        )[0]
        for g in range(num_groups)
    ]
    return np.array(
        [[scipy.spatial.distance.jensenshannon(a, b) ** 2 for a in histograms] for b in histograms]
    )


@pytest.mark.paper(35)
class TestGroupJSD:
    def test_equals_scipy(self):
        """Default limits are the extremes; scipy returns the root of the divergence."""
        result = group_jsd(SCORES, GROUPS, num_groups=3, bins=7)
        expected = reference(SCORES, GROUPS, 3, 7, (SCORES.min(), SCORES.max()))
        np.testing.assert_allclose(result.pairwise, expected, rtol=1e-5, atol=1e-7)
        pairs = expected[np.triu_indices(3, 1)]
        np.testing.assert_allclose([result.largest, result.average], [pairs.max(), pairs.mean()], rtol=1e-5)

    def test_values_beyond_the_limits_fall_into_the_outer_bins(self):
        result = group_jsd(SCORES, GROUPS, num_groups=3, bins=7, limits=(0.4, 0.8))
        expected = reference(SCORES, GROUPS, 3, 7, (0.4, 0.8))
        np.testing.assert_allclose(result.pairwise, expected, rtol=1e-5, atol=1e-7)

    def test_weights(self):
        weights = RNG.uniform(0.5, 2.0, 60).astype(np.float32)
        result = group_jsd(SCORES, GROUPS, num_groups=3, bins=7, limits=(0.4, 0.8), weights=weights)
        expected = reference(SCORES, GROUPS, 3, 7, (0.4, 0.8), weights)
        np.testing.assert_allclose(result.pairwise, expected, rtol=1e-4, atol=1e-7)

    def test_disjoint_and_equal_distributions(self):
        scores = np.resize(np.float32([0.1, 0.9]), 60)
        apart = group_jsd(scores, np.resize([0, 1], 60), num_groups=4)
        np.testing.assert_allclose([apart.largest, apart.average], np.log(2), rtol=1e-6)
        same = group_jsd(np.full(60, 0.3, np.float32), GROUPS, num_groups=4)
        np.testing.assert_array_equal([same.largest, same.average], 0.0)

    def test_intersections_show_what_single_attributes_hide(self):
        """Fairness gerrymandering: scores follow the exclusive or of two balanced attributes."""
        first, second = np.resize([0, 0, 1, 1], 60), np.resize([0, 1, 0, 1], 60)
        scores = (first != second).astype(np.float32)
        for attribute in (first, second):
            assert group_jsd(scores, attribute, num_groups=4).largest == 0
        crossed = group_jsd(scores, 2 * first + second, num_groups=4)
        np.testing.assert_allclose(crossed.largest, np.log(2), rtol=1e-6)
        np.testing.assert_allclose(crossed.average, 4 / 6 * np.log(2), rtol=1e-6)

    def test_empty_groups_take_no_part(self):
        result = group_jsd(SCORES, 2 * (GROUPS == 1), num_groups=3, bins=7)
        expected = reference(SCORES, (GROUPS == 1).astype(int), 2, 7, (SCORES.min(), SCORES.max()))
        np.testing.assert_allclose([result.largest, result.average], expected[0, 1], rtol=1e-5)
        assert np.isnan(result.pairwise[1]).all()
        assert np.isnan(result.pairwise[:, 1]).all()

    def test_padding_may_hold_anything(self):
        scores, groups = SCORES.copy(), GROUPS.copy()
        scores[::5], groups[1::5] = np.nan, 99
        weights = np.ones(60, np.float32)
        weights[::5] = weights[1::5] = 0
        result = group_jsd(scores, groups, num_groups=3, bins=7, weights=weights)
        kept = weights > 0
        limits = scores[kept].min(), scores[kept].max()
        expected = reference(scores[kept], groups[kept], 3, 7, limits)
        np.testing.assert_allclose(result.pairwise, expected, rtol=1e-5, atol=1e-7)

    def test_invalid_values_are_not_hidden(self):
        """A NaN or infinite prediction, a group out of range on either side, a single group."""
        scores, groups = np.tile(SCORES, (5, 1)), np.tile(GROUPS, (5, 1))
        scores[0, 3], scores[1, 3], groups[2, 3], groups[3, 3], groups[4] = np.nan, np.inf, 3, -1, 1
        for s, g in zip(scores, groups, strict=True):
            result = group_jsd(s, g, num_groups=3, bins=7)
            assert np.isnan(result.largest)
            assert np.isnan(result.average)

    def test_does_not_retrace(self):
        chex.clear_trace_counter()
        traced = chex.assert_max_traces(
            lambda s, g, high: diagnostics.group_jsd(s, g, num_groups=3, limits=(0.0, high)), n=1
        )
        compiled = jax.jit(traced)
        values = [float(compiled(SCORES, GROUPS, high).largest) for high in (1.0, 2.0)]
        assert values[0] != values[1]

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((jnp.arange(4), jnp.arange(4)), {}, "predictions must be floating point"),
            ((jnp.ones(4), jnp.ones(4)), {}, "groups must hold integers"),
            ((jnp.ones(4), jnp.arange(3)), {}, "predictions and groups must have the same shape"),
            ((jnp.ones((4, 1)), jnp.arange(4)), {}, "predictions must have rank 1"),
            ((jnp.ones(4), jnp.arange(4)), {"num_groups": 1}, "num_groups must be at least 2; got 1"),
            ((jnp.ones(4), jnp.arange(4)), {"bins": 0}, "bins must be at least 1; got 0"),
            ((jnp.ones(4), jnp.arange(4)), {"limits": (1.0, 0.0)}, "limits must increase; got 1.0 and 0.0"),
            (
                (jnp.ones(4), jnp.arange(4)),
                {"weights": jnp.ones(3)},
                "weights must hold one number per example",
            ),
        ],
    )
    def test_errors(self, arguments, options, message):
        with pytest.raises(ValueError, match=message):
            diagnostics.group_jsd(*arguments, **{"num_groups": 4, **options})
