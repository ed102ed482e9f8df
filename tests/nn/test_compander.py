"""Weight companding: inverse maps, an unchanged start, the identity as a limit, slopes and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn

RNG = np.random.default_rng(128)
KINDS = {"arctan": np.pi / 2, "tanh": 1.0}
PARAMS = {"kernel": RNG.uniform(-0.4, 0.4, (3, 4)).astype(np.float32), "bias": np.full(4, 9.0, np.float32)}


@pytest.mark.paper(128)
@pytest.mark.parametrize("kind", KINDS)
class TestExact:
    @pytest.mark.parametrize("learn", [False, True])
    def test_starts_where_the_model_is(self, kind, learn):
        """Ψ(Ψ⁻¹(w)) = w for kernels; a bias is not touched."""
        maps = nn.compander(kind, learn=learn)
        got = jax.jit(lambda params: maps.apply(maps.init(params)))(PARAMS)
        np.testing.assert_allclose(got["kernel"], PARAMS["kernel"], rtol=1e-5)
        np.testing.assert_array_equal(got["bias"], PARAMS["bias"])

    def test_definition_and_bound(self, kind):
        values = np.linspace(-1e3, 1e3, 2001, dtype=np.float32)[None]
        weights = nn.compander(kind, scale=0.5, width=0.25).apply({"raw": values})[0]
        expected = 0.5 * {"arctan": np.arctan, "tanh": np.tanh}[kind](values[0] / 0.25)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        assert np.max(np.abs(weights)) <= 0.5 * KINDS[kind]
        assert np.all(np.diff(weights) >= 0)

    def test_is_the_identity_for_large_equal_options(self, kind):
        values = RNG.normal(size=(1, 50)).astype(np.float32)
        maps = nn.compander(kind, scale=1e3, width=1e3)
        np.testing.assert_allclose(maps.apply({"raw": values}), values, rtol=1e-5)
        np.testing.assert_allclose(maps.init(values)["raw"], values, rtol=1e-5)

    def test_large_first_weights_are_clipped(self, kind):
        maps = nn.compander(kind, scale=0.5, margin=0.9)
        got = maps.apply(maps.init(np.array([[-7.0, 0.1, 7.0]], np.float32)))[0]
        bound = 0.9 * 0.5 * KINDS[kind]
        np.testing.assert_allclose(got, [-bound, 0.1, bound], rtol=1e-5)

    def test_slope_is_steep_at_zero_and_flat_for_large_weights(self, kind):
        """a/b at 0; the gradient of v is finite and vanishes far out."""
        slope = jax.vmap(jax.grad(lambda v: nn.compander(kind).apply({"raw": v[None, None]})[0, 0]))
        values = slope(jnp.array([0.0, 0.5, 1e4]))
        np.testing.assert_allclose(values[0], 2.0, rtol=1e-6)
        assert values[0] > values[1] > values[2] >= 0
        assert values[2] < 1e-6


@pytest.mark.paper(128)
class TestLearned:
    def test_scale_and_width_have_the_derivatives_of_the_definition(self):
        maps = nn.compander(learn=True, scale=0.5, width=0.25)
        trained = maps.init({"kernel": PARAMS["kernel"]})
        slopes = jax.grad(lambda trained: jnp.sum(maps.apply(trained)["kernel"] ** 3))(trained)
        v, weights = np.asarray(trained["raw"]["kernel"]), PARAMS["kernel"]
        # d/dlog a of a φ(v/b) is w itself; d/dlog b is −v dw/dv.
        by_width = -v * (0.5 / 0.25) / (1 + (v / 0.25) ** 2)
        np.testing.assert_allclose(slopes["log_scale"]["kernel"], np.sum(3 * weights**2 * weights), rtol=1e-4)
        np.testing.assert_allclose(
            slopes["log_width"]["kernel"], np.sum(3 * weights**2 * by_width), rtol=1e-4
        )

    def test_one_pair_per_leaf(self):
        trained = nn.compander(learn=True).init(PARAMS)
        np.testing.assert_allclose(
            [trained["log_scale"]["bias"], trained["log_scale"]["kernel"]], np.log([0.5] * 2)
        )


@pytest.mark.paper(128)
def test_gradient_descent_leaves_zero_faster_and_large_weights_alone():
    """One step of the same gradient moves a small weight by (a/b)² times, a large one by a hundredth."""
    maps = nn.compander(scale=0.5, width=0.25)
    weights = np.array([[0.001, 0.74]], np.float32)
    trained = maps.init(weights)
    gradient = jax.grad(lambda raw: jnp.sum(maps.apply({"raw": raw})))(trained["raw"])
    moved = maps.apply({"raw": trained["raw"] + 1e-3 * gradient}) - maps.apply(trained)
    np.testing.assert_allclose(moved[0, 0] / 1e-3, 4.0, rtol=1e-2)
    assert moved[0, 1] / 1e-3 < 0.04


def test_module_outputs_are_unchanged_at_the_start():
    model = nn.functional(nn.MLP((4, 5, 3), rngs=nnx.Rngs(0)))
    maps = nn.compander(scale=1.0, width=0.5, learn=True)
    inputs = RNG.normal(size=(2, 4)).astype(np.float32)
    companded = model.apply(maps.apply(maps.init(model.params)), (), inputs, None)[0]
    np.testing.assert_allclose(
        companded, model.apply(model.params, (), inputs, None)[0], rtol=1e-4, atol=1e-6
    )


def test_dtypes_options_and_where():
    half = {"w": jnp.full((2, 2), 0.25, jnp.bfloat16)}
    maps = nn.compander()
    assert maps.init(half)["raw"]["w"].dtype == maps.apply(maps.init(half))["w"].dtype == jnp.bfloat16
    everything = nn.compander(where=lambda leaf: True)
    assert np.abs(everything.apply(everything.init(PARAMS))["bias"]).max() < 0.5 * np.pi / 2

    def weight(scale):
        return nn.compander(scale=scale).apply({"raw": jnp.full((1, 1), 0.25)})[0, 0]

    slopes = jax.vmap(jax.grad(weight))(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(slopes, np.full(2, np.pi / 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sigmoid"}, "kind must be one of"),
        ({"scale": 0.0}, "scale must lie in"),
        ({"width": -1.0}, "width must lie in"),
        ({"margin": 1.0}, "margin must lie in"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        nn.compander(**options)
