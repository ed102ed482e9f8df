"""The plain oracle: contract and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import oracles
from jaxdiv.testing import oracles as contract


class PlainContract(contract.Gradient):
    oracle = staticmethod(oracles.plain)


def test_quadratic():
    """L = w'Aw/2 - b'w: the gradient is Aw - b."""
    a, b, w = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([1.0, -1.0]), jnp.array([0.5, -2.0])

    def loss(w, state, batch, key):
        value = w @ a @ w / 2 - b @ w
        return value, (state + 1, {"terms": {"q": value}, "losses": {}, "metrics": {}})

    (value, aux), gradient, oracle_state, state = oracles.plain().value_and_grad(
        loss, w, (), 3, {}, jax.random.key(0)
    )
    np.testing.assert_allclose(gradient, [-2.0, -4.5], rtol=1e-6)
    np.testing.assert_allclose(value, 2.75, rtol=1e-6)
    assert (oracle_state, state) == ((), 4)
    np.testing.assert_array_equal(aux["terms"]["q"], value)
