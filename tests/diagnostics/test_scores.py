"""Scores of predictions against scikit-learn, scipy and numbers by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from absl.testing import parameterized

from jaxdiv import diagnostics

B, C = 8, 3
RNG = np.random.default_rng(0)
LOGITS, OTHER = (2 * RNG.normal(size=(2, B, C))).astype(np.float32)
LABELS = RNG.integers(0, C, B).astype(np.int32)
WEIGHTS = RNG.uniform(0.5, 2, B).astype(np.float32)
P, Q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (LOGITS, OTHER))
SCORES = ("nll", "brier", "accuracy", "agreement")
EXPECTED = {
    "nll": sklearn.metrics.log_loss(LABELS, P, labels=range(C), sample_weight=WEIGHTS),
    "brier": np.average(((P - np.eye(C)[LABELS]) ** 2).sum(1), weights=WEIGHTS),
    "accuracy": sklearn.metrics.accuracy_score(LABELS, P.argmax(1), sample_weight=WEIGHTS),
    "agreement": np.average(P.argmax(1) == Q.argmax(1), weights=WEIGHTS),
}
compiled = {name: jax.jit(getattr(diagnostics, name)) for name in (*SCORES, "predictive_entropy")}


def second(name):
    return OTHER if name == "agreement" else LABELS


class TestScores(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*SCORES)
    def test_is_its_definition(self, name):
        score = self.variant(lambda x, y, w: getattr(diagnostics, name)(x, y, weights=w))
        np.testing.assert_allclose(score(LOGITS, second(name), WEIGHTS), EXPECTED[name], rtol=1e-5)

    @parameterized.parameters(*SCORES)
    def test_padding_is_absent(self, name):
        """Rows of weight 0 may hold anything; NaN that counts is seen, and no weight at all is NaN."""
        logits, other = LOGITS.copy(), second(name).copy()
        logits[4:] = np.nan
        other[4:] = np.nan if name == "agreement" else -1
        weights = np.where(np.arange(B) < 4, WEIGHTS, 0)
        got = compiled[name](logits, other, weights=weights)
        short = compiled[name](LOGITS[:4], second(name)[:4], weights=WEIGHTS[:4])
        np.testing.assert_allclose(got, short, rtol=1e-5)
        assert np.isnan(compiled[name](logits, second(name), weights=WEIGHTS))
        assert np.isnan(compiled[name](LOGITS, other, weights=WEIGHTS))
        assert np.isnan(compiled[name](LOGITS, second(name), weights=0 * WEIGHTS))

    @parameterized.parameters(*SCORES)
    def test_bad_input(self, name):
        fn, other = getattr(diagnostics, name), second(name)
        for arguments, weights, message in (
            ((LOGITS.astype(int), other), None, "logits must be floating"),
            ((LOGITS[0], other), None, "logits must have rank 2"),
            ((LOGITS[:0], other[:0]), None, "logits must not be empty"),
            ((LOGITS, other[:-1]), None, "same shape|one integer per row"),
            ((LOGITS, other), WEIGHTS[:-1], "weights must hold one number per example"),
        ):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(lambda xs=arguments, weights=weights: fn(*xs, weights=weights))

    @parameterized.parameters(*SCORES)
    def test_dtypes(self, name):
        half = LOGITS.astype(jnp.bfloat16)
        assert jax.eval_shape(compiled[name], half, second(name)).dtype == jnp.float32
        with jax.enable_x64(True):
            assert (
                jax.eval_shape(compiled[name], LOGITS.astype(np.float64), second(name)).dtype == jnp.float64
            )

    def test_impossible_classes(self):
        """Log-probabilities of -inf are valid: certain and right costs nothing, certain and wrong all."""
        logits = np.array([[0, -np.inf], [0, -np.inf]], np.float32)
        right, wrong = np.zeros(2, np.int32), np.ones(2, np.int32)
        assert compiled["nll"](logits, right) == 0
        assert compiled["nll"](logits, wrong) == np.inf
        assert compiled["brier"](logits, wrong) == 2
        assert compiled["accuracy"](logits, right) == 1


class TestPredictiveEntropy(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_is_scipys(self):
        got = self.variant(diagnostics.predictive_entropy)(LOGITS)
        np.testing.assert_allclose(got, scipy.stats.entropy(P, axis=1), rtol=1e-5)

    def test_limits_and_rows(self):
        """log C for equal logits, 0 for a certain class, NaN for a NaN row alone; finite derivatives."""
        logits = np.array([[0, 0, 0], [0, -np.inf, -np.inf], [np.nan, 0, 0], [1e4, -1e4, 0]], np.float32)
        got = compiled["predictive_entropy"](logits)
        np.testing.assert_allclose(got, [np.log(3), 0, np.nan, 0], rtol=1e-6, atol=1e-7)
        gradient = jax.jit(jax.grad(lambda x: diagnostics.predictive_entropy(x).sum()))(logits[[0, 1, 3]])
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="logits must be floating"):
            diagnostics.predictive_entropy(LOGITS.astype(int))
        with pytest.raises(ValueError, match="logits must have rank 2"):
            diagnostics.predictive_entropy(LOGITS[0])
