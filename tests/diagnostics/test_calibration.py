"""Calibration errors against numpy, scikit-learn and numbers by hand."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from jaxdiv import diagnostics

B, C = 12, 3
ERRORS = ("ece", "adaptive_ece", "classwise_ece")
compiled = {name: jax.jit(getattr(diagnostics, name), static_argnames="bins") for name in ERRORS}


def draw(seed):
    rng = np.random.default_rng(seed)
    return (2 * rng.normal(size=(B, C))).astype(np.float32), rng.integers(0, C, B).astype(np.int32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def binned(confidence, correct, weights, bins):
    """Guo et al., eq. (3), bin by bin."""
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high) & (weights > 0)
        if inside.any():
            gap = np.average(correct[inside] - confidence[inside], weights=weights[inside])
            total += weights[inside].sum() / weights.sum() * abs(gap)
    return total


class TestExact(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(1, 10)
    def test_ece_is_guos(self, bins):
        logits, labels = draw(0)
        weights = np.random.default_rng(1).uniform(0, 1, B).astype(np.float32)
        weights[3] = 0
        p = softmax(logits)
        expected = binned(p.max(1), p.argmax(1) == labels, weights, bins)
        fn = self.variant(lambda *xs: diagnostics.ece(xs[0], xs[1], weights=xs[2], bins=bins))
        np.testing.assert_allclose(fn(logits, labels, weights), expected, rtol=1e-5)

    def test_ece_is_scikit_learns(self):
        """From its reliability curve, for two classes and 5 bins."""
        rng = np.random.default_rng(2)
        p = rng.uniform(0.5, 1, B)
        right = rng.uniform(size=B) < 0.6
        fraction, mean = calibration_curve(right, p, n_bins=5)
        counts = np.histogram(p, np.linspace(0, 1, 6))[0]
        expected = (counts[counts > 0] / B * abs(fraction - mean)).sum()
        logits = np.log(np.stack([p, 1 - p], 1)).astype(np.float32)
        got = compiled["ece"](logits, np.where(right, 0, 1), bins=5)
        np.testing.assert_allclose(got, expected, rtol=1e-5)

    def test_classwise_is_the_mean_over_classes(self):
        logits, labels = draw(3)
        p = softmax(logits)
        expected = np.mean([binned(p[:, k], labels == k, np.ones(B), 15) for k in range(C)])
        np.testing.assert_allclose(compiled["classwise_ece"](logits, labels), expected, rtol=1e-5)

    def test_adaptive_bins_hold_equal_numbers(self):
        """4 bins of 3 examples in order of confidence."""
        logits, labels = draw(4)
        p = softmax(logits)
        gap = ((p.argmax(1) == labels) - p.max(1))[np.argsort(p.max(1))]
        expected = abs(gap.reshape(4, 3).sum(1)).sum() / B
        np.testing.assert_allclose(compiled["adaptive_ece"](logits, labels, bins=4), expected, rtol=1e-5)

    def test_adaptive_bins_hold_equal_weight(self):
        """An example of weight 2 is two examples."""
        logits, labels = draw(5)
        weights = np.where(np.arange(6) % 2, 2.0, 1.0).astype(np.float32)
        order = np.argsort(softmax(logits[:6]).max(1))
        ordered, classes, twice = logits[:6][order], labels[:6][order], np.where(np.arange(6) % 2, 2, 1)
        repeated = np.repeat(ordered, twice, axis=0), np.repeat(classes, twice)
        got = compiled["adaptive_ece"](ordered, classes, weights=weights, bins=3)
        np.testing.assert_allclose(got, compiled["adaptive_ece"](*repeated, bins=3), rtol=1e-5)

    @parameterized.parameters(*ERRORS)
    def test_certain_predictions(self, name):
        """Confidences 0 and 1 have a bin: all right gives 0; a half wrong gives 1/2, and 1/3 classwise."""
        p = np.eye(C, dtype=np.float32)[np.arange(B) % 2]
        with np.errstate(divide="ignore"):
            logits = np.log(p)
        labels = np.arange(B, dtype=np.int32) % 2
        assert compiled[name](logits, labels) == 0
        labels = np.zeros(B, np.int32)
        expected = {"ece": 0.5, "adaptive_ece": 0.5, "classwise_ece": 1 / 3}[name]
        np.testing.assert_allclose(compiled[name](logits, labels, bins=1), expected, rtol=1e-6)

    def test_one_class_is_always_calibrated(self):
        for name in ERRORS:
            assert compiled[name](np.zeros((3, 1), np.float32), np.zeros(3, np.int32)) == 0


class TestProperties(chex.TestCase):
    @given(st.integers(0, 1000))
    def test_lies_between_the_gap_of_the_means_and_one(self, seed):
        """A sum of absolute values is at least the absolute sum: one bin is the smallest error."""
        logits, labels = draw(seed)
        p = softmax(logits)
        least = abs((p.argmax(1) == labels).mean() - p.max(1).mean())
        for name in ("ece", "adaptive_ece"):
            error = compiled[name](logits, labels)
            assert least - 1e-6 <= error <= 1 + 1e-6

    @parameterized.parameters(*ERRORS)
    def test_padding_is_absent(self, name):
        """NaN rows and invalid labels of weight 0 change nothing; where they count the error is NaN."""
        logits, labels = draw(6)
        weights = np.ones(B, np.float32)
        weights[4:] = 0
        logits[4:8], labels[8:] = np.nan, (-1, C, -1, C)
        got = compiled[name](logits, labels, weights=weights)
        np.testing.assert_allclose(got, compiled[name](logits[:4], labels[:4]), rtol=1e-5)
        assert np.isnan(compiled[name](logits, labels, weights=np.ones(B, np.float32)))
        assert np.isnan(compiled[name](logits, labels, weights=np.zeros(B, np.float32)))

    @parameterized.parameters(*ERRORS)
    def test_dtypes_and_vmap(self, name):
        logits, labels = draw(7)
        half = logits.astype(jnp.bfloat16)
        got = compiled[name](half, labels)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, compiled[name](half.astype(np.float32), labels), rtol=1e-6)
        both = np.stack([logits, logits[::-1]])
        mapped = jax.jit(jax.vmap(getattr(diagnostics, name), (0, None)))(both, labels)
        each = [compiled[name](x, labels) for x in both]
        np.testing.assert_allclose(mapped, each, rtol=1e-5)
        with jax.enable_x64(True):
            assert jax.eval_shape(compiled[name], np.float64(logits), labels).dtype == jnp.float64

    @parameterized.parameters(*ERRORS)
    def test_bad_input(self, name):
        fn = getattr(diagnostics, name)
        logits, labels = draw(8)
        for arguments, options, message in (
            ((logits.astype(int), labels), {}, "logits must be floating"),
            ((logits[0], labels), {}, "logits must have rank 2"),
            ((logits[:0], labels[:0]), {}, "logits must not be empty"),
            ((logits, labels[:-1]), {}, "labels must hold one integer per row"),
            ((logits, labels.astype(float)), {}, "labels must hold integers"),
            ((logits, labels), {"bins": 0}, "bins must be at least 1"),
            ((logits, labels), {"weights": np.ones(3)}, "weights must hold one number per example"),
        ):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(lambda xs=arguments, options=options: fn(*xs, **options))
