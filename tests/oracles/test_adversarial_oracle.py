"""The adversarial oracle: contract, and the closed form for linear models."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import adversarial, oracles
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)


def fgsm(base, epsilon=0.1):
    return oracles.adversarial(base, adversarial.sign_gradient(epsilon))


class AdversarialContract(contract.Gradient, contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(fgsm)
    neutral = (("epsilon", 0.0),)
    cost = (2, 2)
    option = ("epsilon", 0.2)

    @classmethod
    def expected(cls, params, state, batch, key):
        slope = jax.grad(lambda x: contract.loss_fn(params, state, {**batch, "inputs": x}, key)[0])
        moved = batch["inputs"] + 0.1 * jnp.sign(slope(batch["inputs"]))
        return contract.loss_fn(params, state, {**batch, "inputs": moved}, key)


def margin(w, state, batch, key):
    """The mean of log(1 + exp(-y x·w))."""
    losses = jax.nn.softplus(-batch["targets"] * (batch["inputs"] @ w))
    value = losses.mean()
    state = {"calls": state["calls"] + 1, "inputs": batch["inputs"]}
    return value, (state, {"terms": {"l": value}, "losses": {"l": losses}, "metrics": {}})


def test_linear_model_pays_the_dual_norm():
    """Goodfellow et al., sec. 5: the worst case of a linear model is softplus(-y x·w + epsilon |w|_1)."""
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(5, 3)), rng.choice([-1.0, 1.0], 5), rng.normal(size=3)
    with jax.enable_x64(True):
        batch = {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}
        state = {"calls": jnp.int32(0), "inputs": jnp.zeros((5, 3))}
        oracle = fgsm(oracles.plain(), 0.3)
        run = jax.jit(lambda w: oracle.value_and_grad(margin, w, (), state, batch, KEY))
        (value, aux), gradient, _, state = run(jnp.asarray(w))
    scores = -y * (x @ w) + 0.3 * np.abs(w).sum()
    np.testing.assert_allclose(aux["losses"]["l"], np.log1p(np.exp(scores)), rtol=1e-10)
    np.testing.assert_allclose(value, np.log1p(np.exp(scores)).mean(), rtol=1e-10)
    # Danskin: the inputs are held at their worst.
    worst = x - 0.3 * y[:, None] * np.sign(w)
    slopes = -(y / (1 + np.exp(-scores)))[:, None] * worst
    np.testing.assert_allclose(gradient, slopes.mean(0), rtol=1e-10)
    assert int(state["calls"]) == 1
    np.testing.assert_allclose(state["inputs"], worst, rtol=1e-12)


def test_padding_is_not_attacked():
    """A row that carries no loss has no gradient and stays where it is."""

    def weighted(w, state, batch, key):
        value = jnp.sum(batch["weights"] * (batch["inputs"] @ w))
        return value, (batch["inputs"], {"terms": {"l": value}, "losses": {}, "metrics": {}})

    batch = {"inputs": jnp.ones((2, 2)), "weights": jnp.array([1.0, 0.0])}
    w, state = jnp.array([1.0, -1.0]), jnp.zeros((2, 2))
    seen = fgsm(oracles.plain(), 0.5).value_and_grad(weighted, w, (), state, batch, KEY)[3]
    np.testing.assert_array_equal(seen, [[1.5, 0.5], [1.0, 1.0]])


def test_attack_key_differs_from_the_loss_key():
    """The loss keeps the call's key in attack and training; the attack draws from another."""
    seen = []

    def loss(w, state, batch, key):
        seen.append(jax.random.key_data(key))
        return w * batch["inputs"].sum(), (state, {"terms": {}, "losses": {}, "metrics": {}})

    def attack(loss_of_inputs, inputs, key):
        loss_of_inputs(inputs)
        attack_key.append(jax.random.key_data(key))
        return inputs

    attack_key = []
    oracles.adversarial(oracles.plain(), attack).value_and_grad(
        loss, jnp.float32(1.0), (), (), {"inputs": jnp.ones(2)}, KEY
    )
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.array_equal(attack_key[0], seen[0])
