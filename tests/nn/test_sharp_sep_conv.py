"""SharpSepConv against its definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn
from jaxdiv.nn import SharpSepConv

X = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)


def depthwise(x, kernel, stride, dilation):
    """Zeros around, each channel with its own kernel [k, k, 1, C]."""
    size = kernel.shape[0]
    margin = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    height, width = x.shape[1:3]
    out = np.zeros((len(x), -(-height // stride), -(-width // stride), x.shape[3]))
    for i in range(size):
        for j in range(size):
            rows, columns = i * dilation, j * dilation
            window = padded[:, rows : rows + height : stride, columns : columns + width : stride]
            out += window * kernel[i, j, 0]
    return out


def normalized(x, norm):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + norm.epsilon)


def defined(module, x, stride, dilation):
    layers = module.layers.layers
    for (_, deep, point, norm), (s, d) in zip(
        (layers[:4], layers[4:]), ((stride, dilation), (1, 1)), strict=True
    ):
        x = depthwise(np.maximum(x, 0), np.asarray(deep.kernel[...]), s, d)
        x = normalized(x @ np.asarray(point.kernel[...])[0, 0], norm)
    return x


@pytest.mark.paper(112)
class TestSharpSepConv:
    @pytest.mark.parametrize(
        ("size", "stride", "dilation", "middle"),
        [(3, 1, 1, None), (3, 2, 1, 2), (5, 1, 2, 8), (3, 2, 2, None)],
    )
    def test_is_its_definition(self, size, stride, dilation, middle):
        module = SharpSepConv(
            3, 4, kernel_size=size, stride=stride, dilation=dilation, mid_features=middle, rngs=nnx.Rngs(0)
        )
        got = module(jnp.asarray(X))
        assert got.shape == (2, -(-5 // stride), -(-6 // stride), 4)
        np.testing.assert_allclose(got, defined(module, X, stride, dilation), rtol=1e-3, atol=1e-4)

    def test_number_of_parameters(self):
        """9 C + C C_mid + 9 C_mid + C_mid C_out, and two for each normalized channel."""
        params = nn.functional(SharpSepConv(3, 4, mid_features=16, rngs=nnx.Rngs(0))).params
        assert sum(x.size for x in jax.tree.leaves(params)) == 27 + 48 + 144 + 64 + 2 * (16 + 4)

    def test_evaluation_uses_stored_statistics(self):
        """Whatever else is in the batch."""
        model = nn.functional(SharpSepConv(3, 4, rngs=nnx.Rngs(0)))
        _, state = model.apply(model.params, model.model_state, jnp.asarray(X), jax.random.key(0))
        both, same = model.apply(model.params, state, jnp.asarray(X), None)
        one, _ = model.apply(model.params, state, jnp.asarray(X[:1]), None)
        np.testing.assert_allclose(both[:1], one, rtol=1e-4, atol=1e-5)
        assert same is state

    @pytest.mark.parametrize("size", [0, 2])
    def test_even_kernel(self, size):
        with pytest.raises(ValueError, match="kernel_size must be odd"):
            SharpSepConv(3, 4, kernel_size=size, rngs=nnx.Rngs(0))
