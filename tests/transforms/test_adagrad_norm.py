"""AdaGrad-Norm: contract, definition, and its difference from AdaGrad by coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(84)


class AdagradNormContract(contract.Contract):
    transform = staticmethod(transforms.scale_by_adagrad_norm)
    learning_rate = 2.0
    option = ("initial_accumulator_value", 0.5)


def updates_of(tx, gradients):
    def body(state, gradient):
        update, state = tx.update(gradient, state)
        return state, update

    start = tx.init(jax.tree.map(lambda rows: rows[0], gradients))
    return jax.jit(lambda: jax.lax.scan(body, start, gradients)[1])()


@pytest.mark.paper(84)
class TestExact:
    def test_divides_by_the_root_of_the_sum_of_squared_norms(self):
        with jax.enable_x64(True):
            gradients = {
                "a": jnp.asarray(RNG.normal(size=(5, 3))),
                "b": jnp.asarray(RNG.normal(size=(5, 2, 2))),
            }
            got = updates_of(transforms.scale_by_adagrad_norm(0.3), gradients)
        got, gradients = jax.tree.map(np.asarray, (got, gradients))
        flat = np.concatenate([leaf.reshape(5, -1) for leaf in gradients.values()], 1)
        norms = np.sqrt(0.3 + np.cumsum(np.sum(flat**2, 1)))
        np.testing.assert_allclose(got["a"], gradients["a"] / norms[:, None], rtol=1e-12)
        np.testing.assert_allclose(got["b"], gradients["b"] / norms[:, None, None], rtol=1e-12)

    def test_of_one_number_is_optaxs_adagrad(self):
        gradients = jnp.asarray(RNG.normal(size=(6, 1)), jnp.float32)
        got = updates_of(transforms.scale_by_adagrad_norm(0.1), gradients)
        np.testing.assert_allclose(got, updates_of(optax.scale_by_rss(0.1, eps=0.0), gradients), rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_squares_neither_overflow_nor_vanish(self, scale):
        gradient = jnp.array([[3.0, 4.0]]) * scale
        got = updates_of(transforms.scale_by_adagrad_norm(1e-37), gradient)
        expected = 5 * scale / np.hypot(5 * scale, 1e-37**0.5)
        np.testing.assert_allclose(np.hypot(*got[0]), expected, rtol=1e-5)


@pytest.mark.paper(84)
def test_keeps_the_gradients_direction():
    """Unlike AdaGrad by coordinates, whose first update is the gradient's sign."""
    gradients = jnp.array([[30.0, 0.4]])
    ratio = {}
    for name, tx in {
        "norm": transforms.scale_by_adagrad_norm(1e-6),
        "rss": optax.scale_by_rss(1e-6, 0.0),
    }.items():
        update = updates_of(tx, gradients)[0]
        ratio[name] = float(update[0] / update[1])
    np.testing.assert_allclose(ratio["norm"], 75.0, rtol=1e-5)
    np.testing.assert_allclose(ratio["rss"], 1.0, rtol=1e-4)


def test_accumulator_must_be_positive():
    with pytest.raises(ValueError, match="initial_accumulator_value must lie in"):
        transforms.scale_by_adagrad_norm(0.0)
