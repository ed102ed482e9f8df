"""Curves between models and layer-wise sharpness: end points, convexity, additivity, closed forms, labels."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.hessian import hessian_trace
from jaxdiv.diagnostics.interpolation import barrier, interpolation_curve, layer_interpolation
from jaxdiv.diagnostics.layers import layer_labels
from jaxdiv.diagnostics.layerwise_sharpness import layerwise_sharpness
from jaxdiv.diagnostics.sharpness_worst import sharpness_worst

RNG = np.random.default_rng(196)
KEY = jax.random.key(0)


def net():
    return {
        "in": {
            "kernel": RNG.normal(size=(3, 4)).astype(np.float32),
            "bias": RNG.normal(size=4).astype(np.float32),
        },
        "out": {"kernel": RNG.normal(size=4).astype(np.float32)},
    }


A, B = net(), net()
X, Y = RNG.normal(size=(6, 3)).astype(np.float32), RNG.normal(size=6).astype(np.float32)
ALPHAS = np.linspace(0, 1, 5, dtype=np.float32)


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    return jnp.mean((hidden @ params["out"]["kernel"] - y) ** 2)


def metric(params):
    return loss(params, (X, Y))


@pytest.mark.paper(196)
class TestCurve:
    def test_ends_are_the_models(self):
        curve = interpolation_curve(lambda p: (metric(p), p), A, B, ALPHAS)
        for position, model in ((0, A), (-1, B)):
            for got, expected in zip(jax.tree.leaves(curve[1]), jax.tree.leaves(model), strict=True):
                np.testing.assert_array_equal(got[position], expected)
        middle = jax.tree.map(lambda a, b: (a + b) / 2, A, B)
        np.testing.assert_allclose(curve[0][::2], [metric(A), metric(middle), metric(B)], rtol=1e-5)

    def test_a_convex_loss_has_no_barrier(self):
        """Least squares in θ: no rise above the chord but rounding; a concave one has (b − a)²/4."""

        def convex(w):
            return jnp.sum((X @ w - Y) ** 2)

        curve = interpolation_curve(convex, A["in"]["kernel"][:, 0], B["in"]["kernel"][:, 0], ALPHAS)
        assert abs(barrier(curve, ALPHAS)) < 1e-5 * np.max(curve)
        rise = interpolation_curve(lambda w: -(w**2), np.float32(1), np.float32(3), ALPHAS)
        np.testing.assert_allclose(barrier(rise, ALPHAS), 1.0, rtol=1e-6)

    def test_half_precision_ends_are_exact(self):
        a, b = (jnp.asarray(x["out"]["kernel"], jnp.bfloat16) for x in (A, B))
        curve = interpolation_curve(lambda w: w, a, b, ALPHAS)
        assert curve.dtype == jnp.bfloat16
        np.testing.assert_array_equal(curve[0], a)
        np.testing.assert_array_equal(curve[-1], b)

    def test_compiles_and_maps_over_models(self):
        stacked = jax.tree.map(lambda *x: np.stack(x), A, B)
        curves = jax.jit(jax.vmap(lambda a: interpolation_curve(metric, a, B, ALPHAS)))(stacked)
        np.testing.assert_allclose(curves[1], metric(B), rtol=1e-5)

    @pytest.mark.parametrize(
        ("b", "alphas", "message"),
        [
            ({"in": A["in"]}, ALPHAS, "params_b must have the structure and shapes of params_a"),
            (B, 0.5, "alphas must have rank 1"),
            (B, np.arange(3), "alphas must be floating point"),
        ],
    )
    def test_errors(self, b, alphas, message):
        for function in (interpolation_curve, layer_interpolation):
            with pytest.raises(ValueError, match=message):
                function(metric, A, b, alphas)


@pytest.mark.paper(196)
class TestLayers:
    def test_one_layer_moves_and_the_others_stay(self):
        curves = layer_interpolation(metric, A, B, ALPHAS)
        assert list(curves) == ["in", "out"]
        np.testing.assert_allclose(curves["in"][0], metric({"in": A["in"], "out": B["out"]}), rtol=1e-5)
        np.testing.assert_allclose(curves["out"][0], metric({"in": B["in"], "out": A["out"]}), rtol=1e-5)
        for curve in curves.values():
            np.testing.assert_allclose(curve[-1], metric(B), rtol=1e-5)

    def test_labels_choose_the_layers(self):
        curves = layer_interpolation(
            metric, A, B, ALPHAS, labels={"in": {"kernel": "k", "bias": "b"}, "out": "k"}
        )
        expected = {"in": {"kernel": A["in"]["kernel"], "bias": B["in"]["bias"]}, "out": A["out"]}
        np.testing.assert_allclose(curves["k"][0], metric(expected), rtol=1e-5)
        with pytest.raises(ValueError, match="labels must be a prefix of the tree of params"):
            layer_interpolation(metric, A, B, ALPHAS, labels={"in": "a"})

    def test_traces_of_the_layers_add_up(self):
        """Second-order average sharpness is (ρ²/2) tr diag(c) H diag(c), and a trace is additive over layers."""

        @jax.jit
        def estimates(params):
            def of_layer(name):
                return hessian_trace(
                    lambda w, batch: loss({**params, name: w}, batch),
                    params[name],
                    (X, Y),
                    adaptive=True,
                    num_probes=200,
                    key=KEY,
                )

            flat, unravel = jax.flatten_util.ravel_pytree(params)
            whole = jnp.sum(flat**2 * jnp.diagonal(jax.hessian(lambda w: metric(unravel(w)))(flat)))
            return whole, of_layer("in"), of_layer("out")

        whole, (first, first_error), (second, second_error) = estimates(A)
        assert abs(whole - first - second) < 4 * np.hypot(first_error, second_error) < whole

    def test_sharpness_of_layers_in_a_linear_loss(self):
        """p = ∞: ρ ‖c ⊙ g‖_1 is a sum over the layers, so theirs add up to that of all."""

        def linear(params, batch):
            return sum(
                jnp.sum(g * w) for g, w in zip(jax.tree.leaves(B), jax.tree.leaves(params), strict=True)
            )

        found = layerwise_sharpness(linear, A, (), 0.1, key=KEY)
        whole = sharpness_worst(linear, A, (), 0.1, key=KEY)
        np.testing.assert_allclose(sum(found.values()), whole, rtol=1e-5)
        np.testing.assert_allclose(
            found["out"], 0.1 * np.sum(np.abs(A["out"]["kernel"] * B["out"]["kernel"])), rtol=1e-5
        )

    def test_no_layer_is_sharper_than_the_whole(self):
        found = jax.jit(lambda p: layerwise_sharpness(loss, p, (X, Y), 0.1, steps=40, key=KEY))(A)
        whole = sharpness_worst(loss, A, (X, Y), 0.1, steps=40, key=KEY)
        assert set(found) == {"in", "out"}
        assert all(0 < value <= whole * 1.001 for value in found.values())

    def test_labels_of_flax_variables(self):
        from flax import nnx

        from jaxdiv import nn

        params = nn.functional(nn.MLP((3, 4, 4, 2), rngs=nnx.Rngs(0))).params
        assert jax.tree.leaves(layer_labels(params)) == [
            x for x in ("hidden/0", "hidden/1", "output") for _ in "kb"
        ]
