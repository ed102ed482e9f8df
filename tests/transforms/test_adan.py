"""Adan: contract, golden numbers of the authors' algorithm, its identities, and where optax's differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(7)


class ScaleByAdanContract(contract.Contract):
    transform = staticmethod(transforms.scale_by_adan)
    learning_rate = 0.1
    option = ("b2", 0.8)


class AdanContract(contract.Contract):
    learning_rate = None
    needs_params = True
    option = ("weight_decay", 0.5)

    @staticmethod
    def transform(weight_decay=1e-3):
        rate = optax.cosine_decay_schedule(0.1, contract.STEPS)
        return transforms.adan(rate, weight_decay=weight_decay)


def iterates(tx, gradients, start=0.0):
    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    gradients = jnp.asarray(gradients)
    start = jnp.full(gradients.shape[1:], start, gradients.dtype)
    return jax.jit(lambda s: jax.lax.scan(body, (s, tx.init(s)), gradients)[1])(start)


@pytest.mark.paper(101)
class TestExact:
    def test_golden_numbers(self):
        """The authors' algorithm on five scalar gradients; optax 0.2.8 leaves it at the second."""
        gradients = [1.0, 0.5, -0.2, 0.8, 0.1]
        with jax.enable_x64(True):
            golden = [-0.1, -0.17194972, -0.17717683, -0.22367747, -0.25067385]
            np.testing.assert_allclose(iterates(transforms.adan(0.1), gradients), golden, atol=5e-9)
        np.testing.assert_allclose(iterates(transforms.adan(0.1), gradients), golden, rtol=1e-5)
        theirs = iterates(optax.adan(0.1, eps_root=0.0), gradients)
        np.testing.assert_allclose(theirs[:2], [-0.1, -0.19351186], rtol=1e-5)

    @pytest.mark.parametrize(("proximal", "decay"), [(True, 0.0), (True, 0.7), (False, 0.7)])
    def test_is_its_formulas(self, proximal, decay):
        gradients, rate, (b1, b2, b3) = RNG.normal(size=(12, 3)), 0.1, (0.98, 0.92, 0.99)
        theta, m, v, n, last = np.ones(3), *np.zeros((3, 3)), gradients[0]
        expected = []
        for t, g in enumerate(gradients, 1):
            d, last = g - last, g
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
            n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
            u = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + 1e-8)
            if proximal:
                theta = (theta - rate * u) / (1 + rate * decay)
            else:
                theta = theta * (1 - rate * decay) - rate * u
            expected.append(theta)
        tx = transforms.adan(rate, weight_decay=decay, proximal=proximal)
        with jax.enable_x64(True):
            np.testing.assert_allclose(iterates(tx, gradients, 1.0), expected, rtol=1e-12)

    def test_constant_gradient_is_adam(self):
        """Without differences it is Adam of decays b1 and b3, with corrected moments."""
        gradients = np.broadcast_to(RNG.normal(size=3).astype(np.float32), (20, 3))
        ours = iterates(transforms.adan(0.1), gradients)
        np.testing.assert_allclose(ours, iterates(optax.adam(0.1, 0.98, 0.99), gradients), rtol=1e-5)

    def test_without_decay_both_kinds_agree(self):
        gradients = RNG.normal(size=(12, 3)).astype(np.float32)
        one, other = (iterates(transforms.adan(0.1, proximal=kind), gradients) for kind in (True, False))
        np.testing.assert_allclose(one, other, rtol=1e-6)

    @pytest.mark.parametrize("option", ["b1", "b2", "b3"])
    def test_decays_are_checked(self, option):
        with pytest.raises(ValueError, match=f"{option} must lie in"):
            transforms.adan(0.1, **{option: 1.0})


@pytest.mark.paper(101)
def test_extrapolates_where_gradients_grow():
    """In the limit of a gradient that grows by a each step, the correction adds b2 a to the average."""
    b1, b2, b3, slope = 0.5, 0.6, 0.7, 0.25
    times = np.arange(1, 201)
    with jax.enable_x64(True):
        tx = transforms.scale_by_adan(b1=b1, b2=b2, b3=b3, eps=0.0)

        def body(state, g):
            update, state = tx.update(g, state)
            return state, (update, state)

        _, (updates, states) = jax.jit(lambda g: jax.lax.scan(body, tx.init(g[0]), g))(
            jnp.asarray(slope * times)
        )
        # An average of decay b lags by b/(1 − b) steps.
        lagged = slope * (times[-1] - b1 / (1 - b1))
        np.testing.assert_allclose(states.mu[-1], lagged, rtol=1e-10)
        np.testing.assert_allclose(states.nu[-1], slope, rtol=1e-10)
        np.testing.assert_allclose(updates[-1] * np.sqrt(states.square[-1]), lagged + b2 * slope, rtol=1e-10)
