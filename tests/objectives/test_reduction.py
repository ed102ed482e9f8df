"""Reductions against sorting, scipy's minimizations and limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import objectives

B = 6
NAMES = ("mean", "cvar", "kl_dro")


def reduced(link, named, weights):
    record = objectives.from_batch({"inputs": jnp.zeros(B), "weights": weights})
    return link.update(None, (), record._replace(losses=named), None)[0].terms


@jax.jit
def reduce(losses, weights, alpha, temperature):
    """Value and gradient of each reduction."""

    def value(link, name):
        return jax.value_and_grad(lambda x: reduced(link, {"l": x}, weights)[name])(losses)

    return {
        "mean": value(objectives.mean(), "l"),
        "cvar": value(objectives.cvar(alpha), "cvar"),
        "kl_dro": value(objectives.kl_dro(temperature), "kl_dro"),
    }


def draw(seed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 2, B)
    weights[rng.integers(B)] = 0
    return 3 * rng.normal(size=B), weights


def double(losses, weights, alpha=0.5, temperature=1.0):
    with jax.enable_x64(True):
        result = reduce(np.float64(losses), np.float64(weights), np.float64(alpha), np.float64(temperature))
        return jax.tree.map(np.asarray, result)


class TestMean:
    @given(st.integers(0, 1000))
    def test_is_numpys(self, seed):
        losses, weights = draw(seed)
        value, gradient = double(losses, weights)["mean"]
        np.testing.assert_allclose(value, np.average(losses, weights=weights), rtol=1e-12)
        np.testing.assert_allclose(gradient, weights / weights.sum(), rtol=1e-12)

    def test_keeps_names(self):
        named = {"a": jnp.ones(B), "b": 2 * jnp.ones(B)}
        terms = reduced(objectives.mean(), named, jnp.ones(B))
        chex.assert_trees_all_close(terms, {"a": jnp.float32(1), "b": jnp.float32(2)})


class TestCVaR:
    @given(st.integers(1, B), st.integers(0, 1000))
    def test_is_the_mean_of_the_worst(self, count, seed):
        losses = draw(seed)[0]
        value, gradient = double(losses, np.ones(B), alpha=count / B)["cvar"]
        np.testing.assert_allclose(value, np.sort(losses)[-count:].mean(), rtol=1e-12)
        worst = losses >= np.sort(losses)[-count]
        np.testing.assert_allclose(gradient, worst / count, rtol=1e-9, atol=1e-12)

    @given(st.integers(0, 1000), st.floats(0.05, 1.0))
    def test_is_rockafellar_and_uryasevs_minimum(self, seed, alpha):
        """min_t t + E (l - t)_+ / alpha, a linear program, for any weights and fraction."""
        losses, weights = draw(seed)
        p = weights / weights.sum()
        program = scipy.optimize.linprog(
            np.append(p / alpha, 1.0),
            A_ub=np.hstack([-np.eye(B), -np.ones((B, 1))]),
            b_ub=-losses,
            bounds=[(0, None)] * B + [(None, None)],
        )
        # Rows of weight 0 cost nothing, so the program ignores them too.
        np.testing.assert_allclose(double(losses, weights, alpha=alpha)["cvar"][0], program.fun, rtol=1e-8)

    def test_limits_are_maximum_and_mean(self):
        losses, weights = draw(0)
        present = weights > 0
        smallest = double(losses, weights, alpha=1e-4)["cvar"][0]
        np.testing.assert_allclose(smallest, losses[present].max(), rtol=1e-12)
        whole = double(losses, weights, alpha=1.0)
        np.testing.assert_allclose(whole["cvar"][0], whole["mean"][0], rtol=1e-12)

    def test_acts_on_the_sum_of_losses(self):
        a, b = jnp.arange(6.0), jnp.array([5.0, 0, 0, 0, 0, 0])
        terms = reduced(objectives.cvar(1 / 3), {"a": a, "b": b}, jnp.ones(B))
        assert list(terms) == ["cvar"]
        np.testing.assert_allclose(terms["cvar"], 5.0, rtol=1e-6)

    @pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, np.nan])
    def test_alpha_must_be_a_fraction(self, alpha):
        with pytest.raises(ValueError, match="alpha must lie in"):
            objectives.cvar(alpha)


class TestKLDRO:
    @given(st.integers(0, 1000), st.floats(0.1, 10.0))
    def test_is_the_log_mean_exp_and_its_worst_weights(self, seed, temperature):
        losses, weights = draw(seed)
        value, gradient = double(losses, weights, temperature=temperature)["kl_dro"]
        p = weights / weights.sum()
        expected = temperature * scipy.special.logsumexp(losses / temperature, b=p)
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)
        q = p * np.exp(losses / temperature)
        np.testing.assert_allclose(gradient, q / q.sum(), rtol=1e-7, atol=1e-12)

    def test_is_the_supremum_over_weights(self):
        """sup_q E_q l - temperature KL(q || p), maximized by scipy over the simplex."""
        losses, weights = draw(3)
        present = weights > 0
        p = weights[present] / weights.sum()

        def negative(z):
            q = scipy.special.softmax(z)
            return -(q @ losses[present] - 0.7 * scipy.special.rel_entr(q, p).sum())

        best = scipy.optimize.minimize(negative, np.zeros(p.size), tol=1e-12)
        value = double(losses, weights, temperature=0.7)["kl_dro"][0]
        assert value >= -best.fun - 1e-12
        np.testing.assert_allclose(value, -best.fun, rtol=1e-7)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_limits_are_maximum_and_mean(self, dtype):
        losses, weights = draw(1)
        with jax.enable_x64(dtype is np.float64):
            low, high = (
                reduce(dtype(losses), dtype(weights), dtype(0.5), dtype(t))["kl_dro"][0] for t in (1e-6, 1e6)
            )
        np.testing.assert_allclose(low, losses[weights > 0].max(), rtol=1e-4)
        np.testing.assert_allclose(high, np.average(losses, weights=weights), rtol=1e-4)

    def test_large_losses_do_not_overflow(self):
        losses = np.float32([1e4, 1e4, 0, 0, 0, 0])
        value, gradient = reduce(losses, np.ones(B, np.float32), np.float32(1), np.float32(1))["kl_dro"]
        np.testing.assert_allclose(value, 1e4 - np.log(3), rtol=1e-6)
        np.testing.assert_allclose(gradient, [0.5, 0.5, 0, 0, 0, 0], rtol=1e-5)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
    def test_temperature_must_be_positive_and_finite(self, temperature):
        with pytest.raises(ValueError, match="temperature must lie in"):
            objectives.kl_dro(temperature)


class TestWeights:
    @pytest.mark.parametrize("name", NAMES)
    def test_batch_of_padding_has_value_zero(self, name):
        value, gradient = double(np.full(B, np.nan), np.zeros(B))[name]
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("name", NAMES)
    def test_nan_counts_only_where_a_row_does(self, name):
        losses, weights = draw(2)
        clean = double(losses, weights)[name]
        spoiled = np.where(weights == 0, np.nan, losses)
        chex.assert_trees_all_close(double(spoiled, weights)[name], clean)
        spoiled = np.where(np.arange(B) == np.argmax(weights), np.nan, losses)
        assert np.isnan(double(spoiled, weights)[name][0])

    @pytest.mark.parametrize("name", NAMES)
    def test_scale_of_the_weights_does_not_matter(self, name):
        losses, weights = draw(4)
        chex.assert_trees_all_close(
            double(losses, 1e3 * weights)[name], double(losses, weights)[name], rtol=1e-12
        )
