"""Freezing by disorder: its two extremes, the mask's timing, thawing, and what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

K = 5
ALTERNATING = [1.0, -1.0] * 10


class FreezeContract(contract.Contract):
    learning_rate = 0.49
    option = ("threshold", 0.5)
    smooth = False

    @staticmethod
    def transform(threshold=0.3):
        return transforms.freeze_by_gradient_disorder(optax.identity(), threshold=threshold)


def run(gradients, inner=None, **options):
    """Updates and states at every step."""
    tx = transforms.freeze_by_gradient_disorder(inner or optax.sgd(1.0), window=K, **options)
    rows = jnp.asarray(gradients)

    def body(state, gradient):
        update, state = tx.update(gradient, state)
        return state, (update, state)

    _, (updates, states) = jax.jit(lambda rows: jax.lax.scan(body, tx.init(rows[0]), rows))(rows)
    return np.asarray(updates), states


@pytest.mark.paper(195)
class TestExact:
    def test_disorder_of_constant_and_alternating_signs(self):
        """0 and 1; a change between two windows counts in neither: + + + + − | + … has δ = 1/4."""
        constant, alternating = np.ones(2 * K), np.array(ALTERNATING[: 2 * K])
        late = np.array([1.0, 1, 1, 1, -1, 1, 1, 1, 1, 1])
        _, states = run(np.stack([constant, alternating, late], 1))
        np.testing.assert_array_equal(states.disorder[K - 2], np.zeros(3))
        np.testing.assert_allclose(states.disorder[K - 1], [0.0, 1.0, 0.25])
        np.testing.assert_allclose(states.disorder[-1], [0.0, 1.0, 0.0])

    def test_zero_is_a_sign_of_its_own(self):
        _, states = run(np.array([1.0, 0.0, 0.0, 1.0, 1.0])[:, None])
        np.testing.assert_allclose(states.disorder[-1], [0.5])

    def test_freezes_from_the_next_window_on_and_thaws(self):
        """Disordered in the first window, ordered in the second: frozen through the second, free in the third."""
        gradients = np.array(ALTERNATING[:K] + [1.0] * (2 * K))[:, None]
        updates, _ = run(gradients)
        np.testing.assert_array_equal(updates[:K], -gradients[:K])
        np.testing.assert_array_equal(updates[K : 2 * K], np.zeros((K, 1)))
        np.testing.assert_array_equal(updates[2 * K :], -gradients[2 * K :])

    @pytest.mark.parametrize("threshold", [1.0, 2.0])
    def test_threshold_of_one_never_freezes(self, threshold):
        gradients = np.array(ALTERNATING)[:, None]
        np.testing.assert_array_equal(run(gradients, threshold=threshold)[0], -gradients)

    def test_below(self):
        gradients = np.stack([np.ones(2 * K), ALTERNATING[: 2 * K]], 1)
        updates, _ = run(gradients, freeze_when="below")
        np.testing.assert_array_equal(updates[K:], -gradients[K:] * np.array([0.0, 1.0]))

    def test_measured_stands_in_for_the_gradient(self):
        tx = transforms.freeze_by_gradient_disorder(optax.sgd(1.0), window=2)
        state = tx.init(jnp.zeros(2))
        for signs in ([1.0, 1.0], [-1.0, 1.0]):
            _, state = tx.update(jnp.ones(2), state, measured=jnp.array(signs))
        np.testing.assert_array_equal(state.frozen, [True, False])


@pytest.mark.paper(195)
def test_momentum_moves_nothing_while_frozen():
    """The update is masked, not the gradient: Adam's momentum of the first window would move on."""
    gradients = np.array([*ALTERNATING[: K - 1], 100.0, *[0.0] * K])[:, None]
    updates, _ = run(gradients, inner=optax.adam(1.0))
    assert np.all(updates[:K] != 0)
    np.testing.assert_array_equal(updates[K:], np.zeros((K, 1)))


def test_only_the_steps_of_quantizers_in_a_partition():
    params = {"weights": jnp.ones(3), "step": jnp.ones(())}
    frozen = transforms.freeze_by_gradient_disorder(optax.sgd(1.0), window=2)
    tx = optax.partition({"w": optax.sgd(1.0), "s": frozen}, {"weights": "w", "step": "s"})
    state = tx.init(params)
    for sign in (1.0, -1.0, 1.0):
        update, state = tx.update(jax.tree.map(lambda p, sign=sign: sign * p, params), state, params)
    assert update["step"] == 0
    np.testing.assert_array_equal(update["weights"], -np.ones(3))


def test_bad_options():
    with pytest.raises(ValueError, match="window must be at least 2; got 1"):
        transforms.freeze_by_gradient_disorder(optax.sgd(1.0), window=1)
    with pytest.raises(ValueError, match="freeze_when must be one of"):
        transforms.freeze_by_gradient_disorder(optax.sgd(1.0), freeze_when="over")
