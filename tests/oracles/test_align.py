"""Aligned gradients: contract, gradient surgery by hand, and what it guarantees."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxdiv import oracles
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)
TERMS = ("fit", "past", "ridge")


@pytest.mark.paper(151)
class AlignContract(contract.Contract):
    oracle = staticmethod(lambda: oracles.align("fit"))
    limit = staticmethod(lambda: oracles.align(*TERMS))
    cost = (1, 2)


def linear(w, state, batch, key):
    """Terms whose gradients are given: <p, w> and the sum of <o_k, w>."""
    terms = {name: jnp.vdot(g, w) for name, g in batch.items()}
    return sum(terms.values()), (state, {"terms": terms, "losses": {}, "metrics": {}})


def aligned(primary, *others, names=("p",)):
    batch = {"p": jnp.asarray(primary)} | {f"o{k}": jnp.asarray(g) for k, g in enumerate(others)}
    w = jnp.zeros_like(batch["p"])
    return oracles.align(*names).value_and_grad(linear, w, (), (), batch, KEY)[1]


one = jax.jit(aligned)
floats = st.floats(-10, 10, allow_subnormal=False)
vectors = st.lists(st.tuples(floats, floats), min_size=2, max_size=2)


@pytest.mark.paper(151)
class TestSurgery(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_conflict_is_projected_out(self):
        """p = (1, 0), o = (-2, 3): what is left of o is (0, 3), and g = (1, 3)."""
        result = self.variant(aligned)(jnp.array([1.0, 0.0]), jnp.array([-2.0, 3.0]))
        np.testing.assert_allclose(result, [1.0, 3.0], rtol=1e-6)
        # p = (3, 4), o = (-1, -2): <o, p> = -11, g = p + o + 11/25 p.
        result = self.variant(aligned)(jnp.array([3.0, 4.0]), jnp.array([-1.0, -2.0]))
        np.testing.assert_allclose(result, [2 + 33 / 25, 2 + 44 / 25], rtol=1e-6)

    def test_without_conflict_it_is_the_plain_gradient(self):
        np.testing.assert_allclose(one(jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])), [4.0, 1.0], rtol=1e-6)
        np.testing.assert_allclose(one(jnp.array([1.0, 2.0]), jnp.array([-2.0, 1.0])), [-1.0, 3.0], rtol=1e-6)

    def test_the_primary_gradient_stays_whole(self):
        """One-sided: g - p is orthogonal to p however strong the others are."""
        p, o = np.array([1.0, 0.0]), np.array([-1e4, 1.0])
        np.testing.assert_allclose(one(jnp.float32(p), jnp.float32(o)), [1.0, 1.0], rtol=1e-2)

    @hypothesis.given(vectors)
    def test_never_raises_the_primary_terms(self, drawn):
        """<g, p> >= |p|^2, with equality where they conflict; else g = p + o."""
        p, o = np.array(drawn)
        with jax.enable_x64(True):
            g = np.asarray(one(jnp.asarray(p), jnp.asarray(o)))
        room = 1e-13 * (1 + np.linalg.norm(p)) * (1 + np.linalg.norm(o) + np.linalg.norm(p))
        assert g @ p >= p @ p - room
        if p @ o < 0:
            np.testing.assert_allclose(g @ p, p @ p, atol=room)
            # Nothing is removed but along p.
            np.testing.assert_allclose((g - p - o) @ [-p[1], p[0]], 0.0, atol=room)
        else:
            np.testing.assert_allclose(g, p + o, atol=room)

    def test_guarantee_holds_for_tiny_and_huge_gradients(self):
        """Squares of 1e-25 and 1e25 leave float32; the direction does not depend on them."""
        for scale in (1e-25, 1e25):
            g = one(jnp.float32(scale) * jnp.array([3.0, 4.0]), jnp.float32(scale) * jnp.array([-1.0, -2.0]))
            np.testing.assert_allclose(g / np.float32(scale), [2 + 33 / 25, 2 + 44 / 25], rtol=1e-5)

    def test_zero_primary_gradient_leaves_the_others(self):
        np.testing.assert_array_equal(one(jnp.zeros(2), jnp.array([-1.0, 2.0])), [-1.0, 2.0])

    def test_nan_is_not_hidden(self):
        assert np.isnan(one(jnp.array([1.0, 1.0]), jnp.array([np.nan, -1.0]))).any()

    def test_several_names_are_one_primary(self):
        """p and o0 are summed before o1 is projected; a name given twice counts once."""
        p, first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([-2.0, 0.0])
        result = aligned(p, first, second, names=("p", "o0", "p"))
        np.testing.assert_allclose(result, [0.0, 2.0], atol=1e-6)

    def test_the_conflict_spans_all_leaves(self):
        """The inner product is that of the whole gradient, not of each leaf."""

        def loss(w, state, batch, key):
            terms = {"p": w["a"] + w["b"], "o": 3.0 * w["a"] - w["b"]}
            return terms["p"] + terms["o"], (state, {"terms": terms, "losses": {}, "metrics": {}})

        w = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}
        gradient = oracles.align("p").value_and_grad(loss, w, (), (), {}, KEY)[1]
        assert (float(gradient["a"]), float(gradient["b"])) == (4.0, 0.0)

    def test_value_and_terms_are_untouched(self):
        batch = {"p": jnp.array([1.0, 0.0]), "o": jnp.array([-2.0, 3.0])}
        w = jnp.array([2.0, 1.0])
        (value, aux), _, _, _ = oracles.align("p").value_and_grad(linear, w, (), (), batch, KEY)
        assert (float(value), float(aux["terms"]["p"]), float(aux["terms"]["o"])) == (1.0, 2.0, -1.0)


@pytest.mark.paper(151)
class TestErrors:
    def test_unknown_term(self):
        with pytest.raises(ValueError, match=r"align knows no term \['ce'\]; the loss has \['o0', 'p'\]"):
            aligned(jnp.ones(2), jnp.ones(2), names=("ce",))

    def test_no_name(self):
        with pytest.raises(ValueError, match="at least one primary term"):
            oracles.align()
