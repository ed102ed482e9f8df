"""Clipping by fraction: contract, quantiles in numpy, its limits, and the sharpness of the direction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(8)


class ClipByQuantileContract(contract.Contract):
    transform = staticmethod(transforms.clip_by_quantile)
    learning_rate = 0.5
    option = ("fraction", 0.33)


class ClipLeafByQuantileContract(contract.Contract):
    learning_rate = 0.5

    @staticmethod
    def transform():
        return transforms.clip_by_quantile(0.3, scope="leaf")


def clip(updates, *args, **options):
    return jax.jit(lambda u: transforms.clip_by_quantile(*args, **options).update(u, optax.EmptyState())[0])(
        updates
    )


@pytest.mark.paper(192)
class TestExact:
    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
    def test_is_its_formula(self, fraction):
        tree = {"a": RNG.normal(size=(4, 5)).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)}
        flat = np.concatenate([tree["a"].ravel(), tree["b"]])
        tau = np.quantile(np.abs(flat), 1 - fraction)
        for name, out in clip(tree, fraction).items():
            np.testing.assert_allclose(out, np.clip(tree[name], -tau, tau), rtol=1e-5)
        for name, out in clip(tree, fraction, scope="leaf").items():
            tau = np.quantile(np.abs(tree[name]), 1 - fraction)
            np.testing.assert_allclose(out, np.clip(tree[name], -tau, tau), rtol=1e-5)

    def test_fraction_0_is_the_identity_and_1_is_the_sign(self):
        u = jnp.asarray(RNG.normal(size=50), jnp.float32)
        np.testing.assert_array_equal(clip(u, 0.0), u)
        np.testing.assert_allclose(clip(u, 1.0), jnp.sign(u) * jnp.min(jnp.abs(u)), rtol=1e-6)

    @pytest.mark.parametrize("x64", [False, True])
    def test_quantile_is_that_of_jax_with_its_derivative(self, x64):
        """Ties, zeros, huge and tiny numbers; the derivative goes to the numbers between which τ lies."""
        with jax.enable_x64(x64):
            u = jnp.array([3.0, 0.0, -3.0, 3.0, 1e30, 1e-30, 0.0, -0.5, 2.0, 7.0])

            def tau(u, fraction):
                """The largest magnitude that is left; NaN-free."""
                return jnp.abs(transforms.clip_by_quantile(fraction).update(u, optax.EmptyState())[0])[4]

            run = jax.jit(jax.value_and_grad(tau))
            reference = jax.jit(jax.value_and_grad(lambda u, f: jnp.quantile(jnp.abs(u), 1 - f)))
            for fraction in (0.05, 0.1, 0.15, 0.33, 0.6, 0.77, 0.85):
                (value, slope), (expected, slopes) = run(u, fraction), reference(u, fraction)
                np.testing.assert_allclose(value, expected, rtol=1e-5)
                if fraction in (0.05, 0.6):  # between numbers that are not tied
                    np.testing.assert_allclose(slope, slopes, rtol=1e-4, atol=1e-5)

    def test_that_fraction_is_clipped(self):
        u = jnp.asarray(RNG.normal(size=1001), jnp.float32)
        out = clip(u, 0.1)
        assert int(jnp.sum(out != u)) == 100
        np.testing.assert_allclose(clip(3 * u, 0.1), 3 * out, rtol=1e-6)


@pytest.mark.paper(192)
def test_lowers_the_sharpness_of_a_direction():
    """20 of 1000 coordinates with curvature 1000: v'Hv is about 1000 for the gradient, 21 for its sign."""
    curvature = np.where(np.arange(1000) < 20, 1000.0, 1.0)
    for seed in range(3):
        gradient = curvature * np.random.default_rng(seed).normal(size=1000)
        gradient = jnp.asarray(gradient, jnp.float32)

        def sharpness(v):
            return float(np.sum(curvature * v**2) / np.sum(v**2))

        clipped = sharpness(np.asarray(clip(gradient, 0.1), np.float64))
        assert sharpness(np.asarray(gradient, np.float64)) > 900
        assert sharpness(np.sign(gradient)) < 30
        assert 30 < clipped < 120


def test_not_a_number_is_not_hidden():
    assert np.isnan(clip(jnp.array([1.0, np.nan, 2.0]), 0.1)).all()


def test_an_empty_tree_stays_empty():
    assert clip({}, 0.1) == {}


@pytest.mark.parametrize(("fraction", "scope"), [(1.5, "leaf"), (0.1, "tree")])
def test_bad_options(fraction, scope):
    with pytest.raises(ValueError, match="must"):
        transforms.clip_by_quantile(fraction, scope=scope)
