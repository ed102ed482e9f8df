"""Confidence-normalized gradients: contract, the perceptron limit, and the bound on the number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import oracles
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)


class ConfidenceNormalizedContract(contract.Contract):
    """The suite's loss "fit" is no cross-entropy, but not negative either."""

    @staticmethod
    def oracle():
        return oracles.confidence_normalized(oracles.plain(), "fit")


def logistic(theta, state, batch, key):
    """Losses log(1 + e^{−⟨a, θ⟩})."""
    losses = jax.nn.softplus(-batch["inputs"] @ theta)
    weights = batch.get("weights")
    value = jnp.average(losses, weights=weights)
    return value, (state, {"terms": {"ce": value}, "losses": {"ce": losses}, "metrics": {}})


def descend(rows, gamma, steps):
    """Iterates from 0 of gradient descent on the normalized gradient, and whether all margins are positive."""
    oracle = oracles.confidence_normalized(oracles.plain())

    def body(theta, _):
        _, direction, _, _ = oracle.value_and_grad(logistic, theta, (), (), {"inputs": rows}, KEY)
        theta = theta - gamma * direction
        return theta, (theta, jnp.all(rows @ theta > 0))

    return jax.lax.scan(body, jnp.zeros(rows.shape[1]), length=steps)[1]


@pytest.mark.paper(161)
class TestExact:
    def test_is_the_gradient_over_the_mean_misfit(self):
        rng = np.random.default_rng(0)
        rows, theta, weights = rng.normal(size=(6, 3)), rng.normal(size=3), rng.uniform(0.5, 2.0, 6)
        misfit = 1 / (1 + np.exp(rows @ theta))
        for extra, shares in (({}, np.ones(6)), ({"weights": weights}, weights)):
            expected = -(shares * misfit) @ rows / np.sum(shares * misfit)
            batch = {name: jnp.asarray(x, jnp.float32) for name, x in {"inputs": rows, **extra}.items()}
            oracle = oracles.confidence_normalized(oracles.plain())
            theta32 = jnp.asarray(theta, jnp.float32)
            _, direction, _, _ = oracle.value_and_grad(logistic, theta32, (), (), batch, KEY)
            np.testing.assert_allclose(direction, expected, rtol=1e-5)

    def test_large_steps_are_those_of_the_perceptron(self):
        """θ/γ for γ = 10⁶ moves by the mean of the misclassified examples, iterate by iterate."""
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(8, 3)) + 0.4
        with jax.enable_x64(True):
            run = jax.jit(lambda rows: descend(rows, 1e6, 12)[0])
            path = np.asarray(run(jnp.asarray(rows))) / 1e6
        phi = np.zeros(3)
        for iterate in path:
            wrong = (rows @ phi < 0) + 0.5 * (rows @ phi == 0)
            if wrong.sum() == 0:
                break
            phi = phi + wrong @ rows / wrong.sum()
            np.testing.assert_allclose(iterate, phi, rtol=1e-4, atol=1e-5)

    def test_bound_on_the_number_of_steps(self):
        """T ≤ (R² + 1.114 n/γ)/μ² with μ the margin of a separating direction."""
        rng = np.random.default_rng(2)
        with jax.enable_x64(True):
            run = jax.jit(jax.vmap(lambda rows, gamma: descend(rows, gamma, 400)[1]))
            rows = rng.normal(size=(40, 10, 2)) * np.array([3.0, 1.0])
            # Mirrored to the side of (0, 1), with a margin of at least 0.2 there.
            rows[..., 1] = 0.2 + np.abs(rows[..., 1])
            gammas = np.tile([0.1, 1.0, 10.0, 1e3], 10)
            done = np.asarray(run(jnp.asarray(rows), jnp.asarray(gammas)))
        steps = done.argmax(1) + 1
        assert done.any(1).all()
        bound = (np.max(np.sum(rows**2, -1), 1) + 1.114 * 10 / gammas) / rows[..., 1].min(1) ** 2
        assert np.all(steps <= bound)
        assert steps.max() > 3

    def test_certain_losses_leave_the_direction(self):
        """Where every misfit rounds to 0, nothing is divided by 0."""
        batch = {"inputs": jnp.full((2, 1), 300.0)}
        oracle = oracles.confidence_normalized(oracles.plain())
        _, direction, _, _ = oracle.value_and_grad(logistic, jnp.ones(1), (), (), batch, KEY)
        np.testing.assert_array_equal(direction, 0.0)

    def test_unknown_loss(self):
        oracle = oracles.confidence_normalized(oracles.plain(), "kd")
        with pytest.raises(ValueError, match="loss must be one of 'ce'; got 'kd'"):
            oracle.value_and_grad(logistic, jnp.ones(1), (), (), {"inputs": jnp.ones((2, 1))}, KEY)
