"""USEFUL's repeats: clusters per class, the one of higher loss, whatever the order of the examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from jaxdiv import sampling

RNG = np.random.default_rng(199)
LABELS = np.repeat([0, 1, 2], 20)
LACKS = RNG.random(60) < 0.3
OUTPUTS = np.eye(3)[LABELS] * np.where(LACKS, 1.0, 6.0)[:, None] + 0.3 * RNG.normal(size=(60, 3))
LOSSES = np.log(np.exp(OUTPUTS).sum(1)) - OUTPUTS[np.arange(60), LABELS]


@pytest.mark.paper(199)
class TestExact:
    def test_finds_what_lacks_the_feature(self):
        np.testing.assert_array_equal(sampling.useful_repeats(OUTPUTS, LABELS, LOSSES), 1 + LACKS)

    @pytest.mark.parametrize("factor", [1, 2, 3])
    def test_adds_the_selected_clusters_factor_minus_one_times(self, factor):
        repeats = sampling.useful_repeats(OUTPUTS, LABELS, LOSSES, factor=factor)
        assert repeats.dtype == np.int32
        assert repeats.sum() == 60 + (factor - 1) * LACKS.sum()

    @given(st.integers(0, 1000))
    def test_order_does_not_matter(self, seed):
        """Also without clear clusters."""
        rng = np.random.default_rng(seed)
        outputs, losses, order = rng.normal(size=(60, 3)), rng.random(60), rng.permutation(60)
        repeats = sampling.useful_repeats(outputs, LABELS, losses)
        permuted = sampling.useful_repeats(outputs[order], LABELS[order], losses[order])
        np.testing.assert_array_equal(permuted, repeats[order])

    def test_is_a_solution_of_two_means(self):
        """Where the clusters are clear, scikit-learn finds the same ones."""
        for label in range(3):
            members = np.flatnonzero(label == LABELS)
            found = KMeans(2, n_init=5, random_state=0).fit(OUTPUTS[members]).labels_
            ours = sampling.useful_repeats(OUTPUTS, LABELS, LOSSES)[members] == 2
            assert np.array_equal(ours, found) or np.array_equal(ours, 1 - found)

    def test_every_class_has_its_own_clusters(self):
        """A class that is harder as a whole is not repeated as a whole."""
        outputs = np.array([0.0, 0.1, 3.0, 10.0, 10.1, 13.0])
        losses = np.array([1.0, 1.0, 2.0, 7.0, 7.0, 6.0])
        repeats = sampling.useful_repeats(outputs, np.array([0, 0, 0, 1, 1, 1]), losses)
        np.testing.assert_array_equal(repeats, [1, 1, 2, 2, 2, 1])


@pytest.mark.paper(199)
class TestEdges:
    def test_nothing_to_tell_apart(self):
        """Equal outputs, a class of one example, clusters of equal loss."""
        outputs, labels = np.array([1.0, 1.0, 1.0, 5.0, 0.0, 2.0]), np.array([0, 0, 0, 1, 2, 2])
        repeats = sampling.useful_repeats(outputs, labels, np.ones(6))
        np.testing.assert_array_equal(repeats, np.ones(6))

    @pytest.mark.parametrize("n", [5, 7])
    def test_lengths(self, n):
        with pytest.raises(ValueError, match="must have one row, label and number per example"):
            sampling.useful_repeats(np.ones((n, 2)), np.zeros(6, int), np.ones(6))

    def test_not_finite_and_no_factor(self):
        with pytest.raises(ValueError, match="outputs and losses must be finite"):
            sampling.useful_repeats(np.array([np.nan, 1.0]), np.zeros(2, int), np.ones(2))
        with pytest.raises(ValueError, match="factor must be at least 1; got 0"):
            sampling.useful_repeats(np.ones(2), np.zeros(2, int), np.ones(2), factor=0)
        with pytest.raises(ValueError, match="labels must hold integers"):
            sampling.useful_repeats(np.ones(2), np.zeros(2), np.ones(2))
