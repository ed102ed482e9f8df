"""Uncertainty weighting: stationary points, decreasing weights, and a lower bound where a term is negative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses, objectives
from jaxdiv.objectives.uncertainty_weighting import uncertainty_weighting
from jaxdiv.testing import objectives as contract

KEY = jax.random.key(0)
BRIER = objectives.loss(losses.brier, name="brier")


@pytest.mark.paper(191)
class UncertaintyContract(contract.NumericOption):
    """The learned s are two of the model's own parameters, below the floor and above it."""

    link = staticmethod(
        functools.partial(uncertainty_weighting, "ce", "brier", where=lambda p: p["v"][0, :2], floor=0.2)
    )
    before = (contract.FORWARD, contract.CROSS_ENTROPY, BRIER, contract.MEAN)
    option = ("floor", 4.0)
    missing = "uncertainty_weighting needs the terms"


def terms_of(s, values, **options):
    """The terms after the link, for terms that are given."""
    names = [f"l{k}" for k in range(len(values))]
    link = uncertainty_weighting(*names, where=lambda p: p, **options)
    record = objectives.from_batch({"inputs": jnp.zeros((1, 1))})
    record = record._replace(terms=dict(zip(names, values, strict=True)))
    return link.update(s, (), record, KEY)[0].terms


def value(s, values, **options):
    return sum(terms_of(s, values, **options).values())


@pytest.mark.paper(191)
class TestExact:
    def test_value(self):
        """0.5/(2·4) + 2/(2·0.25) + log 5 + log 1.25; each term keeps its name."""
        terms = terms_of(jnp.array([2.0, -0.5]), [jnp.float32(0.5), jnp.float32(2.0)])
        np.testing.assert_allclose(
            [terms["l0"], terms["l1"], terms["uncertainty"]],
            [0.0625, 4.0, np.log(5) + np.log(1.25)],
            rtol=1e-6,
        )

    def test_learned_weights_go_to_the_stationary_point(self):
        """Adam on s alone, from 1: s² = (L + sqrt(L² + 8 L))/4, i.e. 0.5, 1, 2.4195; larger terms weigh less."""
        level = jnp.array([0.1, 1.0, 10.0])
        tx = optax.adam(0.01)

        def step(carry, _):
            s, state = carry
            updates, state = tx.update(jax.grad(value)(s, list(level)), state, s)
            return (optax.apply_updates(s, updates), state), None

        first = jnp.ones(3)
        run = jax.jit(lambda s: jax.lax.scan(step, (s, tx.init(s)), length=2000)[0][0])
        s = np.asarray(run(first))
        expected = np.sqrt((level + np.sqrt(level**2 + 8 * level)) / 4)
        np.testing.assert_allclose(s, expected, atol=1e-3)
        np.testing.assert_allclose(expected, [0.5, 1.0, 2.4195], atol=1e-3)
        assert np.all(np.diff(1 / (2 * s**2)) < 0)

    @pytest.mark.parametrize("level", [-1.0, 0.0])
    def test_has_a_lower_bound_where_a_term_is_not_positive(self, level):
        """The original goes to -inf as s -> 0 for a negative term; here -|L| / (2 floor) is the least."""
        s = jnp.concatenate([jnp.zeros(1), jnp.logspace(-12, 1, 40)])
        values = jax.vmap(lambda s: value(s[None], [jnp.float32(level)]))(s)
        gradients = jax.vmap(jax.grad(lambda s: value(s[None], [jnp.float32(level)])))(s)
        assert np.all(np.isfinite(gradients))
        assert np.all(values >= -abs(level) / 0.02 - 1e-4)


@pytest.mark.paper(191)
class TestErrors:
    def test_no_term(self):
        with pytest.raises(ValueError, match="at least one term"):
            uncertainty_weighting(where=lambda p: p)

    def test_floor(self):
        with pytest.raises(ValueError, match="floor must lie in"):
            uncertainty_weighting("ce", where=lambda p: p, floor=0.0)

    def test_one_s_for_each_term(self):
        with pytest.raises(ValueError, match=r"one s for each term, shape \(1,\); got \(2,\)"):
            terms_of(jnp.ones(2), [jnp.float32(1.0)])

    def test_name_is_taken(self):
        with pytest.raises(ValueError, match="a term 'l0' exists already"):
            terms_of(jnp.ones(1), [jnp.float32(1.0)], name="l0")
