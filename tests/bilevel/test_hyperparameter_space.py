"""Hyperparameter spaces: closed forms, the inverse, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import bilevel

Range = bilevel.Range
SPACE = bilevel.hparam_space(
    {
        "dropout": Range(0.0, 0.9),
        "decay": Range(low=1.0),
        "shift": Range(high=2.0),
        "free": Range(),
        "holes": Range(0, 4, discrete=True),
        "depth": Range(1, discrete=True),
        "debt": Range(high=0, discrete=True),
    }
)
X = np.linspace(-5, 5, 21)
ROWS = np.float32(np.stack([X] * 7, -1))


@pytest.mark.paper(144)
class SpaceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_constrain_is_the_papers(self):
        softplus, sigmoid = np.log1p(np.exp(X)), 1 / (1 + np.exp(-X))
        expected = {
            "dropout": 0.9 * sigmoid,
            "decay": 1 + softplus,
            "shift": 2 - softplus,
            "free": X,
            "holes": np.floor(4 * sigmoid),
            "depth": np.floor(1 + softplus),
            "debt": np.floor(-softplus),
        }
        values = self.variant(SPACE.constrain)(ROWS)
        for name, value in values.items():
            chex.assert_trees_all_close(value, np.float32(expected[name]), rtol=1e-5, atol=1e-6)
        assert tuple(expected) == SPACE.names

    @chex.variants(with_jit=True, without_jit=True)
    def test_unconstrain_is_the_inverse(self):
        continuous = self.variant(lambda rows: SPACE.unconstrain(SPACE.constrain(rows)))(ROWS)[:, :4]
        chex.assert_trees_all_close(continuous, ROWS[:, :4], rtol=1e-4, atol=1e-4)


@pytest.mark.paper(144)
def test_discrete_values_come_back_exactly():
    for name, values in (("holes", [0, 1, 2, 3]), ("depth", [1, 2, 7, 30]), ("debt", [-1, -2, -9, -30])):
        others = {"dropout": 0.5, "decay": 2.0, "shift": 0.0, "free": 0.0, "holes": 1, "depth": 3, "debt": -3}
        vector = SPACE.unconstrain(others | {name: jnp.asarray(values)})
        chex.assert_shape(vector, (4, 7))
        chex.assert_trees_all_equal(SPACE.constrain(vector)[name], jnp.asarray(values, jnp.float32))


@pytest.mark.paper(144)
def test_inverse_in_double_precision():
    with jax.enable_x64(True):
        rows = jnp.asarray(np.stack([np.linspace(-12, 12, 9)] * 7, -1))
        back = SPACE.unconstrain(SPACE.constrain(rows))[:, :4]
        chex.assert_trees_all_close(back, rows[:, :4], rtol=1e-9, atol=1e-12)


@pytest.mark.paper(144)
def test_small_values_keep_their_relative_precision():
    space = bilevel.hparam_space({"decay": Range(0.0)})
    decay = jnp.array([1e-9, 1e-5, 1.0, 1e5])
    chex.assert_trees_all_close(
        space.constrain(space.unconstrain({"decay": decay}))["decay"], decay, rtol=1e-5
    )


@pytest.mark.paper(144)
def test_derivatives_and_traced_bounds():
    assert jax.grad(lambda x: SPACE.constrain(x)["holes"])(jnp.zeros(7)).tolist() == [0.0] * 7

    def value(high):
        return bilevel.hparam_space({"dropout": Range(0.0, high)}).constrain(jnp.zeros(1))["dropout"]

    assert float(jax.jit(jax.grad(value))(0.9)) == 0.5
    assert jax.vmap(value)(jnp.array([0.5, 1.0])).tolist() == [0.25, 0.5]


@pytest.mark.paper(144)
def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one hyperparameter"):
        bilevel.hparam_space({})
    with pytest.raises(ValueError, match=r"ranges\['p'\] must have low < high; got 1 and 1"):
        bilevel.hparam_space({"p": Range(1, 1)})
    with pytest.raises(ValueError, match=r"bounds must be integers; got 0\.5"):
        bilevel.hparam_space({"p": Range(0.5, 3, discrete=True)})
    space = bilevel.hparam_space({"p": Range(0, 1), "n": Range(0, 4, True)})
    with pytest.raises(ValueError, match=r"one entry for each of p, n .* got shape \(3,\)"):
        space.constrain(jnp.zeros(3))
    with pytest.raises(ValueError, match="values must be given for p, n; got p"):
        space.unconstrain({"p": 0.5})
    with pytest.raises(ValueError, match=r"p must lie in \(0, 1\)"):
        space.unconstrain({"p": 1.0, "n": 0})
    with pytest.raises(ValueError, match=r"n must lie in \[0, 4\)"):
        space.unconstrain({"p": 0.5, "n": 4})
