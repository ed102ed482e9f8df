"""Bregman divergences: contract, potentials, identities, parity with scipy, boundaries of the domain."""

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

RNG = np.random.default_rng(1)
X, Y, Z = RNG.gamma(2.0, size=(3, 3, 5)) + 0.1

NAMED = {
    "squared_euclidean": divergences.squared_euclidean,
    "generalized_kl": divergences.generalized_kl,
    "itakura_saito": divergences.itakura_saito,
}
POTENTIALS = {
    "squared_euclidean": lambda z: jnp.sum(z**2),
    "generalized_kl": lambda z: jnp.sum(z * jnp.log(z)),
    "itakura_saito": lambda z: -jnp.sum(jnp.log(z)),
}
# Eager calls compile dozens of single operations.
JITTED = {name: jax.jit(fn) for name, fn in NAMED.items()}
bregman = jax.jit(divergences.bregman, static_argnums=0)


def positive(seed):
    x, y = np.random.default_rng(seed).gamma(2.0, size=(2, 3, 5)) + 0.1
    return x, y


def bad(fn):
    ones = np.ones((3, 5), np.float32)
    return (
        lambda: fn(ones, ones[:, :4]),
        lambda: fn(ones, ones[0]),
        lambda: fn(np.float32(1), np.float32(2)),
    )


def member(name):
    symmetric = name == "squared_euclidean"
    return contract.Member(name, NAMED[name], positive, symmetric=symmetric, bad=bad(NAMED[name]))


def entropic(x, y):
    return divergences.bregman(POTENTIALS["generalized_kl"], x, y)


MEMBERS = (
    contract.Member(
        "bregman",
        entropic,
        positive,
        bad=(*bad(entropic), lambda: divergences.bregman(jnp.square, jnp.ones((3, 5)), jnp.ones((3, 5)))),
    ),
    *map(member, NAMED),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.CALLS))
    def test_calls(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS, contract.TRANSFORMS))
    def test_transforms(self, check, member):
        check(member, self.variant)


class TestPotentials:
    @pytest.mark.parametrize("name", NAMED)
    def test_named_ones_are_those_of_their_potentials(self, name):
        with jax.enable_x64(True):
            general = bregman(POTENTIALS[name], X, Y)
            np.testing.assert_allclose(JITTED[name](X, Y), general, rtol=1e-12)

    def test_quadratic_form_is_the_mahalanobis_distance(self):
        matrix = np.eye(5) + np.full((5, 5), 0.3)
        with jax.enable_x64(True):
            value = bregman(lambda z: 0.5 * z @ matrix @ z, X, Y)
        np.testing.assert_allclose(value, 0.5 * np.einsum("bi,ij,bj->b", X - Y, matrix, X - Y), rtol=1e-12)

    def test_dual_potential_swaps_the_arguments(self):
        """D_φ(x, y) = D_φ*(∇φ(y), ∇φ(x)) for φ = Σ x log x - x, φ* = Σ exp, ∇φ = log."""
        with jax.enable_x64(True):
            dual = bregman(lambda z: jnp.sum(jnp.exp(z)), np.log(Y), np.log(X))
            np.testing.assert_allclose(JITTED["generalized_kl"](X, Y), dual, rtol=1e-12)

    @pytest.mark.parametrize("name", NAMED)
    def test_three_points(self, name):
        """D(x, z) = D(x, y) + D(y, z) + <∇φ(y) - ∇φ(z), x - y>."""
        slope = {
            "squared_euclidean": lambda z: 2 * z,
            "generalized_kl": lambda z: np.log(z) + 1,
            "itakura_saito": lambda z: -1 / z,
        }[name]
        with jax.enable_x64(True):
            fn = JITTED[name]
            left = fn(X, Z) - fn(X, Y) - fn(Y, Z)
        np.testing.assert_allclose(left, ((slope(Y) - slope(Z)) * (X - Y)).sum(-1), rtol=1e-10)

    @pytest.mark.parametrize("name", NAMED)
    def test_mean_is_the_best_second_argument(self, name):
        """Banerjee et al., theorem 1: E D(X, s) - E D(X, EX) = D(EX, s)."""
        mean = np.broadcast_to(X.mean(0), X.shape)
        other = np.broadcast_to(Y[0], X.shape)
        with jax.enable_x64(True):
            fn = JITTED[name]
            excess = (fn(X, other) - fn(X, mean)).mean()
            np.testing.assert_allclose(excess, fn(mean, other)[0], rtol=1e-10)


class TestGeneralizedKL:
    @hypothesis.given(hnp.arrays(np.float64, (2, 3, 5), elements=st.floats(1e-10, 1e10) | st.just(0.0)))
    def test_equals_scipy(self, points):
        x, y = points
        with jax.enable_x64(True):
            value = JITTED["generalized_kl"](x, y)
        # Nearly equal arguments lose digits in scipy's difference.
        np.testing.assert_allclose(
            value, scipy.special.kl_div(x, y).sum(-1), rtol=1e-9, atol=1e-15 * (x + y).sum(-1).max()
        )

    def test_boundary(self):
        x = jnp.array([[0.0], [0.0], [2.0], [-1.0], [1.0], [np.nan]])
        y = jnp.array([[3.0], [0.0], [0.0], [1.0], [-1.0], [1.0]])
        value, pull = jax.vjp(JITTED["generalized_kl"], x, y)
        np.testing.assert_array_equal(value, [3.0, 0.0, np.inf, np.nan, np.nan, np.nan])
        gx, gy = pull(jnp.ones(6))
        chex.assert_tree_all_finite((gx, gy))
        np.testing.assert_array_equal(gx[:3, 0], 0.0)
        np.testing.assert_array_equal(gy[:3, 0], [1.0, 1.0, 0.0])


class TestItakuraSaito:
    def test_exact_value(self):
        value = JITTED["itakura_saito"](jnp.array([2.0, 1.0]), jnp.array([1.0, 4.0]))
        np.testing.assert_allclose(value, 2 - np.log(2) - 1 + 0.25 + np.log(4) - 1, rtol=1e-6)

    def test_scale_does_not_matter(self):
        factors = np.geomspace(1e-20, 1e20, 5)
        scaled = JITTED["itakura_saito"](*(jnp.asarray(factors * v, jnp.float32) for v in (X, Y)))
        with jax.enable_x64(True):
            np.testing.assert_allclose(scaled, JITTED["itakura_saito"](X, Y), rtol=1e-5)

    def test_boundary(self):
        x = jnp.array([[0.0], [1.0], [0.0], [-1.0], [1.0]])
        y = jnp.array([[1.0], [0.0], [0.0], [1.0], [np.nan]])
        value, pull = jax.vjp(JITTED["itakura_saito"], x, y)
        np.testing.assert_array_equal(value, [np.inf, np.inf, np.nan, np.nan, np.nan])
        chex.assert_tree_all_finite(pull(jnp.ones(5)))


class TestNumerics:
    @pytest.mark.parametrize("name", NAMED)
    def test_close_arguments_keep_relative_accuracy(self, name):
        """The difference of potentials would have no digit left."""
        y = Y.astype(np.float32)
        x = (y * (1 + np.float32(2.0**-12) * np.array([1, -1, 2, -2, 3]))).astype(np.float32)
        with jax.enable_x64(True):
            t = (x.astype(np.float64) - y) / y
            # x log(x/y) - x + y = y ((1 + t) log1p(t) - t), from its series.
            terms = {
                "squared_euclidean": (t * y) ** 2,
                "generalized_kl": y * (t**2 / 2 - t**3 / 6 + t**4 / 12),
                "itakura_saito": t**2 / 2 - t**3 / 3 + t**4 / 4,
            }[name]
        np.testing.assert_allclose(JITTED[name](x, y), terms.sum(-1), rtol=1e-6)

    @pytest.mark.parametrize("name", NAMED)
    def test_excluded_elements_are_absent(self, name):
        where = np.array([True, False, True, True, False])

        @jax.jit
        def value_and_grads(x, y, where):
            return jax.value_and_grad(lambda x, y: NAMED[name](x, y, where=where).sum(), (0, 1))(x, y)

        result = value_and_grads(*(np.where(where, v, np.nan).astype(np.float32) for v in (X, Y)), where)
        # Equal elements add nothing to value and derivative.
        equal = (np.where(where, v, 2.0).astype(np.float32) for v in (X, Y))
        chex.assert_trees_all_close(result, value_and_grads(*equal, np.ones(5, bool)), rtol=1e-6)
        for g in result[1]:
            np.testing.assert_array_equal(g[:, ~where], 0.0)

    def test_integers_raise_naming_the_argument(self):
        with pytest.raises(ValueError, match="y must be floating point; got int32"):
            divergences.generalized_kl(jnp.ones(3), jnp.ones(3, jnp.int32))

    def test_vector_potential_is_named(self):
        with pytest.raises(
            ValueError, match=r"potential must return a scalar for one vector; got shape \(3,\)"
        ):
            divergences.bregman(jnp.square, jnp.ones(3), jnp.ones(3))
