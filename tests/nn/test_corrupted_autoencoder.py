"""The autoencoder against its definition in numpy, and what its noise touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn

X = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


@pytest.fixture(scope="module")
def module():
    return nn.CorruptedAutoencoder((4, 6, 5, 2), 3, dropout=0.5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def model(module):
    functional = nn.functional(module)
    return functional._replace(apply=jax.jit(functional.apply))


@pytest.mark.paper(3)
def test_in_evaluation_is_its_formula(module, model):
    encoder, decoder = module.encoder, module.decoder
    z1 = leaky(linear(encoder[0], X))
    z2 = leaky(linear(encoder[1], z1))
    code = np.tanh(linear(encoder[2], z2))
    r2 = leaky(linear(decoder[0], code))
    r1 = leaky(linear(decoder[1], r2))
    r0 = linear(decoder[2], r1)
    outputs, _ = model.apply(model.params, model.model_state, X.reshape(3, 2, 2), None)
    for name, expected in (("clean", (X, z1, z2)), ("reconstruction", (r0, r1, r2))):
        assert len(outputs[name]) == 3
        for got, layer in zip(outputs[name], expected, strict=True):
            np.testing.assert_allclose(got, layer, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["code"], code, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["clean_logits"], linear(module.head, code), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], outputs["clean_logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.paper(3)
def test_noise_touches_the_noisy_path_alone(model):
    clean, _ = model.apply(model.params, model.model_state, X, None)
    one, two = (model.apply(model.params, model.model_state, X, jax.random.key(k))[0] for k in (0, 1))
    for name in ("clean_logits", "code", "clean"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one[name], clean[name])
    assert not np.allclose(one["logits"], clean["logits"])
    assert not np.allclose(one["logits"], two["logits"])
    for noisy, other in zip(one["reconstruction"], clean["reconstruction"], strict=True):
        assert not np.allclose(noisy, other)


@pytest.mark.paper(3)
def test_input_and_each_hidden_layer_are_dropped_by_themselves():
    """Of ones that pass three identities, two of which drop a fifth: (1 - 1/5)^2 are left, at (5/4)^2."""
    identity = dict.fromkeys(("activation", "code_activation"), lambda x: x)
    module = nn.CorruptedAutoencoder((400, 400, 400), 400, dropout=0.2, rngs=nnx.Rngs(0), **identity)
    for layer in (*module.encoder, module.head):
        layer.kernel[...] = jnp.eye(400)
    kept = np.asarray(module(jnp.ones((2, 400)))["logits"])
    assert np.all(np.isclose(kept, 0) | np.isclose(kept, 1.5625))
    assert abs((kept > 0).mean() - 0.64) < 0.05


@pytest.mark.paper(3)
@pytest.mark.parametrize(
    ("widths", "dropout", "message"),
    [((4,), 0.1, "widths must hold at least"), ((4, 2), 1.5, "dropout must lie in")],
)
def test_bad_arguments(widths, dropout, message):
    with pytest.raises(ValueError, match=message):
        nn.CorruptedAutoencoder(widths, 3, dropout=dropout, rngs=nnx.Rngs(0))
