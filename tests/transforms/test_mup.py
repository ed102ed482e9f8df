"""The table of the maximal update, and that features of a wide network then move as those of a narrow one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv.testing import transforms as contract
from jaxdiv.transforms.mup import mup_scaling, scale_by_mup

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(198).normal(size=(8, 5)).astype(np.float32)


class AdamContract(contract.Contract):
    learning_rate = 0.9

    @staticmethod
    def transform():
        return scale_by_mup({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, kind="adam")


class SGDContract(contract.Contract):
    learning_rate = 0.3

    @staticmethod
    def transform():
        return scale_by_mup({"w": jnp.zeros((4, 2)), "b": jnp.zeros(2)}, kind="sgd")


def shapes(width):
    return {
        "in": jnp.zeros((5, width)),
        "bias": jnp.zeros(width),
        "hidden": jnp.zeros((width, width)),
        "conv": jnp.zeros((3, 3, width, 2 * width)),
        "out": jnp.zeros((width, 2)),
        "out_bias": jnp.zeros(2),
        "scalar": jnp.zeros(()),
    }


def network(params, inputs):
    h = jnp.tanh(inputs @ params["in"])
    h = jnp.tanh(h @ params["hidden"])
    return h @ params["out"], h


def draw(width):
    keys = jax.random.split(KEY, 3)
    sizes = {"in": (5, width), "hidden": (width, width), "out": (width, 2)}
    return {
        name: jax.random.normal(key, size) / np.sqrt(size[0])
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def movement(width, tx, init):
    """Root mean square change of the last features after three steps on a fixed target."""
    params = jax.tree.map(jnp.multiply, draw(width), init)

    @jax.jit
    def train(params):
        def loss(params):
            return jnp.mean((network(params, INPUTS)[0] - 1) ** 2)

        def body(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        first = network(params, INPUTS)[1]
        params, _ = jax.lax.fori_loop(0, 3, body, (params, tx.init(params)))
        return jnp.sqrt(jnp.mean((network(params, INPUTS)[1] - first) ** 2))

    return float(train(params))


@pytest.mark.paper(198)
class TestMuP:
    def test_is_the_papers_table(self):
        """Width four times that of the base."""
        found = mup_scaling(shapes(32), shapes(8))
        ones = dict.fromkeys(shapes(8), 1.0)
        assert found.init == {**ones, "out": 0.5}
        assert found.sgd == {**ones, "in": 4.0, "bias": 4.0, "out": 0.25}
        assert found.adam == {**ones, "hidden": 0.25, "conv": 0.25, "out": 0.25}
        assert mup_scaling(shapes(8), shapes(8)) == (ones, ones, ones)

    @pytest.mark.parametrize(
        ("kind", "tx", "rate"), [("adam", optax.scale_by_adam(), 0.003), ("sgd", optax.identity(), 0.05)]
    )
    def test_features_move_the_same_at_every_width(self, kind, tx, rate):
        """From width 64 to 1024: within a factor of 1.8 with the table, grown by more than 2.5 without."""
        narrow = draw(64)
        plain = optax.chain(tx, optax.scale(-rate))
        base = movement(64, plain, dict.fromkeys(narrow, 1.0))
        scaled = optax.chain(tx, scale_by_mup(narrow, kind=kind), optax.scale(-rate))
        wide = movement(1024, scaled, mup_scaling(draw(1024), narrow).init)
        assert 1 / 1.8 < wide / base < 1.8
        assert movement(1024, plain, dict.fromkeys(narrow, 1.0)) > 2.5 * base

    def test_composes_and_keeps_dtypes(self):
        half = {"out": jnp.ones((64, 2), jnp.bfloat16)}
        tx = optax.MultiSteps(
            optax.chain(scale_by_mup({"out": jnp.ones((16, 2))}, kind="adam"), optax.sgd(1.0)), 1
        )
        update, _ = jax.jit(tx.update)(half, tx.init(half), half)
        assert update["out"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(update["out"], -0.25)

    def test_errors(self):
        with pytest.raises(ValueError, match="kind must be one of 'sgd', 'adam'; got 'lion'"):
            scale_by_mup(draw(8), kind="lion")
        with pytest.raises(ValueError, match="base must hold every leaf of params; got none at \\['a'\\]"):
            mup_scaling({"a": jnp.ones(2)}, {"b": jnp.ones(2)})
        with pytest.raises(ValueError, match="base must have leaves of the ranks of params"):
            mup_scaling({"a": jnp.ones(2)}, {"a": jnp.ones((2, 2))})
