"""Segmentation losses: contracts, values by numpy, spatial axes, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses
from jaxdiv.losses.segmentation import dice, pixel_cross_entropy, softmax_focal
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(5)
B, H, W, C = 3, 4, 2, 3
LOGITS = RNG.normal(size=(B, H, W, C)).astype(np.float32)
LABELS = RNG.integers(0, C, (B, H, W)).astype(np.int32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


P, TRUTH = softmax(np.float64(LOGITS)), np.eye(C)[LABELS]
OWN = (P * TRUTH).sum(-1)


@pytest.mark.paper(191)
class DiceContract(contract.PerExample, contract.NumericOption):
    loss = staticmethod(dice)
    option = ("smooth", 0.7)


@pytest.mark.paper(191)
class SoftmaxFocalContract(contract.PerExample, contract.NumericOption):
    loss = staticmethod(softmax_focal)
    option = ("gamma", 1.5)


@pytest.mark.paper(191)
class PixelCrossEntropyContract(contract.PerExample):
    loss = staticmethod(pixel_cross_entropy)


@pytest.mark.paper(191)
class TestDice:
    @pytest.mark.parametrize("smooth", [0.0, 1.0])
    def test_is_one_minus_the_mean_overlap(self, smooth):
        axes = (1, 2)
        overlap = (P * TRUTH).sum(axes) + smooth
        size = 0.5 * P.sum(axes) + 0.5 * TRUTH.sum(axes) + smooth
        np.testing.assert_allclose(
            dice(LOGITS, LABELS, smooth=smooth), 1 - (overlap / size).mean(-1), rtol=1e-5
        )

    def test_is_zero_for_the_truth_and_never_negative(self):
        """The form that weights can be learned for: between 0 and 1."""
        np.testing.assert_allclose(dice(np.float32(60 * TRUTH), LABELS), 0.0, atol=1e-6)
        wrong = dice(np.float32(-60 * TRUTH), LABELS)
        assert np.all((wrong > 0.5) & (wrong < 1))

    def test_one_class_has_no_softmax(self):
        with pytest.raises(ValueError, match="two classes at least"):
            dice(LOGITS[..., :1], LABELS)

    def test_smooth(self):
        with pytest.raises(ValueError, match="smooth must lie in"):
            dice(LOGITS, LABELS, smooth=-1.0)


@pytest.mark.paper(191)
class TestSoftmaxFocal:
    def test_is_the_papers(self):
        alpha = np.array([0.2, 1.0, 3.0], np.float32)
        pixels = -alpha[LABELS] * (1 - OWN) ** 2 * np.log(OWN)
        np.testing.assert_allclose(softmax_focal(LOGITS, LABELS, alpha=alpha), pixels.mean((1, 2)), rtol=1e-5)

    def test_gamma_zero_is_the_cross_entropy(self):
        np.testing.assert_allclose(
            softmax_focal(LOGITS, LABELS, gamma=0.0), pixel_cross_entropy(LOGITS, LABELS), rtol=1e-5
        )

    def test_two_classes_are_optax_sigmoid_focal(self):
        """softmax(z, 0) is the sigmoid of z."""
        z, labels = LOGITS[..., 0].reshape(-1), (LABELS.reshape(-1) == 0).astype(np.int32)
        pair = np.stack([np.zeros_like(z), z], -1)
        np.testing.assert_allclose(
            softmax_focal(pair, labels), optax.sigmoid_focal_loss(z, labels, gamma=2.0), rtol=1e-4
        )

    def test_digits_near_certainty(self):
        """p_y = 1 - 2e-9: the loss is 9e-27, where 1 - p_y in float32 is 0."""
        logits = jnp.array([[20.0, 0.0]])
        rest = np.exp(-20) / (1 + np.exp(-20))
        np.testing.assert_allclose(
            softmax_focal(logits, jnp.array([0])), [-(rest**2) * np.log1p(-rest)], rtol=1e-4
        )

    def test_alpha_of_another_length(self):
        with pytest.raises(ValueError, match="alpha must hold one weight per class"):
            softmax_focal(LOGITS, LABELS, alpha=np.ones(2, np.float32))

    def test_gamma(self):
        with pytest.raises(ValueError, match="gamma must lie in"):
            softmax_focal(LOGITS, LABELS, gamma=-1.0)


@pytest.mark.paper(191)
class TestPixelCrossEntropy:
    def test_is_the_mean_over_the_pixels(self):
        np.testing.assert_allclose(pixel_cross_entropy(LOGITS, LABELS), -np.log(OWN).mean((1, 2)), rtol=1e-5)
        flat = losses.cross_entropy(LOGITS.reshape(-1, C), LABELS.reshape(-1)).reshape(B, -1).mean(1)
        np.testing.assert_allclose(pixel_cross_entropy(LOGITS, LABELS), flat, rtol=1e-5)


@pytest.mark.parametrize("loss", [dice, softmax_focal, pixel_cross_entropy])
class TestPixels:
    def test_a_bad_pixel_spoils_its_image_alone(self, loss):
        spoiled = LABELS.copy()
        spoiled[1, 2, 0] = C
        values, clean = loss(LOGITS, spoiled), loss(LOGITS, LABELS)
        assert np.isnan(values[1])
        np.testing.assert_array_equal(values[np.array([0, 2])], clean[np.array([0, 2])])

    def test_labels_of_other_pixels(self, loss):
        with pytest.raises(ValueError, match=r"per pixel of the logits .* shape \(3, 4, 2\); got"):
            loss(LOGITS, LABELS[:, :2])

    def test_logits_without_classes(self, loss):
        with pytest.raises(ValueError, match="logits must have a batch and a class axis"):
            loss(LOGITS[0, 0, 0], LABELS[0, 0, 0])

    def test_gradient_is_finite_where_a_class_is_certain(self, loss):
        certain = np.where(TRUTH == 1, 0.0, -np.inf).astype(np.float32)
        gradient = jax.grad(lambda z: jnp.sum(loss(z, LABELS)))(certain)
        assert np.all(np.isfinite(gradient))
