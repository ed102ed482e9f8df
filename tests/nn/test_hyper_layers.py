"""Best-response layers against their definition: one kernel per example, built and applied in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn

RNG = np.random.default_rng(0)
DENSE = nn.HyperDense(4, 3, n_hyper=2, rngs=nnx.Rngs(0))
CONV = nn.HyperConv(2, 3, (3, 2), n_hyper=2, rngs=nnx.Rngs(0))
for _layer in (DENSE, CONV):
    _layer.scale[...] = jnp.asarray(0.7)  # It starts at 1, where it would not show.
LAM = np.float32(30 * RNG.normal(size=(5, 2)))  # Large, so that V ~ 0.01 matters.
ROWS = np.float32(RNG.normal(size=(5, 4)))
IMAGES = np.float32(RNG.normal(size=(5, 6, 4, 2)))


def _answers(layer, lam):
    """Kernel and bias of one example."""
    gates = lam @ np.asarray(layer.gates.kernel[...])
    weight_gate, bias_gate = gates[:3], gates[3:]
    scale = float(layer.scale[...])
    kernel = scale * np.asarray(layer.elementary.kernel[...]) + weight_gate * np.asarray(
        layer.response.kernel[...]
    )
    bias = scale * np.asarray(layer.elementary.bias[...]) + bias_gate * np.asarray(layer.response_bias[...])
    return kernel, bias


@pytest.mark.paper(144)
class HyperLayersTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_dense_is_one_matrix_per_example(self):
        expected = []
        for x, lam in zip(ROWS, LAM, strict=True):
            kernel, bias = _answers(DENSE, lam)
            expected.append(x @ kernel + bias)
        outputs = self.variant(lambda x, lam: DENSE(x, lam))(ROWS, LAM)
        chex.assert_trees_all_close(outputs, np.stack(expected), rtol=1e-4, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_conv_is_one_kernel_per_example(self):
        expected = []
        for x, lam in zip(IMAGES, LAM, strict=True):
            kernel, bias = _answers(CONV, lam)
            # SAME: for a window of 2 all padding is behind.
            padded = np.pad(x, ((1, 1), (0, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), axis=(0, 1))
            expected.append(np.einsum("ijcab,abco->ijo", windows, kernel) + bias)
        outputs = self.variant(lambda x, lam: CONV(x, lam))(IMAGES, LAM)
        chex.assert_trees_all_close(outputs, np.stack(expected), rtol=1e-4, atol=1e-4)

    @chex.variants(with_jit=True, without_jit=True)
    def test_squared_norm_is_that_of_each_examples_kernel(self):
        for layer in (DENSE, CONV):
            expected = [np.sum(_answers(layer, lam)[0] ** 2) for lam in LAM]
            norms = self.variant(layer.squared_norm)(LAM)
            chex.assert_trees_all_close(norms, np.float32(expected), rtol=1e-5)
            chex.assert_shape(layer.squared_norm(LAM[0]), ())


@pytest.mark.paper(144)
def test_hyperparameters_for_all_are_rows_repeated():
    for layer, x in ((DENSE, ROWS), (CONV, IMAGES)):
        repeated = layer(x, jnp.broadcast_to(LAM[0], LAM.shape))
        chex.assert_trees_all_close(layer(x, LAM[0]), repeated, rtol=1e-5, atol=1e-6)


@pytest.mark.paper(144)
def test_vmap_over_hyperparameters():
    many = jax.vmap(DENSE, (None, 0))(ROWS, LAM)
    chex.assert_trees_all_close(many[2], DENSE(ROWS, LAM[2]), rtol=1e-5, atol=1e-6)


@pytest.mark.paper(144)
def test_strides_padding_and_no_bias():
    layer = nn.HyperConv(2, 3, (3,), 1, strides=2, padding="VALID", use_bias=False, rngs=nnx.Rngs(0))
    outputs = layer(jnp.zeros((5, 7, 2)), jnp.ones((5, 1)))
    chex.assert_trees_all_equal(outputs, jnp.zeros((5, 3, 3)))
    dense = nn.HyperDense(4, 3, 1, use_bias=False, rngs=nnx.Rngs(0))
    chex.assert_trees_all_equal(dense(jnp.zeros((2, 4)), jnp.ones(1)), jnp.zeros((2, 3)))
    assert len(jax.tree.leaves(nnx.state(dense, nnx.Param))) == 4


@pytest.mark.paper(144)
def test_starts_as_the_authors():
    """Kernels and biases uniform in ±1/√fan_in, V normal with deviation 0.01, s at 1."""
    dense = nn.HyperDense(16, 500, 4, rngs=nnx.Rngs(0))
    conv = nn.HyperConv(4, 500, (2, 2), 4, rngs=nnx.Rngs(0))
    for layer in (dense, conv):
        for part in (
            layer.elementary.kernel,
            layer.response.kernel,
            layer.elementary.bias,
            layer.response_bias,
        ):
            values = np.abs(part[...])
            assert 0.24 < values.max() <= 0.25
            assert abs(values.mean() - 0.125) < 0.01
        assert abs(layer.gates.kernel[...].std() - 0.01) < 5e-4
        assert float(layer.scale[...]) == 1.0
        assert not np.allclose(layer.elementary.kernel[...], layer.response.kernel[...])


@pytest.mark.paper(144)
def test_without_gates_hyperparameters_have_no_gradient():
    layer = nn.HyperDense(4, 3, 2, rngs=nnx.Rngs(0))
    layer.gates.kernel[...] = jnp.zeros((2, 6))
    chex.assert_trees_all_equal(layer(ROWS, LAM), layer.elementary(ROWS))
    gradient = jax.grad(lambda lam: jnp.sum(layer(ROWS, lam) ** 2))(LAM)
    chex.assert_trees_all_equal(gradient, jnp.zeros_like(LAM))


@pytest.mark.paper(144)
def test_goes_through_functional():
    model = nn.functional(_Pair())

    def loss(params):
        return jnp.sum(model.apply(params, (), (ROWS, LAM), None)[0] ** 2)

    gradients = jax.grad(loss)(model.params)
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients))
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, model.params)


@pytest.mark.paper(144)
class _Pair(nnx.Module):
    def __init__(self):
        self.layer = nn.HyperDense(4, 3, 2, rngs=nnx.Rngs(0))

    def __call__(self, inputs):
        return self.layer(*inputs)


@pytest.mark.paper(144)
def test_half_precision_inputs():
    assert DENSE(jnp.asarray(ROWS, jnp.bfloat16), LAM).dtype == jnp.float32


@pytest.mark.paper(144)
def test_bad_arguments():
    with pytest.raises(ValueError, match="n_hyper must be at least 1; got 0"):
        nn.HyperDense(4, 3, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"hyperparameters must have 2 entries .* got shape \(5, 3\)"):
        DENSE(ROWS, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"one row for each of the \(5,\) examples"):
        CONV(IMAGES, jnp.ones((6, 2)))
