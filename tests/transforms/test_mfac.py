"""M-FAC as an optax transform: the dense preconditioner over its window, and its place in a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(62)
M, D = 4, 7


class MFACContract(contract.Contract):
    """A window of 8; the toys start with damped steps, since the window fills with long ones."""

    learning_rate = 0.8
    option = ("damping", 0.3)

    @staticmethod
    def transform(damping=1.0):
        return transforms.scale_by_mfac(8, damping)


def updates_of(tx, grads):
    def body(state, g):
        update, state = tx.update(g, state)
        return state, update

    return jax.jit(lambda grads: jax.lax.scan(body, tx.init(grads[0]), grads)[1])(jnp.asarray(grads))


def defined(grads, m, damping):
    """(λ I + Gᵀ G/m)⁻¹ g at every step, G the last m gradients."""
    out = []
    for t, g in enumerate(grads):
        window = grads[max(t - m + 1, 0) : t + 1]
        out.append(np.linalg.solve(damping * np.eye(len(g)) + window.T @ window / m, g))
    return np.array(out)


@pytest.mark.paper(62)
class TestExact:
    def test_is_the_dense_preconditioner_over_the_window(self):
        grads = RNG.normal(size=(3 * M + 1, D))
        with jax.enable_x64(True):
            got = updates_of(transforms.scale_by_mfac(M, 1e-3), grads)
        np.testing.assert_allclose(got, defined(grads, M, 1e-3), rtol=1e-9)

    def test_single_precision(self):
        grads = RNG.normal(size=(2 * M, D)).astype(np.float32)
        got = updates_of(transforms.scale_by_mfac(M, 1e-5), grads)
        np.testing.assert_allclose(got, defined(grads.astype(np.float64), M, 1e-5), rtol=1e-2, atol=1e-4)

    def test_large_damping_is_gradient_descent(self):
        grads = RNG.normal(size=(M, D)).astype(np.float32)
        got = updates_of(transforms.scale_by_mfac(M, 1e6), grads)
        np.testing.assert_allclose(1e6 * np.asarray(got), grads, rtol=1e-4)

    def test_coupled_weight_decay_enters_the_window(self):
        """The papers' chain: what is preconditioned is what is kept."""
        params = jnp.asarray(RNG.normal(size=D))
        g = RNG.normal(size=D).astype(np.float32)
        tx = optax.chain(optax.add_decayed_weights(0.1), transforms.scale_by_mfac(M, 0.01))
        update, state = tx.update(jnp.asarray(g), tx.init(params), params)
        decayed = g + 0.1 * np.asarray(params)
        np.testing.assert_allclose(update, defined(decayed[None], M, 0.01)[0], rtol=1e-4)
        np.testing.assert_allclose(state[1].window.grads[0], decayed, rtol=1e-6)


@pytest.mark.paper(62)
class TestProperty:
    def test_a_column_scale_changes_little(self):
        """Gradients of a quadratic with column scales 1 and 100: the update keeps to the short axis' scale."""
        grads = RNG.normal(size=(64, 2)).astype(np.float32) * np.array([100.0, 1.0], np.float32)
        update = updates_of(transforms.scale_by_mfac(64, 1e-4), grads)[-1]
        ratio = np.abs(update / grads[-1])
        np.testing.assert_allclose(ratio[1] / ratio[0], 1e4, rtol=0.5)

    def test_half_precision_gradients(self):
        """State in float32, updates in the gradient's dtype."""
        params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
        tx = transforms.scale_by_mfac(2, 0.1)
        update, state = tx.update(params, tx.init(params))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(update)} == {"bfloat16"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


@pytest.mark.paper(62)
class TestBadInput:
    def test_options(self):
        with pytest.raises(ValueError, match="window must be at least 1; got 0"):
            transforms.scale_by_mfac(0)
        with pytest.raises(ValueError, match="damping must lie in"):
            transforms.scale_by_mfac(damping=0.0)
