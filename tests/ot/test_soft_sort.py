"""Soft sorting: its limits, OTT's numbers, order and symmetry, masses, and gradients."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import ot

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of jaxopt, which OTT imports
    from ott.tools import soft_sort as ott_sort

RNG = np.random.default_rng(31)
X = RNG.normal(size=7) * 3.0 + 1.0
K, LEVELS = 3, np.array([0.9, 0.0, 0.37, 0.5, 1.0])


def everything(x, epsilon):
    return {
        "sort": ot.soft_sort(x, epsilon=epsilon),
        "rank": ot.soft_rank(x, epsilon=epsilon),
        "top_k": ot.soft_top_k(x, K, epsilon=epsilon),
        "quantile": ot.soft_quantile(x, LEVELS, epsilon=epsilon),
    }


values = jax.jit(everything)
ZEROS = {"sort": np.zeros(7), "rank": np.zeros(7), "top_k": np.zeros(7), "quantile": np.zeros(5)}


@jax.jit
def pull(x, epsilon, cotangents):
    """All values, and the derivatives of their sum weighed by the cotangents."""
    out, back = jax.vjp(lambda x: everything(x, epsilon), x)
    return out, back(cotangents)[0]


def in_float64(x, epsilon, **cotangents):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, pull(x, epsilon, ZEROS | cotangents))


def hard(x):
    rank = np.argsort(np.argsort(x))
    return {
        "sort": np.sort(x),
        "rank": rank,
        "top_k": rank >= len(x) - K,
        "quantile": np.quantile(x, LEVELS, method="hazen"),
    }


class TestValues:
    def test_limit_of_no_entropy(self):
        """The functions they smooth; a level between two points is their mean by Hazen's weights."""
        c = RNG.normal(size=7)
        soft, _ = in_float64(X, 1e-5)
        slopes = {name: in_float64(X, 1e-5, **{name: c})[1] for name in ("sort", "rank", "top_k")}
        chex.assert_trees_all_close(soft, jax.tree.map(np.float64, hard(X)), atol=1e-7)
        # Sorting is a permutation, ranks and masks are constant.
        np.testing.assert_allclose(slopes["sort"], c[np.argsort(np.argsort(X))], atol=1e-6)
        np.testing.assert_allclose(slopes["rank"], 0.0, atol=1e-6)
        np.testing.assert_allclose(slopes["top_k"], 0.0, atol=1e-6)

    def test_limit_of_much_entropy(self):
        """Means of everything, half the ranks, a mask of k/n."""
        soft = values(X.astype(np.float32), 1e4)
        for name, mean in {"sort": X.mean(), "rank": 3.0, "top_k": K / 7, "quantile": X.mean()}.items():
            np.testing.assert_allclose(soft[name], mean, rtol=1e-2)

    def test_equal_otts(self):
        soft, _ = in_float64(X, 0.1)
        options = {"epsilon": 0.1, "threshold": 1e-9, "max_iterations": 4000}
        with jax.enable_x64(True):
            np.testing.assert_allclose(soft["sort"], ott_sort.sort(X, **options), atol=1e-6)
            np.testing.assert_allclose(soft["top_k"], ott_sort.topk_mask(X, k=K, **options), atol=1e-6)

    @pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.3])
    def test_order_bounds_and_masses(self, epsilon):
        """Float32 and ties: sorted values increase within the range, ranks follow x, k is selected."""
        x = np.append(X[:6], X[0]).astype(np.float32)
        soft = jax.tree.map(np.asarray, values(x, epsilon))
        rounding = 1e-5
        assert np.all(np.diff(soft["sort"]) >= -rounding)
        assert soft["sort"].min() >= x.min() - rounding
        assert soft["sort"].max() <= x.max() + rounding
        np.testing.assert_allclose(soft["sort"].mean(), x.mean(), rtol=1e-3)
        np.testing.assert_allclose(soft["rank"].sum(), 21.0, rtol=1e-3)
        for name in ("rank", "top_k"):
            assert np.all(np.diff(soft[name][np.argsort(x)]) >= -rounding)
            np.testing.assert_allclose(soft[name][6], soft[name][0], atol=1e-6)
        assert np.all((soft["top_k"] >= 0) & (soft["top_k"] <= 1))
        np.testing.assert_allclose(soft["top_k"].sum(), K, rtol=1e-4)
        assert np.all(np.diff(soft["quantile"][np.argsort(LEVELS)]) >= -rounding)

    def test_symmetries(self):
        """Permutations and increasing affine functions of x."""
        order = RNG.permutation(7)
        (soft, _), (moved, _) = in_float64(X, 1e-2), in_float64(3.0 * X[order] - 50.0, 1e-2)
        for name in ("sort", "quantile"):
            np.testing.assert_allclose(moved[name], 3 * soft[name] - 50, rtol=1e-9)
        for name in ("rank", "top_k"):
            np.testing.assert_allclose(moved[name], soft[name][order], atol=1e-8)


class TestDerivatives:
    @staticmethod
    @jax.jit
    @jax.grad
    def gradient(x, epsilon):
        soft = ot.soft_sort(x, epsilon=epsilon), ot.soft_top_k(x, K, epsilon=epsilon)
        return jnp.sum(jnp.cos(jnp.stack(soft)))

    @pytest.mark.parametrize("epsilon", [1e-2, 0.1])
    def test_finite_differences(self, epsilon):
        direction, h = RNG.normal(size=7), 1e-5
        cotangents = jax.tree.map(lambda z: RNG.normal(size=z.shape), hard(X))
        _, gradient = in_float64(X, epsilon, **cotangents)
        there, back = (in_float64(X + s * direction, epsilon)[0] for s in (h, -h))
        change = sum(np.vdot(c, there[name] - back[name]) for name, c in cotangents.items())
        np.testing.assert_allclose(np.vdot(gradient, direction), change / (2 * h), rtol=1e-5)

    @pytest.mark.parametrize("epsilon", [1e-4, 1e-3, 1e-2, 1.0])
    def test_finite_in_float32(self, epsilon):
        for x in (X, np.ones(7), np.append(X[:6], X[0]), 1e6 + X):
            chex.assert_tree_all_finite(self.gradient(x.astype(np.float32), epsilon))


class TestArguments:
    def test_axes(self):
        """Every lane alone, whatever the axis; a scalar level takes the axis away."""
        x = jnp.asarray(RNG.normal(size=(2, 7, 3)), jnp.float32)
        soft = jax.jit(lambda x: (ot.soft_sort(x, axis=1), ot.soft_quantile(x, 0.5, axis=-2)))(x)
        chex.assert_shape(soft, [(2, 7, 3), (2, 3)])
        alone = values(x[1, :, 2], 1e-2)
        np.testing.assert_allclose(soft[0][1, :, 2], alone["sort"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(soft[1][1, 2], alone["quantile"][3], rtol=1e-4, atol=1e-5)

    def test_fewer_targets(self):
        """Each of 2 sorted values is the mean of 4 points, and ranks still reach from 0 to n - 1."""
        x = np.append(X, 4.0)
        with jax.enable_x64(True):
            halves, rank = jax.jit(
                lambda x: [fn(x, epsilon=1e-4, num_targets=2) for fn in (ot.soft_sort, ot.soft_rank)]
            )(x)
        np.testing.assert_allclose(halves, np.sort(x).reshape(2, 4).mean(1), rtol=1e-6)
        np.testing.assert_allclose(rank, np.where(np.argsort(np.argsort(x)) < 4, 0.0, 7.0), atol=1e-5)

    def test_options_may_be_traced(self):
        x = jnp.asarray(X, jnp.float32)

        @jax.jit
        @chex.assert_max_traces(n=1)
        def fn(epsilon, k, q, width):
            return ot.soft_top_k(x, k, epsilon=epsilon), ot.soft_quantile(x, q, epsilon=epsilon, width=width)

        for k in (0.0, 2.5, 7.0):
            mask, _ = fn(1e-2, k, 0.5, 0.2)
            np.testing.assert_allclose(mask.sum(), k, atol=1e-3)
        np.testing.assert_allclose(fn(1e-3, 3.0, 0.1, 1.0)[1], X.mean(), rtol=1e-5)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ot.soft_sort(np.arange(3)), "x must be floating"),
            (lambda: ot.soft_sort(np.ones((2, 0))), "x must not be empty"),
            (lambda: ot.soft_sort(X, axis=1), "axis must name"),
            (lambda: ot.soft_sort(X, num_targets=0), "num_targets must lie in"),
            (lambda: ot.soft_rank(X, num_targets=1), "num_targets must lie in"),
            (lambda: ot.soft_rank(X, epsilon=-1.0), "epsilon"),
            (lambda: ot.soft_top_k(X, 8), "k must lie in"),
            (lambda: ot.soft_quantile(X, 1.5), "q must lie in"),
            (lambda: ot.soft_quantile(X, np.ones((2, 2))), "q must have rank"),
            (lambda: ot.soft_quantile(X, 0.5, width=0.0), "width must lie in"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
