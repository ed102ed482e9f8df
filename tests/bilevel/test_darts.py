"""Mixing weights of architecture search, and the search with and without self-distillation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiv import bilevel, losses, objectives
from jaxdiv.bilevel import mix_weights
from jaxdiv.objectives import voting_self_distillation

ALPHA = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
OUTPUTS = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.paper(112)
class TestMixWeights:
    def test_are_the_definitions(self):
        w = softmax(ALPHA)
        np.testing.assert_allclose(mix_weights(ALPHA), w, rtol=1e-6)
        got = mix_weights(ALPHA, kind="max_w")
        np.testing.assert_allclose(got, 1 - w.max(1, keepdims=True) + w, rtol=1e-6)

    @given(st.lists(st.floats(-40, 40, width=32), min_size=5, max_size=5))
    @settings(deadline=None, derandomize=True, max_examples=20)
    def test_best_has_one_the_others_less(self, alpha):
        """Weights lie in (0, 1] and the largest alpha has exactly 1, in the order of alpha."""
        alpha = np.asarray(alpha, np.float32)
        got = np.asarray(mix_weights(alpha, kind="max_w"))
        assert got[np.argmax(alpha)] == 1
        assert np.all(got >= 0)
        assert np.all(got <= 1)
        assert np.all(np.diff(got[np.argsort(alpha)]) >= 0)

    def test_equal_alphas_give_the_plain_sum(self):
        """K times the softmax mixture."""
        alpha = jnp.full(5, 0.7)
        np.testing.assert_array_equal(mix_weights(alpha, kind="max_w"), 1.0)
        np.testing.assert_allclose(mix_weights(alpha, kind="max_w"), 5 * mix_weights(alpha), rtol=1e-6)

    @pytest.mark.parametrize("kind", ["softmax", "max_w"])
    def test_a_constant_changes_nothing(self, kind):
        np.testing.assert_allclose(
            mix_weights(ALPHA + 3, kind=kind), mix_weights(ALPHA, kind=kind), rtol=1e-5
        )

    @pytest.mark.parametrize("kind", ["softmax", "max_w"])
    def test_derivative_is_that_of_the_softmax(self, kind):
        """∂L/∂α_j = Σ_i (∂L/∂m_i) w_i (δ_ij − w_j)."""
        gradient = jax.grad(lambda alpha: jnp.sum(OUTPUTS * mix_weights(alpha, kind=kind)))(ALPHA)
        w = softmax(ALPHA)
        want = w * (OUTPUTS - np.sum(OUTPUTS * w, 1, keepdims=True))
        np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6)

    def test_without_the_stop_the_best_output_gives_no_gradient(self):
        """Its weight is the constant 1; alpha of the best moves by the others alone."""
        best = np.argmax(ALPHA[0])
        jacobian = jax.jacobian(functools.partial(mix_weights, kind="max_w", stop_max=False))(ALPHA[0])
        np.testing.assert_allclose(jacobian[best], 0.0, atol=1e-7)
        assert np.all(np.delete(jacobian[:, best], best) < 0)
        stopped = jax.jacobian(functools.partial(mix_weights, kind="max_w"))(ALPHA[0])
        assert stopped[best, best] > 0.1

    def test_axes_that_compete_together(self):
        """A grid of edges is one group."""
        grid = mix_weights(jnp.asarray(ALPHA), kind="max_w", axis=(0, 1))
        np.testing.assert_allclose(
            grid.ravel(), mix_weights(jnp.asarray(ALPHA).ravel(), kind="max_w"), rtol=1e-6
        )
        np.testing.assert_allclose(mix_weights(ALPHA.T, axis=0), softmax(ALPHA).T, rtol=1e-6)

    def test_half_precision_is_computed_in_float32(self):
        half = jnp.asarray(ALPHA, jnp.bfloat16)
        got = jax.jit(functools.partial(mix_weights, kind="max_w"))(half)
        assert got.dtype == jnp.bfloat16
        exact = mix_weights(half.astype(jnp.float32), kind="max_w")
        np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="kind must be one of"):
            mix_weights(ALPHA, kind="max")
        with pytest.raises(ValueError, match="alpha must be floating point"):
            mix_weights(np.arange(3))
        with pytest.raises(ValueError, match="axis must name distinct axes of alpha"):
            mix_weights(ALPHA, axis=2)


RNG = np.random.default_rng(2)
X, LABELS = RNG.normal(size=(2, 12, 4)).astype(np.float32), RNG.integers(0, 3, (2, 12)).astype(np.int32)
DATA = bilevel.Data(*({"inputs": x, "targets": y} for x, y in zip(X, LABELS, strict=True)))
WEIGHTS = {
    "op": 0.5 * RNG.normal(size=(4, 4)).astype(np.float32),
    "head": 0.5 * RNG.normal(size=(4, 3)).astype(np.float32),
}
FIRST = np.array([0.3, -0.2, 0.1], np.float32)
STEP = 0.3


def supernet(pair, state, inputs, key):
    """One mixed operation of zero, skip and tanh."""
    alpha, weights = pair
    mix = mix_weights(alpha)
    hidden = mix[1] * inputs + mix[2] * jnp.tanh(inputs @ weights["op"])
    return hidden @ weights["head"], state


def search(order, links=()):
    """The search with links beside the training loss, and its first state."""
    cross_entropy = objectives.forward(supernet), objectives.loss(losses.cross_entropy, name="ce")
    inner = objectives.chain(*cross_entropy, *links, objectives.mean())
    outer = objectives.chain(*cross_entropy, objectives.mean())
    estimator = bilevel.first_order() if order == "first" else bilevel.finite_difference(STEP)
    problem = bilevel.problem(inner, outer)
    init, step = bilevel.make_step(problem, estimator, optax.sgd(STEP), optax.sgd(5.0), inner_steps=1)
    return init(jnp.asarray(FIRST), WEIGHTS, DATA, jax.random.key(0)), step


@functools.partial(jax.jit, static_argnames=("order", "distils"))
def path(order, distils=False, weight=0.0):
    """Architecture and weights after each of three steps."""
    link = voting_self_distillation(supernet, interval=1, num_teachers=1, weight=weight)
    state, step = search(order, (link,) if distils else ())
    states = jax.lax.scan(lambda s, _: (step(s, DATA)[0],) * 2, state, length=3)[1]
    return states.outer, states.inner


@functools.partial(jax.jit, static_argnames="order")
def beside_itself(order):
    """One step with what the student is now as the teacher."""
    link = voting_self_distillation(supernet, interval=1, num_teachers=1)
    state, step = search(order, (link,))
    forward, loss, voting, mean = state.memory[0]
    teachers = jax.tree.map(lambda leaf: leaf[None], ((state.outer, state.inner), ()))
    voting = voting._replace(teachers=teachers, updates=jnp.ones((), jnp.int32))
    state, _ = step(state._replace(memory=((forward, loss, voting, mean), state.memory[1])), DATA)
    return state.outer, state.inner


@pytest.mark.paper(49)
class TestSelfDistillation:
    @pytest.mark.parametrize("order", ["first", "second"])
    def test_weight_zero_is_darts(self, order):
        """The same steps of weights and architecture."""
        plain, idle, busy = path(order), path(order, True), path(order, True, 5.0)
        chex.assert_trees_all_close(idle, plain, rtol=1e-6, atol=1e-7)
        assert np.max(np.abs(busy[0] - plain[0])) > 1e-4

    @pytest.mark.parametrize("order", ["first", "second"])
    def test_teacher_that_is_the_student(self, order):
        """It moves neither the weights nor the first order's architecture, but the second order's.

        The divergence is stationary there, but its Hessian is not 0.
        """
        alpha, weights = beside_itself(order)
        plain = jax.tree.map(lambda leaf: leaf[0], path(order))
        chex.assert_trees_all_close(weights, plain[1], rtol=1e-5, atol=1e-6)
        gap = np.max(np.abs(alpha - plain[0]))
        assert gap < 1e-6 if order == "first" else gap > 1e-4
