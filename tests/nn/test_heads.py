"""MLP and the auxiliary head against their definitions in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn

RNG = np.random.default_rng(1)


def _linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def test_mlp_is_its_formula():
    model = nn.MLP((4, 5, 6, 3), activation=jnp.tanh, features=True, rngs=nnx.Rngs(0))
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    hidden = np.tanh(_linear(model.hidden[1], np.tanh(_linear(model.hidden[0], x))))
    outputs = model(jnp.asarray(x))
    chex.assert_trees_all_close(outputs["features"], hidden, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(outputs["logits"], _linear(model.output, hidden), rtol=1e-5, atol=1e-6)


def test_mlp_output_scale_scales_the_last_kernel_only():
    full, small = (nn.MLP((4, 5, 3), output_scale=scale, rngs=nnx.Rngs(0)) for scale in (1.0, 0.01))
    chex.assert_trees_all_close(0.01 * full.output.kernel[...], small.output.kernel[...], rtol=1e-6)
    chex.assert_trees_all_equal(full.hidden[0].kernel[...], small.hidden[0].kernel[...])
    assert small(jnp.ones((2, 2, 2))).shape == (2, 3)


def test_mlp_starts_as_flax_does():
    """Kernel scale of nnx.Linear: variance 1 / fan_in."""
    kernel = nn.MLP((400, 300), rngs=nnx.Rngs(0)).output.kernel[...]
    assert abs(float(kernel.std()) * 20 - 1) < 0.02


def test_mlp_needs_two_widths():
    with pytest.raises(ValueError, match="widths must hold at least"):
        nn.MLP((4,), rngs=nnx.Rngs(0))


@pytest.mark.paper(151)
def test_auxiliary_head_in_evaluation_is_its_formula():
    head = nn.AuxiliaryHead(4, 3, rngs=nnx.Rngs(0))
    model = nn.functional(head)
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    _, state = model.apply(model.params, model.model_state, jnp.asarray(x), jax.random.key(0))
    outputs, _ = model.apply(model.params, state, jnp.asarray(x), None)
    first, _, norm, _, last = head.layers.layers
    assert first.kernel.shape == (4, 200)
    statistics = state["layers"]["layers"][2]
    hidden = _linear(first, x) - np.asarray(statistics["mean"][...])
    hidden = hidden / np.sqrt(np.asarray(statistics["var"][...]) + norm.epsilon)
    chex.assert_trees_all_close(outputs, _linear(last, np.maximum(hidden, 0)), rtol=1e-4, atol=1e-5)


@pytest.mark.paper(151)
def test_auxiliary_head_drops_one_tenth():
    head = nn.AuxiliaryHead(4, 3, hidden=4000, rngs=nnx.Rngs(0))
    kept = np.asarray(head.layers.layers[1](jnp.ones((1, 4000))))
    assert abs((kept == 0).mean() - 0.1) < 0.02


@pytest.mark.paper(151)
def test_linear_head_is_linear():
    head = nn.AuxiliaryHead(4, 3, hidden=None, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    chex.assert_trees_all_close(head(2 * x) - head(x), head(x) - head(0 * x), rtol=1e-4, atol=1e-5)
    assert len(jax.tree.leaves(nnx.state(head, nnx.Param))) == 2


def test_dropout_out_of_range():
    with pytest.raises(ValueError, match="dropout must lie in"):
        nn.AuxiliaryHead(4, 3, dropout=1.5, rngs=nnx.Rngs(0))
