"""CS-IB: its two terms in float64 numpy, padding, schedules, and what the paper gains from it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn, objectives
from jaxdiv.testing import objectives as contract

RNG = np.random.default_rng(8)
INPUTS = RNG.normal(size=(7, 3))
TARGETS = RNG.normal(size=7)
WEIGHTS = RNG.normal(size=(3, 2))
WIDTHS = {"sigma_x": 1.5, "sigma_y": 0.8, "sigma_t": 0.7}


def model(params, state, inputs, key):
    features = jnp.tanh(inputs @ params)
    return {"features": features, "logits": features.sum(-1)}, state


def evaluate(params, batch, beta=0.5, *, apply=model, **options):
    chain = objectives.chain(objectives.forward(apply), objectives.cs_ib(beta, **{**WIDTHS, **options}))
    state = chain.init(params, batch, jax.random.key(0))
    return chain.apply(params, state, batch, jax.random.key(1))


def batch_of(dtype=jnp.float32, **extra):
    batch = {"inputs": INPUTS, "targets": TARGETS, **extra}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), batch)


def gram(u, v, sigma):
    return np.exp(-((u[:, None] - v[None]) ** 2).sum(-1) / (2 * sigma**2))


def conditional_divergence(x, y, y_hat):
    """Entry (iii): K on x, L1 on y, L2 on ŷ, L21_ji = G(ŷ_j, y_i)."""
    k = gram(x, x, WIDTHS["sigma_x"])

    def log_sum(a, b):
        return np.log(((k * gram(a, b, WIDTHS["sigma_y"])).sum(1) / k.sum(1) ** 2).sum())

    return log_sum(y, y) + log_sum(y_hat, y_hat) - 2 * log_sum(y_hat, y)


def information(x, t):
    """Entry (ii)."""
    k, q = gram(x, x, WIDTHS["sigma_x"]), gram(t, t, WIDTHS["sigma_t"])
    return np.log((k * q).mean() * k.mean() * q.mean()) - 2 * np.log((k.mean(1) * q.mean(1)).mean())


@pytest.mark.paper(8)
class CSIBContract(contract.Schedule):
    link = staticmethod(functools.partial(objectives.cs_ib, **WIDTHS))
    targets = "values"
    option = ("beta", 0.5)
    missing = "cs_ib needs 'targets'"


@pytest.mark.paper(8)
class TestCSIB(chex.TestCase):
    @chex.variants(with_jit=True)
    def test_terms_are_the_papers_formulas(self):
        features = np.tanh(INPUTS @ WEIGHTS)
        with jax.enable_x64(True):
            params = jnp.asarray(WEIGHTS)
            value, (_, aux) = self.variant(evaluate)(params, batch_of(jnp.float64))
        y, y_hat = TARGETS[:, None], features.sum(-1)[:, None]
        prediction = conditional_divergence(INPUTS, y, y_hat)
        compression = 0.5 * information(INPUTS, features)
        np.testing.assert_allclose(aux["terms"]["prediction"], prediction, rtol=1e-12)
        np.testing.assert_allclose(aux["terms"]["compression"], compression, rtol=1e-12)
        np.testing.assert_allclose(value, prediction + compression, rtol=1e-12)

    def test_zero_for_perfect_predictions_and_for_constant_features(self):
        def perfect(params, state, inputs, key):
            return {"features": jnp.ones((7, 2)) * params, "logits": batch_of()["targets"]}, state

        _, (_, aux) = jax.jit(lambda p: evaluate(p, batch_of(), apply=perfect))(jnp.float32(1.0))
        np.testing.assert_allclose(aux["terms"]["prediction"], 0.0, atol=1e-6)
        np.testing.assert_allclose(aux["terms"]["compression"], 0.0, atol=1e-6)

    def test_targets_may_be_a_column(self):
        params = jnp.asarray(WEIGHTS, jnp.float32)
        column = batch_of()
        column["targets"] = column["targets"][:, None]
        values = jax.jit(lambda *batches: [evaluate(params, batch)[0] for batch in batches])
        chex.assert_trees_all_close(*values(column, batch_of()))

    def test_outliers_pull_less_the_farther_they_are(self):
        """The paper's robustness: the gradient of the squared error grows with an outlier, this one fades."""
        params, batch = jnp.asarray(WEIGHTS, jnp.float32), batch_of()

        def pull(distance):
            moved = {**batch, "targets": batch["targets"].at[0].add(distance)}
            gradient = jax.grad(lambda p: evaluate(p, moved, 0.0)[0])(params)
            without = jax.grad(lambda p: evaluate(p, {**batch, "weights": present}, 0.0)[0])(params)
            return jnp.linalg.norm(gradient - without)

        present = jnp.ones(7).at[0].set(0.0)
        pulls = jax.jit(jax.vmap(pull))(jnp.array([10.0, 100.0, 1000.0]))
        np.testing.assert_allclose(pulls[1:], pulls[0], rtol=1e-3)

    def test_compression_halves_the_information(self):
        """From one start, training with beta = 1 keeps less than half of what beta = 0 keeps."""
        params, batch = jnp.asarray(0.3 * WEIGHTS, jnp.float32), batch_of()

        @jax.jit
        @jax.vmap
        def kept(beta):
            def body(p, _):
                return p - 0.3 * jax.grad(lambda p: evaluate(p, batch, beta)[0])(p), None

            trained = jax.lax.scan(body, params, length=200)[0]
            return evaluate(trained, batch, 1.0)[1][1]["terms"]["compression"]

        without, compressed = kept(jnp.array([0.0, 1.0]))
        assert 0 <= compressed < 0.5 * without


@pytest.mark.paper(8)
class TestErrors:
    def test_missing_features_name_the_link(self):
        def plain(params, state, inputs, key):
            return inputs @ params, state

        with pytest.raises(ValueError, match="cs_ib needs 'features'"):
            evaluate(jnp.ones((3, 1)), batch_of(), apply=plain)

    def test_unknown_denominator(self):
        with pytest.raises(ValueError, match="denominator must be one of"):
            evaluate(jnp.asarray(WEIGHTS, jnp.float32), batch_of(), denominator="paper's")

    def test_shapes_must_match(self):
        batch = batch_of()
        batch["targets"] = jnp.ones((7, 2))
        with pytest.raises(ValueError, match="same shape"):
            evaluate(jnp.asarray(WEIGHTS, jnp.float32), batch)

    def test_integer_targets_raise(self):
        batch = batch_of()
        batch["targets"] = jnp.arange(7)
        with pytest.raises(ValueError, match="floating"):
            evaluate(jnp.asarray(WEIGHTS, jnp.float32), batch)


def test_works_on_a_module():
    module = nn.MLP((3, 4, 2, 1), features=True, output_scale=0.01, rngs=nnx.Rngs(0))
    value = jax.jit(lambda params: evaluate(params, batch_of(), apply=module)[0])(
        nnx.state(module, nnx.Param)
    )
    assert value.dtype == jnp.float32
    assert bool(jnp.isfinite(value))
