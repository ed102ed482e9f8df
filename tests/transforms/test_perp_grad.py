"""perp_grad: contract, orthogonality, its two switches, and gradients along the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(5)


class PerpGradContract(contract.Contract):
    """What it leaves of a gradient turns the parameters, so that only the toy of angles has its solution."""

    transform = staticmethod(transforms.perp_grad)
    learning_rate = 0.5
    needs_params = True
    toys = ("angles",)


class GlobalPerpGradContract(PerpGradContract):
    @staticmethod
    def transform():
        return transforms.perp_grad("global", rescale=False)


def project(gradient, params, **options):
    tx = transforms.perp_grad(**options)
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(gradient, params)


@pytest.mark.paper(54)
class TestExact:
    def tree(self):
        return {"a": RNG.normal(size=(50, 40)).astype(np.float32), "b": RNG.normal(size=7).astype(np.float32)}

    @pytest.mark.parametrize("rescale", [False, True])
    def test_orthogonal_leaf_by_leaf(self, rescale):
        params, gradient = self.tree(), self.tree()
        out = project(gradient, params, rescale=rescale)
        for p, g, u in zip(*map(jax.tree.leaves, (params, gradient, out)), strict=True):
            p, g, u = (np.asarray(x, np.float64) for x in (p, g, u))
            assert abs(np.sum(u * p)) <= 1e-6 * np.linalg.norm(u) * np.linalg.norm(p)
            expected = g - np.sum(g * p) / np.sum(p * p) * p
            if rescale:
                expected *= np.linalg.norm(g) / np.linalg.norm(expected)
                np.testing.assert_allclose(np.linalg.norm(u), np.linalg.norm(g), rtol=1e-5)
            np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-5)

    def test_global_is_the_hyperplane_projection_of_optax(self):
        params, gradient = self.tree(), self.tree()
        out = project(gradient, params, scope="global", rescale=False)
        expected = optax.projections.projection_hyperplane(gradient, params, 0.0)
        contract.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        rescaled = project(gradient, params, scope="global")
        np.testing.assert_allclose(optax.tree.norm(rescaled), optax.tree.norm(gradient), rtol=1e-5)
        ratio = optax.tree.norm(gradient) / optax.tree.norm(expected)
        contract.assert_close(rescaled, optax.tree.scale(ratio, expected), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("slant", [1e-3, 1e-5])
    def test_orthogonal_also_where_the_gradient_is_almost_parallel(self, slant):
        """One projection would leave a part of size eps ‖g‖ along θ, which the rescaling would show."""
        params = RNG.normal(size=500).astype(np.float32)
        gradient = (-3 * params + slant * RNG.normal(size=500)).astype(np.float32)
        out, wide = np.asarray(project(gradient, params), np.float64), params.astype(np.float64)
        assert abs(out @ wide) <= 1e-6 * np.linalg.norm(out) * np.linalg.norm(wide)
        np.testing.assert_allclose(np.linalg.norm(out), np.linalg.norm(gradient), rtol=1e-5)

    def test_parallel_gradient_leaves_nothing(self):
        """Nor does a scalar leaf, which has no other direction, nor is rounding rescaled."""
        params = {"a": jnp.asarray(RNG.normal(size=500), jnp.float32), "s": jnp.float32(0.7)}
        out = project(jax.tree.map(lambda x: -1.7 * x, params), params)
        largest = jax.tree.map(lambda x: float(jnp.max(jnp.abs(x))), out)
        assert largest == {"a": 0.0, "s": 0.0}

    def test_zero_parameters_change_nothing(self):
        gradient = jnp.array([1.0, -2.0])
        np.testing.assert_allclose(project(gradient, jnp.zeros(2)), gradient)


@pytest.mark.paper(54)
def test_a_step_keeps_the_length_to_second_order():
    """‖θ − η g_⊥‖² = ‖θ‖² + η² ‖g_⊥‖²: a descent step has no part that scales the logits."""
    params, gradient = (RNG.normal(size=30).astype(np.float32) for _ in range(2))
    moved = params - 0.1 * np.asarray(project(gradient, params), np.float64)
    expected = np.sum(params.astype(np.float64) ** 2) + 0.01 * np.sum(gradient.astype(np.float64) ** 2)
    np.testing.assert_allclose(np.sum(moved**2), expected, rtol=1e-6)


def test_not_a_number_is_not_hidden():
    assert np.isnan(project(jnp.array([np.nan, 1.0]), jnp.ones(2))).all()


def test_unknown_scope():
    with pytest.raises(ValueError, match="scope must be one of"):
        transforms.perp_grad("tree")
