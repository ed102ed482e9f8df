"""Opposing signals: order of changes, cosines, exact cancellation in the two-layer linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.opposing_signals import gradient_opposition, loss_change_outliers, opposing_signals

RNG = np.random.default_rng(200)
PARAMS = {"b": RNG.normal(size=3).astype(np.float32), "o": np.float32(0.0), "c": np.float32(0.7)}


def losses(params, batch):
    """f = c (bᵀ x_b + b_o x_o), ½ (f − y)²."""
    x, outlier, y = batch
    return (params["c"] * (x @ params["b"] + params["o"] * outlier) - y) ** 2 / 2


@pytest.mark.paper(200)
class TestExact:
    def test_outlier_gradients_cancel(self):
        """Equal x_b and target, opposite x_o and b_o = 0: the gradients in b_o are opposite, those in b equal."""
        x = np.tile(RNG.normal(size=3), (2, 1)).astype(np.float32)
        batch = x, np.float32([10, -10]), np.float32([2, 2])
        gradients = jax.vmap(jax.grad(lambda p, *row: losses(p, row)), (None, 0, 0, 0))(PARAMS, *batch)
        np.testing.assert_allclose(jnp.sum(gradients["o"]), 0, atol=1e-6)
        np.testing.assert_allclose(gradients["b"][0], gradients["b"][1], rtol=1e-6)
        assert abs(gradients["o"][0]) > 1

    def test_sharpness_at_fixed_c_is_that_of_the_valley(self):
        """In (b, b_o) the Hessian is c² E[x xᵀ], with c² E[x_o²] along b_o."""
        x = RNG.normal(size=(50, 3)).astype(np.float32)
        outlier = np.where(np.arange(50) < 5, 10.0, 0.0) * np.where(np.arange(50) % 2, 1.0, -1.0)
        batch = x, outlier.astype(np.float32), np.zeros(50, np.float32)
        hessian = jax.hessian(lambda w: jnp.mean(losses({"b": w[:3], "o": w[3], "c": PARAMS["c"]}, batch)))
        flat = jax.jit(hessian)(jnp.zeros(4))
        design = np.column_stack([x, outlier])
        np.testing.assert_allclose(flat, 0.7**2 * design.T @ design / 50, rtol=1e-4, atol=1e-5)

    def test_changes_are_sorted(self):
        before = RNG.normal(size=20).astype(np.float32)
        after = RNG.normal(size=20).astype(np.float32)
        up, down = jax.jit(loss_change_outliers, static_argnums=2)(before, after, 4)
        order = np.argsort(after - before)
        np.testing.assert_array_equal(up, order[:-5:-1])
        np.testing.assert_array_equal(down, order[:4])

    def test_cosine(self):
        tree = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
        for factor in (-2.0, 1e-30, 1e30):
            got = gradient_opposition(tree, jax.tree.map(lambda x, f=factor: f * x, tree))
            np.testing.assert_allclose(got, np.sign(factor), rtol=1e-6)
        other = {"a": jnp.array([-4.0]), "b": jnp.array([[3.0]])}
        np.testing.assert_allclose(gradient_opposition(tree, other), 0, atol=1e-6)
        assert np.isnan(gradient_opposition(tree, jax.tree.map(jnp.zeros_like, tree)))


@pytest.mark.paper(200)
class TestGroups:
    def test_finds_the_two_groups(self):
        """A step along b_o lifts the loss of one sign of outliers and lowers that of the other."""
        outlier = np.zeros(30, np.float32)
        outlier[3:6], outlier[10:13] = 10, -10
        batch = RNG.normal(size=(30, 3)).astype(np.float32), outlier, 1 + np.abs(outlier) * 0.3
        moved = {**PARAMS, "o": np.float32(0.2)}
        found = jax.jit(lambda p, q: opposing_signals(losses, p, q, batch, 3))(PARAMS, moved)
        assert {*found.down.tolist()} == {3, 4, 5}
        assert {*found.up.tolist()} == {10, 11, 12}
        assert found.cosine < -0.8
        np.testing.assert_allclose(
            found.change, losses(moved, batch) - losses(PARAMS, batch), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((jnp.ones(3), jnp.ones(2), 1), "before and after must have the same shape"),
            ((jnp.ones(3), jnp.ones(3), 4), "k must lie in"),
            ((jnp.ones((3, 1)), jnp.ones((3, 1)), 1), "before must have rank 1"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            loss_change_outliers(*arguments)
