"""Rounding to the transport polytope: by hand, exact marginals, the L1 bound, empty rows, gradients."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import ot

RNG = np.random.default_rng(12)
PLAN = RNG.gamma(1.0, size=(5, 4)) / 20
A, B = RNG.dirichlet(np.ones(5)), RNG.dirichlet(np.ones(4))

round_plan = jax.jit(ot.round_plan)


@jax.jit
def gradients(plan, a, b):
    return jax.grad(lambda *args: jnp.sum(jnp.sin(3 * ot.round_plan(*args))), (0, 1, 2))(plan, a, b)


class TestRound:
    def test_by_hand(self):
        """Row 1 has 0.7 for 0.5 and shrinks by 5/7; then row 2 misses 0.3, the columns 1/7 and 11/70."""
        plan = jnp.array([[0.5, 0.2], [0.0, 0.2]])
        half = jnp.array([0.5, 0.5])
        expected = [[5 / 14, 1 / 7], [1 / 7, 0.2 + 11 / 70]]
        np.testing.assert_allclose(round_plan(plan, half, half), expected, rtol=1e-6)

    def test_a_feasible_plan_stays(self):
        plan = PLAN / PLAN.sum()
        with jax.enable_x64(True):
            np.testing.assert_allclose(round_plan(plan, plan.sum(1), plan.sum(0)), plan, rtol=1e-13)

    def test_an_empty_plan_becomes_the_product(self):
        with jax.enable_x64(True):
            np.testing.assert_allclose(round_plan(0 * PLAN, 3 * A, 3 * B), 3 * np.outer(A, B), rtol=1e-13)

    @hypothesis.given(
        plan=hnp.arrays(np.float64, (5, 4), elements=st.floats(0, 2)),
        empty=hnp.arrays(bool, (5, 4)),
        rows=hnp.arrays(np.int64, 5, elements=st.integers(0, 3)),
        columns=hnp.arrays(np.int64, 4, elements=st.integers(0, 3)),
    )
    def test_marginals_and_distance(self, plan, empty, rows, columns):
        """Lemma 7: |G - P|_1 <= 2 (|P1 - a|_1 + |Pᵀ1 - b|_1); rows and columns without mass included."""
        plan = np.where(empty, 0.0, plan)
        rows[0] += 1
        columns[0] += 1
        a, b = rows / rows.sum(), columns / columns.sum()
        with jax.enable_x64(True):
            out = np.asarray(round_plan(plan, a, b))
        assert out.min() >= 0
        np.testing.assert_allclose(out.sum(1), a, atol=1e-15, rtol=1e-14)
        np.testing.assert_allclose(out.sum(0), b, atol=1e-15, rtol=1e-14)
        off = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
        assert np.abs(out - plan).sum() <= 2 * off + 1e-13

    def test_float32(self):
        plan = RNG.gamma(0.1, size=(300, 200))
        a, b = (plan / plan.sum()).sum(1), (plan / plan.sum()).sum(0)
        near = (plan / plan.sum() * RNG.uniform(0.99, 1.01, plan.shape)).astype(np.float32)
        out = np.asarray(round_plan(near, a.astype(np.float32), b.astype(np.float32)), np.float64)
        assert np.abs(near.sum(1) - a).sum() > 1e-4
        assert np.abs(out.sum(1) - a).sum() + np.abs(out.sum(0) - b).sum() < 2e-6


class TestDerivatives:
    def test_finite_differences(self):
        h = 1e-6
        step = RNG.normal(size=(5, 4)) / 100, RNG.normal(size=5) / 100, RNG.normal(size=4) / 100
        step = step[0], step[1] - step[1].mean(), step[2] - step[2].mean()
        with jax.enable_x64(True):

            def along(r):
                moved = (z + r * s for z, s in zip((PLAN, A, B), step, strict=True))
                return float(jnp.sum(jnp.sin(3 * round_plan(*moved))))

            slope = sum(np.vdot(g, s) for g, s in zip(gradients(PLAN, A, B), step, strict=True))
            np.testing.assert_allclose(slope, (along(h) - along(-h)) / (2 * h), rtol=1e-6)

    def test_finite_where_branches_meet(self):
        """Zero plans, empty rows, weights 0 and plans that are feasible already."""
        zero_a, zero_b = A.copy(), B.copy()
        zero_a[:2], zero_b[1] = 0.0, 0.0
        zero_a, zero_b = zero_a / zero_a.sum(), zero_b / zero_b.sum()
        product = np.outer(A, B)
        cases = [(0 * PLAN, A, B), (PLAN, zero_a, zero_b), (product, A, B), (np.outer(zero_a, B), A, zero_b)]
        for case in cases:
            case = [jnp.asarray(z, jnp.float32) for z in case]
            chex.assert_tree_all_finite((round_plan(*case), gradients(*case)))


class TestTransforms:
    def test_vmap_is_a_loop_and_equal_shapes_do_not_retrace(self):
        plans = jnp.asarray(RNG.gamma(1.0, size=(3, 5, 4)) / 20, jnp.float32)
        a, b = jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32)
        one = jax.jit(chex.assert_max_traces(lambda *args: ot.round_plan(*args), n=1))
        batch = jax.jit(jax.vmap(ot.round_plan, (0, None, None)))(plans, a, b)
        np.testing.assert_allclose(batch, [one(plan, a, b) for plan in plans], rtol=1e-5, atol=1e-8)

    def test_traced_masses_that_differ_give_nan(self):
        arrays = [jnp.asarray(z, jnp.float32) for z in (PLAN, A, 1.1 * B)]
        assert jnp.isnan(round_plan(*arrays)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PLAN[0], A, B), "plan must have rank 2"),
        ((PLAN.astype(int), A, B), "plan must be floating"),
        ((-PLAN, A, B), "plan must have no entry"),
        ((PLAN * np.nan, A, B), "plan must have no entry"),
        ((PLAN, B, A), "a must have one weight"),
        ((PLAN, A, 2 * B), "one mass; got 1 and 2"),
        ((PLAN, -A, -B), "a must lie in"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ot.round_plan(*arguments)
