"""`nn.functional`: the same numbers as the module, and nothing hidden between calls."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import nn

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
KEY = jax.random.key(7)


class Net(nnx.Module):
    """Two dropouts and a batch norm; returns a dict."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        hidden = self.norm(self.linear(x))
        ones = jnp.ones_like(hidden)
        masks = [drop(ones) for drop in self.drops]
        return {"logits": self.head(masks[0] * hidden), "masks": masks}


class Keeper(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        y = self.linear(x)
        self.seen = nnx.Intermediate(y)
        return y


class Noise(nnx.Module):
    """Draws noise whether training or not."""

    def __init__(self, rngs):
        self.rngs = rngs.fork()

    def __call__(self, x):
        return x + self.rngs.noise.normal(x.shape)


class FunctionalTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        self.module = Net(nnx.Rngs(0))
        self.model = nn.functional(self.module)

    def test_params_and_state_are_split(self):
        chex.assert_trees_all_equal(self.model.params, nnx.state(self.module, nnx.Param))
        chex.assert_trees_all_equal(self.model.model_state, nnx.state(self.module, nnx.BatchStat))

    @chex.variants(with_jit=True, without_jit=True)
    def test_evaluation_equals_module(self):
        outputs, state = self.variant(lambda p, s, x: self.model.apply(p, s, x, None))(
            self.model.params, self.model.model_state, INPUTS
        )
        self.module.eval()
        chex.assert_trees_all_close(outputs["logits"], self.module(INPUTS)["logits"], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(state, self.model.model_state)

    @chex.variants(with_jit=True, without_jit=True)
    def test_training_equals_formula(self):
        """Batch statistics, running statistics and dropout as defined, from the returned masks."""
        params, state = self.model.params, self.model.model_state
        outputs, new_state = self.variant(self.model.apply)(params, state, INPUTS, KEY)
        hidden = INPUTS @ params["linear"]["kernel"][...] + params["linear"]["bias"][...]
        mean, var = hidden.mean(0), hidden.var(0)
        normalized = (hidden - mean) / jnp.sqrt(var + 1e-5)
        logits = (
            outputs["masks"][0] * normalized @ params["head"]["kernel"][...] + params["head"]["bias"][...]
        )
        chex.assert_trees_all_close(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(new_state["norm"]["mean"][...], 0.1 * mean, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(new_state["norm"]["var"][...], 0.9 + 0.1 * var, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        assert jax.tree.structure(state) == jax.tree.structure(new_state)
        # Every stream has its own key.
        assert not np.array_equal(*outputs["masks"])

    def test_no_hidden_state(self):
        """Equal keys give equal draws however often apply ran before; inputs are left untouched."""
        params, state = self.model.params, self.model.model_state
        before = jax.tree.map(np.asarray, (params, state))
        first = self.model.apply(params, state, INPUTS, KEY)
        again = self.model.apply(params, state, INPUTS, KEY)
        other = self.model.apply(params, state, INPUTS, jax.random.key(8))
        chex.assert_trees_all_equal(first, again)
        chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, (params, state)))
        assert not np.array_equal(first[0]["masks"][0], other[0]["masks"][0])

    def test_module_is_left_alone_and_takes_params_back(self):
        untouched = jax.tree.map(np.asarray, nnx.state(self.module, nnx.Param, nnx.BatchStat))
        _, state = self.model.apply(self.model.params, self.model.model_state, INPUTS, KEY)
        chex.assert_trees_all_equal(untouched, nnx.state(self.module, nnx.Param, nnx.BatchStat))
        trained = jax.tree.map(lambda x: x + 1, self.model.params)
        nnx.update(self.module, trained, state)
        self.module.eval()
        outputs, _ = self.model.apply(trained, state, INPUTS, None)
        chex.assert_trees_all_close(outputs["logits"], self.module(INPUTS)["logits"], rtol=1e-5, atol=1e-5)
        # The module's own later changes do not reach the functional form.
        chex.assert_trees_all_equal(self.model.params, untouched[0])

    def test_scan_of_gradient_steps_lowers_loss(self):
        def loss(params, state, key):
            outputs, state = self.model.apply(params, state, INPUTS, key)
            return jnp.mean(outputs["logits"] ** 2), state

        def step(carry, key):
            params, state = carry
            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, key)
            return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), value

        carry = (self.model.params, self.model.model_state)
        (params, state), values = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(KEY, 30)))(carry)
        assert jax.tree.structure(params) == jax.tree.structure(self.model.params)
        assert values[-5:].mean() < 0.5 * values[:5].mean()
        # The running mean after 30 constant-ish batches has moved towards the batch mean.
        assert float(jnp.abs(state["norm"]["mean"][...]).max()) > 0

    def test_vmap_over_members_keys_and_state(self):
        keys = jax.random.split(KEY, 3)
        members = jax.vmap(lambda key: nn.functional(Net(nnx.Rngs(key))).params)(keys)
        states = jax.tree.map(lambda x: jnp.stack([x] * 3), self.model.model_state)
        outputs, new_states = jax.vmap(self.model.apply, (0, 0, None, 0))(members, states, INPUTS, keys)
        chex.assert_shape(outputs["logits"], (3, 6, 3))
        one = jax.tree.map(lambda x: x[1], (members, new_states))
        outputs_one, state_one = self.model.apply(one[0], self.model.model_state, INPUTS, keys[1])
        chex.assert_trees_all_close(outputs["logits"][1], outputs_one["logits"], rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(one[1], state_one, rtol=1e-5, atol=1e-6)

    def test_old_style_key(self):
        typed = self.model.apply(self.model.params, self.model.model_state, INPUTS, jax.random.key(3))
        raw = self.model.apply(self.model.params, self.model.model_state, INPUTS, jax.random.PRNGKey(3))
        chex.assert_trees_all_equal(typed, raw)

    def test_no_retrace(self):
        step = jax.jit(chex.assert_max_traces(self.model.apply, n=1))
        _, state = step(self.model.params, self.model.model_state, INPUTS, KEY)
        step(self.model.params, state, INPUTS, jax.random.key(1))


def test_key_means_training_mode_whatever_the_module_was_left_in():
    module = Net(nnx.Rngs(0))
    module.eval()
    model = nn.functional(module)
    _, state = model.apply(model.params, model.model_state, INPUTS, KEY)
    assert not np.array_equal(state["norm"]["mean"][...], model.model_state["norm"]["mean"][...])


def test_intermediates_do_not_grow_the_state():
    module = Keeper(nnx.Rngs(0))
    module(INPUTS)
    model = nn.functional(module)
    _, state = model.apply(model.params, model.model_state, INPUTS, KEY)
    assert jax.tree.structure(state) == jax.tree.structure(model.model_state)
    assert not jax.tree.leaves(state)


def test_layer_that_draws_in_evaluation_is_constant_there():
    model = nn.functional(Noise(nnx.Rngs(0, noise=1)))
    first, _ = model.apply(model.params, model.model_state, INPUTS, None)
    second, _ = model.apply(model.params, model.model_state, INPUTS, None)
    chex.assert_trees_all_equal(first, second)
    drawn, _ = model.apply(model.params, model.model_state, INPUTS, KEY)
    assert not np.array_equal(first, drawn)


def test_stacked_layers_get_one_key_each():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs):
        return nnx.Dropout(0.5, rngs=rngs)

    class Stacked(nnx.Module):
        def __init__(self, rngs):
            self.drops = stack(rngs)

        def __call__(self, x):
            return nnx.vmap(lambda drop, row: drop(row))(self.drops, x)

    model = nn.functional(Stacked(nnx.Rngs(0)))
    rows, _ = model.apply(model.params, model.model_state, jnp.ones((3, 32)), KEY)
    assert len(np.unique(np.asarray(rows), axis=0)) == 3


def test_not_a_module():
    with pytest.raises(ValueError, match="nnx module; got function"):
        nn.functional(lambda x: x)
