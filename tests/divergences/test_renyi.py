"""Rényi divergence: contract, its definition in extended precision, limits, identities, supports."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(2)
P, Q = 1.5 * RNG.normal(size=(2, 3, 5))
ORDERS = np.array([0.0, 0.3, 0.5, 0.99, 1 - 1e-5, 1.0, 1 + 1e-5, 1.01, 2.0, 7.0, np.inf])


def renyi(p, q, alpha):
    return divergences.renyi(p, q, alpha=alpha)


@jax.jit
def over_orders(p, q, orders):
    return jax.vmap(renyi, (None, None, 0))(p, q, orders)


@jax.jit
def gradients(p, q, orders):
    gradient = jax.grad(lambda p, q, a: renyi(p, q, a).sum(), (0, 1, 2))
    return jax.vmap(gradient, (None, None, 0))(p, q, orders)


def definition(p, q, alpha):
    """From probabilities, in extended precision."""
    p, q = (z.astype(np.longdouble) for z in (p, q))
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
    if alpha == 1:
        return (np.exp(p) * (p - q)).sum(-1)
    if np.isinf(alpha):
        return (p - q).max(-1)
    return np.log(np.exp(alpha * p + (1 - alpha) * q).sum(-1)) / (alpha - 1)


LOGITS = np.zeros((3, 5), np.float32)
BAD = (
    lambda: renyi(LOGITS, LOGITS, -0.1),
    lambda: renyi(LOGITS, LOGITS, np.nan),
    lambda: renyi(LOGITS, LOGITS[:, :4], 0.5),
    lambda: renyi(np.float32(0), np.float32(0), 0.5),
)
MEMBERS = (contract.Member("renyi", renyi, option=1.5, bad=BAD),)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.CALLS))
    def test_calls(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


class TestRenyi:
    def test_is_its_definition_at_every_order(self):
        expected = np.stack([definition(P, Q, a) for a in ORDERS]).astype(np.float64)
        single = over_orders(*(jnp.asarray(v, jnp.float32) for v in (P, Q, ORDERS)))
        np.testing.assert_allclose(single[1:], expected[1:], rtol=2e-5)
        np.testing.assert_allclose(single[0], 0.0, atol=1e-6)
        with jax.enable_x64(True):
            np.testing.assert_allclose(over_orders(P, Q, ORDERS), expected, rtol=1e-11, atol=1e-14)

    def test_gradients_are_those_of_the_definition(self):
        """Central differences in extended precision, at every finite order."""
        direction = RNG.normal(size=(2, 3, 5))
        h = 1e-3

        def along(t, order):
            return definition(P + t * direction[0], Q + t * direction[1], order)

        finite = ORDERS[:-1]
        slopes = np.stack(
            [
                (8 * (along(h, a) - along(-h, a)) - along(2 * h, a) + along(-2 * h, a)) / (12 * h)
                for a in finite
            ]
        )
        with jax.enable_x64(True):
            grads = [np.asarray(g)[:-1] for g in gradients(P, Q, ORDERS)[:2]]
        directional = sum((g * d).sum(-1) for g, d in zip(grads, direction, strict=True))
        np.testing.assert_allclose(directional, slopes.astype(np.float64), rtol=1e-8, atol=1e-9)

    def test_named_orders(self):
        """1/2: -2 log of the Bhattacharyya coefficient; 1: Kullback–Leibler; 2: log(1 + χ²)."""
        p, q = scipy.special.softmax(P, -1), scipy.special.softmax(Q, -1)
        expected = [
            -2 * np.log(np.sqrt(p * q).sum(-1)),
            scipy.special.rel_entr(p, q).sum(-1),
            np.log1p(((p - q) ** 2 / q).sum(-1)),
            np.log((p / q).max(-1)),
        ]
        with jax.enable_x64(True):
            value = over_orders(P, Q, ORDERS)
            np.testing.assert_allclose(value[np.isin(ORDERS, [0.5, 1, 2, np.inf])], expected, rtol=1e-12)

    def test_slope_in_the_order_at_one_is_half_the_variance(self):
        p, q = scipy.special.softmax(P, -1), scipy.special.softmax(Q, -1)
        ratio = np.log(p / q)
        variance = (p * ratio**2).sum(-1) - (p * ratio).sum(-1) ** 2
        with jax.enable_x64(True):
            slopes = gradients(P, Q, ORDERS)[2]
        np.testing.assert_allclose(slopes[ORDERS == 1], variance.sum() / 2, rtol=1e-12)

    def test_skew_symmetry(self):
        """(1 - α) D_α(P‖Q) = α D_{1-α}(Q‖P), van Erven and Harremoës, proposition 2."""
        orders = np.linspace(0, 1, ORDERS.size)
        with jax.enable_x64(True):
            left, right = (
                np.asarray(over_orders(*pair)) for pair in ((P, Q, orders), (Q, P, orders[::-1].copy()))
            )
        np.testing.assert_allclose((1 - orders)[:, None] * left, orders[:, None] * right, atol=1e-13)

    @hypothesis.given(hnp.arrays(np.float64, (2, 3, 5), elements=st.floats(-300, 300)))
    def test_nondecreasing_in_the_order(self, logits):
        with jax.enable_x64(True):
            value = np.asarray(over_orders(*logits, ORDERS))
        assert np.isfinite(value).all()
        assert (value >= -1e-13).all()
        assert (np.diff(value, axis=0) >= -1e-12 * (1 + value[1:])).all()

    def test_a_channel_never_increases_it(self):
        channel = RNG.dirichlet(np.full(5, 0.5), 5)
        processed = [np.log(scipy.special.softmax(z, -1) @ channel) for z in (P, Q)]
        with jax.enable_x64(True):
            before, after = np.asarray(over_orders(P, Q, ORDERS)), np.asarray(over_orders(*processed, ORDERS))
        assert (after[1:] < before[1:]).all()

    def test_close_distributions_keep_relative_accuracy(self):
        """Float32 against the definition at the same float32 logits."""
        p = P.astype(np.float32)
        q = p + np.array([1, -1, 0, 2, -2], np.float32) / 1024
        expected = np.stack([definition(p.astype(np.float64), q.astype(np.float64), a) for a in ORDERS])
        value = over_orders(p, q, jnp.asarray(ORDERS, jnp.float32))
        np.testing.assert_allclose(value[1:], expected[1:].astype(np.float64), rtol=1e-3)
        assert np.all(value >= 0)

    def test_order_per_row(self):
        orders = jnp.array([0.5, 1.0, np.inf])
        value = jax.jit(renyi)(P.astype(np.float32), Q.astype(np.float32), orders)
        expected = [definition(P[i], Q[i], float(a)) for i, a in enumerate(orders)]
        np.testing.assert_allclose(value, np.array(expected, np.float64), rtol=1e-5)

    def test_supports(self):
        """P has mass outside Q's support; Q has mass outside P's; no class in common."""
        with np.errstate(divide="ignore"):
            p = np.log(np.array([[0.5, 0.5, 0, 0, 0], [0.25, 0.75, 0, 0, 0], [1.0, 0, 0, 0, 0]], np.float32))
            q = np.log(
                np.array([[0.25, 0, 0.75, 0, 0], [0.25, 0.25, 0.5, 0, 0], [0, 1.0, 0, 0, 0]], np.float32)
            )
        value = np.asarray(over_orders(p, q, jnp.asarray(ORDERS, jnp.float32)))
        np.testing.assert_allclose(value[0], [-np.log(0.25), -np.log(0.5), np.inf], rtol=1e-6)
        np.testing.assert_allclose(value[2, 0], -2 * np.log(np.sqrt(0.125)), rtol=1e-6)
        np.testing.assert_array_equal(value[ORDERS >= 1, 0], np.inf)
        np.testing.assert_allclose(value[-1, 1], np.log(3), rtol=1e-6)
        np.testing.assert_allclose(value[5, 1], 0.75 * np.log(3), rtol=1e-6)
        np.testing.assert_array_equal(value[:, 2], np.inf)
        grads = gradients(p, q, jnp.asarray(ORDERS, jnp.float32))
        chex.assert_tree_all_finite(grads)
        for g, z in zip(grads[:2], (p, q), strict=True):
            np.testing.assert_array_equal(g[:, np.isneginf(z)], 0.0)
            np.testing.assert_array_equal(g[:, 2], 0.0)

    def test_extreme_logits_have_finite_gradients(self):
        p = np.float32(1e4) * np.array([[1, -1, 0, 0, 0], [0, 0, 0, 0, 1], [-1, -1, -1, 1, 1]], np.float32)
        chex.assert_tree_all_finite(gradients(p, -p, jnp.asarray(ORDERS, jnp.float32)))
        chex.assert_tree_all_finite(gradients(p, p, jnp.asarray(ORDERS, jnp.float32)))

    def test_excluded_classes_are_absent(self):
        where = np.array([True, True, False, True, True])

        @jax.jit
        def value_and_grads(p, q, where):
            return jax.value_and_grad(
                lambda p, q: divergences.renyi(p, q, alpha=0.7, where=where).sum(), (0, 1)
            )(p, q)

        result = value_and_grads(*(np.where(where, z, np.nan).astype(np.float32) for z in (P, Q)), where)
        absent = (np.where(where, z, -np.inf).astype(np.float32) for z in (P, Q))
        chex.assert_trees_all_close(result, value_and_grads(*absent, np.ones(5, bool)), rtol=1e-6)
        expected = definition(P[:, where], Q[:, where], 0.7).sum()
        np.testing.assert_allclose(result[0], np.float64(expected), rtol=1e-5)
        for g in result[1]:
            np.testing.assert_array_equal(g[:, ~where], 0.0)

    def test_errors_name_the_argument(self):
        with pytest.raises(ValueError, match="alpha must lie in"):
            renyi(LOGITS, LOGITS, -0.5)
        with pytest.raises(ValueError, match="p_logits and q_logits must have the same shape"):
            renyi(LOGITS, LOGITS[0], 0.5)
