"""Gradient descent in closed form, and the scanners: explicit steps, pinv, momentum of directions, tables."""

import jax
import numpy as np
import pytest

from jaxdiv.diagnostics.double_descent import double_descent
from jaxdiv.diagnostics.gd_spectral_path import condition_number, gd_spectral_path
from jaxdiv.diagnostics.learning_rate_transfer import learning_rate_transfer

RNG = np.random.default_rng(29)
SHAPES = {"under": (12, 5), "over": (5, 12)}
KEY = jax.random.key(0)

path = jax.jit(gd_spectral_path)


def problem(name):
    n, p = SHAPES[name]
    return RNG.normal(size=(n, p)), RNG.normal(size=n), RNG.normal(size=(4, p)), RNG.normal(size=4)


@pytest.mark.paper(29)
class TestPath:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("share", [1.0, 1.7])
    def test_equals_explicit_steps(self, name, share):
        """T = 50 steps of gradient descent from 0, also where the fastest direction goes to and fro."""
        z, y, z_test, y_test = problem(name)
        rate = share * len(z) / np.linalg.norm(z, 2) ** 2
        w, expected = np.zeros(z.shape[1]), []
        for step in range(51):
            if step in (0, 7, 50):
                expected.append(w.copy())
            w = w - rate * z.T @ (z @ w - y) / len(z)
        with jax.enable_x64(True):
            found = path(z, y, z_test, y_test, np.array([0.0, 7.0, 50.0]), learning_rate=rate)
        np.testing.assert_allclose(found.weights, expected, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.train, [np.mean((z @ w - y) ** 2) for w in expected], rtol=1e-8)
        np.testing.assert_allclose(
            found.test, [np.mean((z_test @ w - y_test) ** 2) for w in expected], rtol=1e-8
        )

    @pytest.mark.parametrize("name", SHAPES)
    def test_ends_at_the_least_norm_solution(self, name):
        z, y, z_test, y_test = problem(name)
        z[:, 0] = z[:, 1]  # not of full rank
        with jax.enable_x64(True):
            found = path(z, y, z_test, y_test, np.array([np.inf]))
        np.testing.assert_allclose(found.weights[0], np.linalg.pinv(z) @ y, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.learning_rate, len(z) / np.linalg.norm(z, 2) ** 2)

    def test_small_directions_are_exact_in_float32(self):
        """1 − (1 − x)^T for x = 1e-8, where 1 − x rounds to 1."""
        z = np.diag(np.float32([1.0, 1e-4]))
        found = path(z, np.ones(2, np.float32), z, np.ones(2, np.float32), np.float32([1e4]))
        np.testing.assert_allclose(found.weights[0, 1], 1e4 * -np.expm1(1e4 * np.log1p(-1e-8)), rtol=1e-3)

    def test_condition_number(self):
        z = problem("over")[0]
        s = np.linalg.svd(z, compute_uv=False)
        np.testing.assert_allclose(condition_number(z.astype(np.float32)), (s[0] / s[-1]) ** 2, rtol=1e-4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({1: np.ones(3)}, "targets must hold one number per row of features"),
            ({2: np.ones((4, 3))}, "test_features must have 5 columns"),
            ({3: np.ones(3)}, "test_targets must hold one number per row of test_features"),
            ({4: np.array([-1.0])}, "steps must lie in"),
        ],
    )
    def test_errors(self, change, message):
        arguments = [np.asarray(x, np.float32) for x in problem("under")] + [np.ones(1)]
        for position, value in change.items():
            arguments[position] = np.asarray(value, np.float32)
        with pytest.raises(ValueError, match=message):
            gd_spectral_path(*arguments)


@pytest.mark.paper(29)
def test_the_peak_needs_the_optimizer_to_get_there():
    """Noisy targets, Gaussian features: at p = n the end has a peak, a few hundred steps none."""

    def at(steps):
        def train(size, key):
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            beta = rng.normal(size=80) / np.sqrt(80)
            x, x_test = rng.normal(size=(40, 80)), rng.normal(size=(200, 80))
            y, y_test = x @ beta + 0.5 * rng.normal(size=40), x_test @ beta
            found = gd_spectral_path(x[:, :size], y, x_test[:, :size], y_test, np.array([steps]))
            return found.train[0], found.test[0]

        with jax.enable_x64(True):
            return double_descent(train, (10, 40, 80), num_seeds=4, key=KEY)

    late, early = at(np.inf), at(30.0)
    assert late.train.shape == late.test.shape == (3, 4)
    assert late.peak()[0] == 40
    assert late.peak()[1] > 5
    assert np.median(early.test[1]) < np.median(late.test[1]) / 3
    assert (early.train[1] > late.train[1]).all()


@pytest.mark.paper(198)
class TestTransfer:
    def test_table(self):
        """A loss whose best rate falls as 1/width, a diverged run, and one that transfers."""

        def train(width, rate, key):
            return np.nan if rate * width > 8 else (np.log(rate * width) ** 2)

        scan = learning_rate_transfer(train, (1, 2, 4), (0.25, 0.5, 1.0, 2.0, 4.0), num_seeds=2, key=KEY)
        assert scan.losses.shape == (3, 5, 2)
        assert scan.losses[2, 4, 0] == np.inf
        np.testing.assert_allclose(scan.best(), [1, 0.5, 0.25])
        np.testing.assert_allclose(scan.drift(), -1)
        np.testing.assert_allclose(scan.regret(), [0, np.log(2) ** 2, np.log(4) ** 2])
        still = learning_rate_transfer(
            lambda w, r, k: abs(r - 0.5), (1, 2), (0.25, 0.5), num_seeds=1, key=KEY
        )
        np.testing.assert_allclose([still.drift(), *still.regret()], 0, atol=1e-12)

    def test_errors(self):
        with pytest.raises(ValueError, match="two widths, a learning rate and a seed; got 1, 1 and 3"):
            learning_rate_transfer(lambda *_: 0.0, (1,), (1.0,), key=KEY)
        with pytest.raises(ValueError, match="there must be a size and a seed; got 0 sizes and 5 seeds"):
            double_descent(lambda *_: (0.0, 0.0), (), key=KEY)
