"""Cross-entropy, Brier score and squared error: contract, formulas in numpy, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(3)
LOGITS = 2 * RNG.normal(size=(5, 4))
LABELS = RNG.integers(0, 4, 5)
TARGETS = RNG.dirichlet(np.ones(4), 5)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class CrossEntropyOfLabels(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.cross_entropy)
    targets = ("labels",)


class CrossEntropyOfDistributions(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.cross_entropy)
    targets = ("distributions",)


class BrierOfLabels(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.brier)
    targets = ("labels",)


class BrierOfDistributions(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.brier)
    targets = ("distributions",)


class SquaredError(contract.PerExample, contract.ClassMask):
    loss = staticmethod(losses.squared_error)
    outputs = "values"
    targets = ("values",)


def test_cross_entropy_is_its_formula():
    log_p = np.log(softmax(LOGITS))
    by_label = losses.cross_entropy(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(by_label, -log_p[np.arange(5), LABELS], rtol=1e-5)
    by_target = losses.cross_entropy(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS))
    np.testing.assert_allclose(by_target, -(TARGETS * log_p).sum(1), rtol=1e-5)


def test_cross_entropy_of_one_hot_is_that_of_labels():
    logits = jnp.asarray(LOGITS, jnp.float32)
    one_hot = jax.nn.one_hot(LABELS, 4)
    np.testing.assert_allclose(
        losses.cross_entropy(logits, one_hot), losses.cross_entropy(logits, jnp.asarray(LABELS))
    )


def test_cross_entropy_agrees_with_optax():
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_array_equal(losses.cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("targets", [np.array([1]), np.array([[0.0, 1.0]])])
def test_cross_entropy_of_an_impossible_class_is_infinite(targets):
    """Mass on a class of probability zero: +inf, whether by mask or by a logit of -inf."""
    logits = jnp.zeros((1, 2))
    where = jnp.array([True, False])
    assert losses.cross_entropy(logits, targets, where=where)[0] == jnp.inf
    assert losses.cross_entropy(logits.at[0, 1].set(-jnp.inf), targets)[0] == jnp.inf


def test_cross_entropy_ignores_impossible_classes_without_mass():
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    loss, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, jnp.array([[0.5, 0.0, 0.5]]))[0])(
        logits
    )
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((1, 3)), atol=1e-7)


def test_brier_is_its_formula():
    expected = ((softmax(LOGITS) - np.eye(4)[LABELS]) ** 2).sum(1)
    result = losses.brier(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    soft = losses.brier(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS))
    np.testing.assert_allclose(soft, ((softmax(LOGITS) - TARGETS) ** 2).sum(1), rtol=1e-4)


def test_brier_is_proper():
    """The expected score under a distribution is stationary where the model equals it."""
    p = jnp.asarray(TARGETS[:1], jnp.float32)
    scores = lambda z: losses.brier(jnp.repeat(z, 4, 0), jnp.arange(4))  # noqa: E731
    gradient = jax.grad(lambda z: jnp.sum(p[0] * scores(z)))(jnp.log(p))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_squared_error_mean_is_the_usual_one():
    a, b = RNG.normal(size=(2, 5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(losses.squared_error(a, b).mean(), ((a - b) ** 2).mean(), rtol=1e-5)
    flat = losses.squared_error(a[:, 0, 0], b[:, 0, 0])
    np.testing.assert_allclose(flat, (a - b)[:, 0, 0] ** 2, rtol=1e-6)


def test_squared_error_takes_only_equal_shapes():
    """[B, 1] against [B] would broadcast to [B, B]."""
    with pytest.raises(ValueError, match="outputs and targets must have the same shape"):
        losses.squared_error(jnp.ones((4, 1)), jnp.ones(4))
