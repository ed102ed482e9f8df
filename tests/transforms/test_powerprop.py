"""Powerpropagation: descent on φ step by step, the first-order form, fixed points, composition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv.testing import transforms as contract
from jaxdiv.transforms.powerprop import powerprop, scale_by_powerprop

RNG = np.random.default_rng(39)
THETA = {"a": RNG.normal(size=3), "b": RNG.normal(size=(2, 2))}
MATRIX = RNG.normal(size=(7, 7))


class PowerpropContract(contract.Contract):
    """A weight comes to rest at 0 on its way to the other sign, so that only part of the toys can end."""

    learning_rate = None
    option = ("alpha", 1.7)
    needs_params = True
    toys = ()

    @staticmethod
    def transform(alpha=3.0):
        return powerprop(0.1, alpha=alpha)


class SmallPowerContract(contract.Contract):
    """With a power near 1 it goes through 0."""

    learning_rate = None
    needs_params = True

    @staticmethod
    def transform():
        return powerprop(optax.cosine_decay_schedule(0.5, contract.STEPS), alpha=1.05)


class ScaleByPowerpropContract(contract.Contract):
    transform = staticmethod(scale_by_powerprop)
    learning_rate = 0.1
    option = ("alpha", 1.7)
    needs_params = True
    toys = ()


def loss(params):
    w = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return jnp.sum(jnp.sin(MATRIX @ w))


def descend(tx, params, steps):
    def body(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, body, (params, tx.init(params)))[0]


@pytest.mark.paper(39)
class TestPowerprop:
    def test_is_descent_on_phi(self):
        """Ten steps on φ with θ = φ|φ|^{α−1}, differentiated through, and the same in θ."""
        with jax.enable_x64(True):
            params = jax.tree.map(jnp.asarray, THETA)
            found = jax.jit(lambda p: descend(powerprop(0.01, alpha=3.0), p, 10))(params)

            def theta(phi):
                return jax.tree.map(lambda x: x * jnp.abs(x) ** 2, phi)

            phi = jax.tree.map(lambda w: jnp.sign(w) * jnp.abs(w) ** (1 / 3), params)
            slope = jax.jit(jax.grad(lambda phi: loss(theta(phi))))
            for _ in range(10):
                phi = jax.tree.map(lambda x, g: x - 0.01 * g, phi, slope(phi))
            for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(theta(phi)), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-9)

    def test_power_one_is_gradient_descent(self):
        params = jax.tree.map(jnp.float32, THETA)
        gradient = jax.grad(loss)(params)
        for tx in (powerprop(0.1, alpha=1.0), optax.chain(scale_by_powerprop(alpha=1.0), optax.scale(-0.1))):
            updates, _ = tx.update(gradient, tx.init(params), params)
            for got, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradient), strict=True):
                np.testing.assert_allclose(got, -0.1 * g, rtol=1e-5, atol=1e-7)

    def test_first_order_form_differs_by_the_square_of_the_step(self):
        with jax.enable_x64(True):
            params = jax.tree.map(jnp.asarray, THETA)
            gradient = jax.grad(loss)(params)
            gaps = []
            for rate in (1e-3, 5e-4):
                exact, _ = (tx := powerprop(rate, alpha=2.0)).update(gradient, tx.init(params), params)
                first = optax.chain(scale_by_powerprop(alpha=2.0), optax.scale(-rate))
                approximate, _ = first.update(gradient, first.init(params), params)
                gaps.append(float(optax.tree.norm(optax.tree.sub(exact, approximate))))
        np.testing.assert_allclose(gaps[0] / gaps[1], 4, rtol=1e-2)

    def test_zero_stays_and_large_weights_move_most(self):
        params, gradient = jnp.array([0.0, 0.1, 1.0]), jnp.ones(3)
        for tx in (powerprop(0.01), optax.chain(scale_by_powerprop(), optax.scale(-0.01))):
            update = tx.update(gradient, tx.init(params), params)[0]
            assert update[0] == 0
            assert -update[2] > -5 * update[1] > 0

    def test_schedule_partition_and_half_precision(self):
        """A schedule counts; biases may go by plain descent; bf16 parameters get bf16 updates."""
        tx = optax.partition(
            {"kernel": powerprop(lambda count: jnp.where(count < 1, 0.0, 0.1)), "bias": optax.sgd(0.1)},
            {"kernel": "kernel", "bias": "bias"},
        )
        params = {"kernel": jnp.ones((2, 2), jnp.bfloat16), "bias": jnp.zeros(2)}
        update = jax.jit(tx.update)
        gradient = jax.tree.map(jnp.ones_like, params)
        first, state = update(gradient, tx.init(params), params)
        second, _ = update(gradient, state, params)
        assert (first["kernel"] == 0).all()
        assert (second["kernel"] < 0).all()
        assert second["kernel"].dtype == jnp.bfloat16
        np.testing.assert_allclose(first["bias"], -0.1)

    def test_errors(self):
        for make in (lambda **o: powerprop(0.1, **o), scale_by_powerprop):
            with pytest.raises(ValueError, match="alpha must lie in"):
                make(alpha=0.5)
            tx = make()
            with pytest.raises(ValueError, match="needs the parameters"):
                tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
