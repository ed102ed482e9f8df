"""Contrastive losses and the gradient penalty: contract, numpy, log N, critics whose gradient is known."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import divergences, losses, objectives, oracles, train
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(17)
SCORES = 2 * RNG.normal(size=(5, 5))
S = jnp.asarray(SCORES, jnp.float32)
X, Y = RNG.normal(size=(2, 4, 3)).astype(np.float32)

wpc = jax.jit(losses.wpc)


@pytest.mark.paper(17)
class WPC(contract.Contract):
    """Not `PerExample`: a row's positive is at its own place, and its negatives are the batch."""

    loss = staticmethod(losses.wpc)
    targets = ()

    def draw(self, batch=contract.BATCH, classes=contract.BATCH, seed=0):
        return super().draw(batch, classes, seed)


def smooth_critic(x, y):
    return jnp.mean(jnp.sin(x) * y, -1) * x.shape[-1] ** 0.5


@pytest.mark.paper(17)
class GradientPenalty(contract.PerExample, contract.NumericOption):
    loss = staticmethod(
        lambda points, others, **kw: losses.gradient_penalty(smooth_critic, points, others, **kw)
    )
    outputs = "values"
    targets = ("values",)
    option = ("bound", 0.7)

    def test_mismatched_shapes_raise(self):
        """Points of different batches; their further axes are the critic's affair."""
        x, y = self.single()
        for wrong in ((x[:-1], y), (x, y[0]), (x[0, 0], y)):
            self.assert_raises_naming("points", *wrong)

    def test_integer_outputs_raise(self):
        """Discrete inputs have no gradient."""
        x, y = self.single()
        self.assert_raises_naming("points", x.astype(np.int32), y)
        self.assert_raises_naming("points", x, y.astype(np.int32))


@pytest.mark.paper(17)
class TestWPC:
    def test_is_its_formula(self):
        expected = np.log(np.exp(SCORES).mean(1)) - np.diagonal(SCORES)
        np.testing.assert_allclose(wpc(S), expected, rtol=1e-5, atol=1e-6)

    def test_is_cross_entropy_less_log_n(self):
        """InfoNCE classifies the positive among N, itself included."""
        expected = jax.jit(losses.cross_entropy)(S, np.arange(5)) - np.log(5)
        np.testing.assert_allclose(wpc(S), expected, rtol=1e-5, atol=1e-6)

    def test_uninformative_scores_bound_nothing(self):
        """A score of x alone certifies 0 bits."""
        np.testing.assert_allclose(wpc(np.broadcast_to(S[:, :1], (5, 5))), 0.0, atol=1e-6)

    @hypothesis.given(hnp.arrays(np.float32, (5, 5), elements=st.floats(-1e4, 1e4, width=32)))
    def test_the_bound_never_exceeds_log_n(self, scores):
        """For every matrix of scores, row by row; here the mutual information would be log 256."""
        assert np.all(-wpc(scores) <= np.log(5) + 1e-6)

    @pytest.mark.parametrize("scale", [10.0, 1e4])
    def test_perfect_scores_saturate_at_log_n(self, scale):
        np.testing.assert_allclose(wpc(scale * jnp.eye(5)), -np.log(5), atol=1e-3)

    def test_common_offset_costs_no_digits(self):
        small = np.round(SCORES * 64) / 64
        np.testing.assert_allclose(wpc(jnp.float32(small + 1e5)), wpc(jnp.float32(small)), atol=1e-6)

    def test_padded_batch_is_the_unpadded_one(self):
        """Value and gradient, with NaN in the rows and columns of absent pairs."""
        present = np.array([True, False, True, True, False])
        padded = np.where(present[:, None] & present, SCORES, np.nan).astype(np.float32)

        @jax.jit
        def value_and_gradient(scores, weights):
            value, pull = jax.vjp(lambda s: losses.wpc(s, weights=weights), scores)
            return value, pull(jnp.ones_like(value))[0]

        value, gradient = value_and_gradient(padded, present.astype(np.float32))
        kept = np.ix_(present, present)
        expected, narrow = value_and_gradient(SCORES[kept].astype(np.float32), np.ones(3, np.float32))
        np.testing.assert_allclose(value[present], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[kept], narrow, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(value[~present], 0.0)
        np.testing.assert_allclose(np.abs(gradient).sum(), np.abs(narrow).sum(), rtol=1e-5)
        chex.assert_tree_all_finite(gradient)
        chex.assert_tree_all_finite(value_and_gradient(padded, np.zeros(5, np.float32)))

    def test_weights_are_repetitions(self):
        repeats = np.array([2, 1, 0, 1, 3])
        value = wpc(S, weights=repeats.astype(np.float32))
        index = np.repeat(np.arange(5), repeats)
        np.testing.assert_allclose(
            value[index], wpc(SCORES[np.ix_(index, index)].astype(np.float32)), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize(
        ("scores", "weights", "message"),
        [
            (np.ones((2, 3), np.float32), None, "scores must be square"),
            (np.ones((2, 2), np.float32), np.ones(3), "weights must hold one weight per pair"),
            (np.ones((2, 2), np.float32), np.ones(2, bool), "weights must be floating point"),
        ],
    )
    def test_errors(self, scores, weights, message):
        with pytest.raises(ValueError, match=message):
            losses.wpc(scores, weights=weights)


A, B = RNG.normal(size=(2, 3)).astype(np.float32)
LENGTH = np.sqrt((A**2).sum() + (B**2).sum())


@pytest.mark.paper(17)
class TestGradientPenalty:
    @pytest.mark.parametrize("bound", [0.0, 1.0, 5.0])
    @pytest.mark.parametrize("one_sided", [False, True])
    def test_linear_critic(self, bound, one_sided):
        """The length is that of the gradient in both inputs together, sqrt(|a|² + |b|²)."""
        excess = LENGTH - bound
        expected = max(excess, 0.0) ** 2 if one_sided else excess**2
        value = losses.gradient_penalty(lambda x, y: x @ A + y @ B, X, Y, bound=bound, one_sided=one_sided)
        np.testing.assert_allclose(value, np.full(4, expected), rtol=1e-5)

    def test_bilinear_critic(self):
        """f = <x, y> has the gradient (y, x); images of any rank are flattened."""
        images = X.reshape(4, 1, 3), Y.reshape(4, 1, 3)
        value = losses.gradient_penalty(lambda x, y: jnp.sum(x * y, (1, 2)), *images)
        expected = (np.sqrt((X**2).sum(1) + (Y**2).sum(1)) - 1) ** 2
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    def test_trains_the_slope_toward_the_bound(self):
        """d/da of (|a| - 1)² is 2 (|a| - 1) a / |a|."""

        def penalty(a):
            return jnp.mean(losses.gradient_penalty(lambda x: x @ a, X))

        length = np.sqrt((A**2).sum())
        np.testing.assert_allclose(jax.jit(jax.grad(penalty))(A), 2 * (length - 1) * A / length, rtol=1e-4)

    @pytest.mark.parametrize(("one_sided", "value"), [(False, 1.0), (True, 0.0)])
    def test_flat_critic_has_a_gradient_of_zero_not_nan(self, one_sided, value):
        def penalty(a):
            return jnp.mean(losses.gradient_penalty(lambda x: jnp.tanh(x @ a), X, one_sided=one_sided))

        penalized, gradient = jax.jit(jax.value_and_grad(penalty))(jnp.zeros(3))
        assert penalized == value
        np.testing.assert_array_equal(gradient, 0.0)

    @pytest.mark.parametrize("critic", [lambda x: x, lambda x: jnp.sum(x), lambda x: x[:, :1]])
    def test_critic_must_give_one_value_per_row(self, critic):
        with pytest.raises(ValueError, match=r"critic must give one value per row, shape \(4,\)"):
            losses.gradient_penalty(critic, X)

    def test_other_errors(self):
        with pytest.raises(ValueError, match="points must be arrays"):
            losses.gradient_penalty(lambda: jnp.zeros(4))
        with pytest.raises(ValueError, match="bound must lie in"):
            losses.gradient_penalty(lambda x: x[:, 0], X, bound=-1.0)


@pytest.mark.paper(17)
class TestRandomInterpolates:
    def test_one_share_per_example_for_all_arrays(self):
        """t points + (1 - t) others, t uniform: its mean 1/2 and its variance 1/12 over 4,000 draws."""
        key = jax.random.key(0)
        ones, twos = np.ones((4000, 2), np.float32), {"y": 2 * np.ones(4000, np.float32)}
        x, y = losses.random_interpolates((ones, twos), (0 * ones, {"y": 0 * twos["y"]}), key=key)
        np.testing.assert_allclose(y["y"], 2 * x[:, 0], rtol=1e-6)
        np.testing.assert_array_equal(x[:, 0], x[:, 1])
        assert x.min() >= 0
        assert x.max() < 1
        np.testing.assert_allclose([x[:, 0].mean(), x[:, 0].var()], [1 / 2, 1 / 12], atol=0.02)

    def test_both_ends(self):
        """A point between equal ones is that point; half precision stays."""
        x = X.astype(jnp.bfloat16)
        between = losses.random_interpolates(x, x, key=jax.random.key(1))
        assert between.dtype == jnp.bfloat16
        np.testing.assert_array_equal(between, x)

    def test_errors(self):
        key = jax.random.key(0)
        for points, others in (
            ((X, Y), (X,)),
            (X, Y[:3]),
            (X, Y[:, :2]),
            (X[:0], Y[:0]),
            ((X, Y[:2]), (X, Y[:2])),
        ):
            with pytest.raises(ValueError, match=r"points|tuple|Tuple"):
                losses.random_interpolates(points, others, key=key)
        with pytest.raises(ValueError, match="others must be floating point"):
            losses.random_interpolates(X, Y.astype(np.int32), key=key)


def critic(params, x, y):
    return jnp.sum((x @ params) * y, -1)


def apply(params, state, inputs, key):
    x, y = inputs["x"], inputs["y"]
    between = losses.random_interpolates((x, y), (x, jnp.roll(y, 1, axis=0)), key=key)
    penalty = losses.gradient_penalty(lambda *points: critic(params, *points), *between, one_sided=True)
    return {"scores": x @ params @ y.T, "penalty": penalty}, state


@pytest.mark.paper(17)
def test_composes_into_a_training_step():
    """WPC and its dual value under one chain: both rise, and the penalty keeps the critic's slope near 1."""
    batch_loss = objectives.batch_loss(
        lambda scores, _, weights: jnp.sum(weights * losses.wpc(scores, weights=weights)) / jnp.sum(weights),
        name="wpc",
        output="scores",
        target="inputs",
    )
    measure = objectives.metric(
        lambda scores, _: divergences.wasserstein_dependency(scores),
        name="dependency",
        output="scores",
        target="inputs",
    )

    def objective(strength):
        penalty = objectives.feature_regularizer(
            lambda p: p, name="penalty", output="penalty", weight=strength
        )
        return objectives.chain(objectives.forward(apply), measure, batch_loss, penalty, objectives.mean())

    @jax.jit
    def trained(strength, batch):
        init, step = train.make_step(objective(strength), oracles.plain(), optax.adam(0.1))
        state = init(jnp.zeros((3, 3)), batch, jax.random.key(0))
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=100)

    batch = {"inputs": {"x": X, "y": X}}
    for strength, steep in ((10.0, False), (0.0, True)):
        state, metrics = trained(strength, batch)
        slopes = losses.gradient_penalty(lambda *p, a=state.params: critic(a, *p), X, X, bound=0.0)
        assert (float(jnp.sqrt(slopes.mean())) > 3) == steep
        assert metrics["terms"]["wpc"][-1] < metrics["terms"]["wpc"][0] == 0
        assert metrics["metrics"]["dependency"][-1] > 0.1
        assert metrics["terms"]["wpc"].min() >= -np.log(4)

    padded = {
        "inputs": {"x": np.vstack([X, X[:2]]), "y": np.vstack([X, np.full((2, 3), np.nan, np.float32)])}
    }
    weights = np.array([1, 1, 1, 1, 0, 0], np.float32)
    chain = objectives.chain(objectives.forward(apply), batch_loss)

    @jax.jit
    def value_and_grad(params, batch):
        state = chain.init(params, batch, jax.random.key(0))
        return jax.value_and_grad(lambda p: chain.apply(p, state, batch, jax.random.key(1))[0])(params)

    chex.assert_trees_all_close(
        value_and_grad(jnp.eye(3), {**padded, "weights": weights}),
        value_and_grad(jnp.eye(3), batch),
        rtol=1e-5,
    )
