"""StableMax: contract, its formula, smoothness at 0, and what is left where softmax collapses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import losses
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(6)
LOGITS = 3 * RNG.normal(size=(5, 4))


class StablemaxOfLabels(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.stablemax_cross_entropy)
    targets = ("labels",)


class StablemaxOfDistributions(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.stablemax_cross_entropy)
    targets = ("distributions",)


def s(x):
    return np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))


@pytest.mark.paper(54)
class TestExact:
    def test_is_its_formula(self):
        logits = jnp.asarray(LOGITS, jnp.float32)
        p = s(LOGITS) / s(LOGITS).sum(-1, keepdims=True)
        np.testing.assert_allclose(losses.stablemax(logits), p, rtol=1e-5)
        np.testing.assert_allclose(losses.log_stablemax(logits), np.log(p), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(losses.stablemax(logits.T, axis=0), p.T, rtol=1e-5)
        labels = np.array([0, 3, 1, 2, 2])
        loss = losses.stablemax_cross_entropy(logits, labels)
        np.testing.assert_allclose(loss, -np.log(p[np.arange(5), labels]), rtol=1e-4, atol=1e-6)
        by_rows = losses.stablemax_cross_entropy(logits, jax.nn.one_hot(labels, 4))
        np.testing.assert_allclose(by_rows, loss, rtol=1e-6)

    def test_s_is_smooth_at_zero_and_inverse_to_its_mirror_image(self):
        """s(x) s(−x) = 1; the slope is 1 from both sides and at 0; at x = 1 nothing divides by 0."""
        x = jnp.array([-5.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 5.0])
        log_s = jax.vmap(lambda x: losses.log_stablemax(jnp.array([0.0, 1.0]) * x))(x)
        ratio = np.exp(log_s[:, 1] - log_s[:, 0])  # s(x)/s(0)
        np.testing.assert_allclose(ratio, s(np.asarray(x)), rtol=1e-5)
        np.testing.assert_allclose(ratio * ratio[::-1], 1.0, rtol=1e-5)
        slope = jax.vmap(jax.grad(lambda x: jnp.diff(losses.log_stablemax(jnp.array([0.0, 1.0]) * x))[0]))(x)
        np.testing.assert_allclose(slope, 1 / (1 + np.abs(x)), rtol=1e-5)

    def test_softmax_collapses_and_stablemax_does_not(self):
        """Logits [20, 0, 0] in float32: softmax's loss and the correct logit's gradient are exactly 0."""
        logits, label = jnp.array([[20.0, 0.0, 0.0]]), jnp.array([0])
        collapsed, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, label)[0])(logits)
        assert collapsed == gradient[0, 0] == 0
        loss, gradient = jax.value_and_grad(lambda z: losses.stablemax_cross_entropy(z, label)[0])(logits)
        np.testing.assert_allclose(loss, np.log(23 / 21), rtol=1e-4)
        np.testing.assert_allclose(gradient[0, 0], (21 / 23 - 1) / 21, rtol=1e-4)

    @pytest.mark.parametrize("gap", [1e3, 1e6])
    def test_gradient_fades_like_a_power(self, gap):
        """At logits [x, −x] the loss is 1/(1 + (1 + x)²) to first order, with slope −2/x³."""
        loss, gradient = jax.value_and_grad(
            lambda z: losses.stablemax_cross_entropy(z[None], jnp.array([1]))[0]
        )(jnp.array([-gap, gap], jnp.float32))
        assert loss >= 0
        np.testing.assert_allclose(gradient[0], 1 / gap**3, rtol=0.01)

    def test_impossible_class(self):
        """A class of logit −inf has probability 0; mass on it costs +inf, and none costs nothing."""
        logits = jnp.array([[0.0, -jnp.inf]])
        np.testing.assert_array_equal(losses.stablemax(logits), [[1.0, 0.0]])
        assert losses.stablemax_cross_entropy(logits, jnp.array([1]))[0] == np.inf
        loss, gradient = jax.value_and_grad(
            lambda z: losses.stablemax_cross_entropy(z, jnp.array([[1.0, 0.0]]))[0]
        )(logits)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0.0)


def test_integer_logits_raise():
    with pytest.raises(ValueError, match="logits must be floating point"):
        losses.log_stablemax(jnp.arange(3))
