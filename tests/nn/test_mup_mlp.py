"""The network in two parametrizations: its formula, equal kernels at the start, features that move or stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn
from jaxdiv.nn.mup_mlp import MuMLP

X = np.random.default_rng(198).normal(size=(6, 4)).astype(np.float32)
Y = np.sin(2 * X[:, :1])


def model(width, parametrization, **options):
    module = MuMLP(4, width, parametrization=parametrization, rngs=nnx.Rngs(3), **options)
    return nn.functional(module), module.learning_rate_scale


def kernel(net):
    jacobian = jax.jacobian(lambda p: net.apply(p, net.model_state, X, None)[0][:, 0])(net.params)
    rows = jnp.concatenate([leaf.reshape(len(X), -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    return rows @ rows.T


def trained(net, scale, rate, steps):
    @jax.jit
    def run(params):
        def loss(p):
            return jnp.sum((net.apply(p, net.model_state, X, None)[0] - Y) ** 2) / (2 * len(X))

        def body(_, params):
            return jax.tree.map(lambda w, g: w - rate * scale * g, params, jax.grad(loss)(params))

        return jax.lax.fori_loop(0, steps, body, params)

    return net._replace(params=run(net.params))


@pytest.mark.paper(198)
class TestMuMLP:
    @pytest.mark.parametrize("residual", [False, True])
    def test_formula(self, residual):
        """Three layers by hand; the residual branches carry 1/√(L − 1)."""
        module = MuMLP(4, 9, 2, depth=3, gamma0=0.5, residual=residual, rngs=nnx.Rngs(0))
        h = X @ module.first[...] / 2
        for weight in module.hidden:
            branch = np.tanh(h) @ weight[...] / 3
            h = h + branch / np.sqrt(2) if residual else branch
        expected = np.tanh(h) @ module.last[...] / (0.5 * 3 * 3)
        np.testing.assert_allclose(module(X), expected, rtol=1e-5, atol=1e-6)
        assert module.learning_rate_scale == 0.25 * 9

    def test_scaled_kernels_are_equal_at_the_start(self):
        """γ² J Jᵀ is the same for one seed, whatever γ: the first step moves f by the same map of the residual."""
        kernels = [
            scale * kernel(net)
            for net, scale in (model(32, "mup"), model(32, "ntp"), model(32, "mup", gamma0=0.3))
        ]
        for other in kernels[1:]:
            np.testing.assert_allclose(other, kernels[0], rtol=1e-4)

    def test_first_step_is_the_kernels(self):
        net, scale = model(32, "mup")
        before = net.apply(net.params, net.model_state, X, None)[0]
        after = trained(net, scale, 1e-4, 1)
        change = after.apply(after.params, net.model_state, X, None)[0] - before
        expected = -1e-4 * scale * kernel(net) @ (before - Y) / len(X)
        np.testing.assert_allclose(change, expected, rtol=1e-2, atol=1e-7)

    def test_the_kernel_evolves_at_width_only_under_the_maximal_update(self):
        """The finding of the paper in small: λmax(γ²K) after training over its start."""
        ratios = {}
        for parametrization in ("mup", "ntp"):
            net, scale = model(1024, parametrization)
            end = trained(net, scale, 0.5, 100)
            tops = [np.linalg.eigvalsh(kernel(n))[-1] for n in (net, end)]
            ratios[parametrization] = tops[1] / tops[0]
        assert ratios["mup"] > 1.5
        assert abs(ratios["ntp"] - 1) < 0.15

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"parametrization": "sp"}, "parametrization must be one of 'mup', 'ntp'; got 'sp'"),
            ({"depth": 0}, "depth must lie in"),
            ({"gamma0": 0.0}, "gamma0 must lie in"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            MuMLP(4, 8, rngs=nnx.Rngs(0), **options)
