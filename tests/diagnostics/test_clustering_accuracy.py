"""Accuracy under the best matching against scipy and against all matchings."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from jaxdiv import diagnostics

N = 30
accuracy = jax.jit(diagnostics.clustering_accuracy, static_argnames=("num_clusters", "num_classes"))
square = functools.partial(accuracy, num_clusters=4)


def draw(seed, clusters=4, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, N).astype(np.int32)
    found = np.where(rng.random(N) < 0.5, labels % clusters, rng.integers(0, clusters, N)).astype(np.int32)
    return found, labels, rng.integers(0, 4, N).astype(np.float32)


def scipys(clusters, labels, weights, shape):
    table = np.zeros(shape)
    np.add.at(table, (clusters, labels), weights)
    return table[linear_sum_assignment(-table)].sum() / weights.sum()


@pytest.mark.paper(3)
@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6), (1, 3)])
def test_is_scipys_matching(shape):
    for seed in range(5):
        clusters, labels, weights = draw(seed, *shape)
        got = accuracy(clusters, labels, num_clusters=shape[0], num_classes=shape[1], weights=weights)
        np.testing.assert_allclose(got, scipys(clusters, labels, weights, shape), rtol=1e-6)


@pytest.mark.paper(3)
@given(st.integers(0, 1000))
def test_is_the_best_of_all_namings(seed):
    clusters, labels, _ = draw(seed)
    namings = (np.array(names)[clusters] for names in itertools.permutations(range(4)))
    best = max((naming == labels).mean() for naming in namings)
    np.testing.assert_allclose(square(clusters, labels), best, rtol=1e-6)


@pytest.mark.paper(3)
def test_names_do_not_matter():
    clusters, labels, _ = draw(0)
    assert square((labels + 1) % 4, labels) == 1
    assert square(np.zeros_like(labels), labels) == np.bincount(labels).max() / np.float32(N)
    np.testing.assert_array_equal(square((clusters + 2) % 4, labels), square(clusters, labels))


def test_mapped_over_clusterings():
    batch = [draw(seed) for seed in range(3)]
    clusters, labels, _ = (np.stack(x) for x in zip(*batch, strict=True))
    mapped = jax.jit(jax.vmap(functools.partial(diagnostics.clustering_accuracy, num_clusters=4)))
    np.testing.assert_array_equal(mapped(clusters, labels), [square(c, y) for c, y, _ in batch])


def test_padding_and_invalid_entries():
    """Rows of weight 0 may hold anything; what counts and is out of range is NaN, as is no weight at all."""
    clusters, labels, weights = draw(1)
    present = weights > 0
    expected = square(clusters[present], labels[present], weights=weights[present])
    for wrong in (-1, 4):
        padded = np.where(present, clusters, wrong), np.where(present, labels, wrong)
        np.testing.assert_allclose(square(*padded, weights=weights), expected, rtol=1e-6)
        for position in range(2):
            spoiled = [clusters.copy(), labels.copy()]
            spoiled[position][np.argmax(present)] = wrong
            assert np.isnan(square(*spoiled, weights=weights))
    assert np.isnan(square(clusters, labels, weights=0 * weights))


def test_counts_are_exact_in_float32():
    """Equal halves of 100,001 examples and one more."""
    labels = np.arange(100_001, dtype=np.int32) % 2
    assert accuracy(1 - labels, labels, num_clusters=2) == 1


@pytest.mark.parametrize(
    ("clusters", "labels", "options", "message"),
    [
        (np.zeros(3), np.zeros(3, np.int32), {}, "clusters must hold integers"),
        (np.zeros(3, np.int32), np.zeros(3), {}, "labels must hold integers"),
        (np.zeros(3, np.int32), np.zeros(2, np.int32), {}, "must have the same shape"),
        (np.zeros((3, 1), np.int32), np.zeros((3, 1), np.int32), {}, "clusters must have rank 1"),
        (np.zeros(0, np.int32), np.zeros(0, np.int32), {}, "clusters must not be empty"),
        (
            np.zeros(3, np.int32),
            np.zeros(3, np.int32),
            {"num_clusters": 0},
            "num_clusters must be at least 1",
        ),
        (np.zeros(3, np.int32), np.zeros(3, np.int32), {"num_classes": 0}, "num_classes must be at least 1"),
        (
            np.zeros(3, np.int32),
            np.zeros(3, np.int32),
            {"weights": np.ones(2)},
            "weights must hold one number per example",
        ),
    ],
)
def test_bad_input(clusters, labels, options, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.clustering_accuracy(clusters, labels, **{"num_clusters": 2, **options})
