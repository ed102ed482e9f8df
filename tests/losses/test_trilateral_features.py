"""Trilateral features: the five edges by numpy, their closure, constants to the student, the class means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import losses
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(11)
B, C = 4, 3
STUDENT, TEACHER = RNG.normal(size=(2, B, C)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2], np.int32)
MEANS = RNG.dirichlet(np.ones(C), B).astype(np.float32)

features = jax.jit(losses.trilateral_features)
class_means = jax.jit(losses.class_mean_predictions)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.paper(184)
class TrilateralFeaturesContract(contract.Contract):
    loss = staticmethod(losses.trilateral_features)
    targets = ("logits", "labels", "distributions")
    differentiable = False  # constants


@pytest.mark.paper(184)
class TestTrilateralFeatures:
    def test_are_the_edges_of_the_two_triangles(self):
        s, t, g = softmax(STUDENT), softmax(TEACHER), np.eye(C)[LABELS]
        expected = np.concatenate([s - t, t - g, s - g, s - MEANS, MEANS - g], axis=1)
        np.testing.assert_allclose(features(STUDENT, TEACHER, LABELS, MEANS), expected, rtol=1e-5, atol=1e-6)

    def test_triangles_close_and_points_are_distributions(self):
        """(S - T) + (T - G) = S - G = (S - T̄) + (T̄ - G), and each edge sums to 0."""
        st, tg, sg, sm, mg = features(STUDENT, TEACHER, LABELS, MEANS).reshape(B, 5, C).swapaxes(0, 1)
        np.testing.assert_allclose(st + tg, sg, atol=1e-6)
        np.testing.assert_allclose(sm + mg, sg, atol=1e-6)
        np.testing.assert_allclose(np.sum([st, tg, sg, sm, mg], axis=-1), 0.0, atol=1e-6)

    def test_perfect_student_of_a_perfect_teacher_stands_at_the_truth(self):
        logits = np.where(np.eye(C)[LABELS] == 1, 200.0, 0.0).astype(np.float32)
        edges = features(logits, logits, LABELS, np.eye(C, dtype=np.float32)[LABELS])
        np.testing.assert_array_equal(edges, 0.0)

    def test_no_gradient_passes(self):
        gradient = jax.jit(jax.grad(lambda *x: jnp.sum(losses.trilateral_features(*x) ** 2), (0, 1, 3)))
        for g in gradient(STUDENT, TEACHER, LABELS, MEANS):
            np.testing.assert_array_equal(g, 0.0)

    def test_rows_are_independent_and_a_bad_one_is_nan_alone(self):
        clean = features(STUDENT, TEACHER, LABELS, MEANS)
        np.testing.assert_array_equal(
            features(STUDENT[::-1], TEACHER[::-1], LABELS[::-1], MEANS[::-1]), clean[::-1]
        )
        labels, spoiled = LABELS.copy(), TEACHER.copy()
        labels[0], spoiled[2, 1] = C, np.nan
        got = np.asarray(features(STUDENT, spoiled, labels, MEANS))
        assert np.isnan(got[0]).all()
        assert np.isnan(got[2]).any()
        np.testing.assert_array_equal(got[[1, 3]], clean[np.array([1, 3])])


@pytest.mark.paper(184)
class TestClassMeanPredictions:
    def test_are_means_by_class(self):
        labels = np.array([2, 0, 2, 5], np.int32)  # class 1 has no example, 5 is none
        p = softmax(TEACHER)
        expected = np.stack([p[1], np.zeros(C), (p[0] + p[2]) / 2])
        np.testing.assert_allclose(class_means(TEACHER, labels), expected, rtol=1e-5)

    def test_one_label_per_row(self):
        with pytest.raises(ValueError, match="labels must hold one integer per row"):
            losses.class_mean_predictions(TEACHER, LABELS[:-1])
