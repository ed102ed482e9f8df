"""Sinkhorn distillation: contract, the paper's loop in numpy, `ot.Sinkhorn`, limits, what it cannot see."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxdiv import losses, ot
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(5)
STUDENT, TEACHER = 3 * RNG.normal(size=(2, 8, 5))
S, T = jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32)

# The value and the student's gradient, compiled once per set of static options.
both = jax.jit(jax.value_and_grad(losses.sinkhorn_kd), static_argnames=("epsilon", "num_steps", "debias"))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def distances(student, teacher, temperature=2.0):
    a, b = softmax(student / temperature), softmax(teacher / temperature)
    return abs(a[:, None] - b).sum(-1)


@pytest.mark.paper(5)
class SinkhornKD(contract.Batch, contract.NumericOption):
    loss = staticmethod(losses.sinkhorn_kd)
    targets = ("logits",)
    option = ("epsilon", 0.2)


@pytest.mark.paper(5)
class DebiasedSinkhornKD(contract.Batch, contract.NumericOption):
    loss = staticmethod(functools.partial(losses.sinkhorn_kd, debias=True, num_steps=5))
    targets = ("logits",)
    option = ("temperature", 2.0)


@pytest.mark.paper(5)
class TestSinkhornKD:
    @pytest.mark.parametrize("epsilon", [0.1, 0.03])
    def test_is_the_papers_iteration(self, epsilon):
        """Rows, then columns of exp(-D / epsilon) scaled to sums 1, twenty times; its sum over B."""
        cost = distances(STUDENT, TEACHER)
        plan = np.exp(-cost / epsilon)
        for _ in range(20):
            plan /= plan.sum(1, keepdims=True)
            plan /= plan.sum(0, keepdims=True)
        with jax.enable_x64(True):
            value, _ = both(jnp.asarray(STUDENT), jnp.asarray(TEACHER), epsilon=epsilon)
        np.testing.assert_allclose(value, (plan * cost).sum() / 8, rtol=1e-12)

    @pytest.mark.parametrize("epsilon", [0.1, 0.03])
    def test_is_unrolled_sinkhorn(self, epsilon):
        """Value and gradient are those of `ot.Sinkhorn`'s iterations on the same costs."""
        solver = ot.Sinkhorn(tol=0.0, max_steps=20, mode="log")

        @jax.jit
        @jax.value_and_grad
        def unrolled(student, teacher):
            a, b = jax.nn.softmax(student / 2), jax.nn.softmax(teacher / 2)
            geometry = ot.CostMatrix(jnp.abs(a[:, None] - b).sum(-1))
            return ot.solve(geometry, epsilon=epsilon, solver=solver, adjoint=ot.Unroll()).linear_cost

        with jax.enable_x64(True):
            student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
            found = both(student, teacher, epsilon=epsilon)
            chex.assert_trees_all_close(found, unrolled(student, teacher), rtol=1e-9, atol=1e-14)

    def test_does_not_see_which_row_is_whose(self):
        """The teacher's rows in another order: the same value and gradient; their own rows: no better."""
        order = np.roll(np.arange(8), 3)
        for debias in (False, True):
            value, gradient = both(S, T, debias=debias)
            permuted, permuted_gradient = both(S, T[order], debias=debias)
            np.testing.assert_allclose(permuted, value, atol=1e-6)
            np.testing.assert_allclose(permuted_gradient, gradient, atol=1e-6)
            np.testing.assert_allclose(
                both(T[order], T, debias=debias)[0], both(T, T, debias=debias)[0], atol=1e-6
            )

    def test_one_sample_is_the_l1_distance(self):
        for row in range(2):
            expected = distances(STUDENT[row : row + 1], TEACHER[row : row + 1])[0, 0]
            np.testing.assert_allclose(both(S[row : row + 1], T[row : row + 1])[0], expected, rtol=1e-5)

    def test_large_epsilon_is_the_mean_cost(self):
        np.testing.assert_allclose(both(S, T, epsilon=1e5)[0], distances(STUDENT, TEACHER).mean(), rtol=1e-4)

    def test_small_epsilon_is_the_assignment_when_steps_suffice(self):
        """Twenty steps leave rows without their mass, and may end below the optimum."""
        cost = distances(STUDENT, TEACHER)
        optimum = cost[linear_sum_assignment(cost)].mean()
        np.testing.assert_allclose(both(S, T, epsilon=0.01, num_steps=2000)[0], optimum, rtol=0.01)
        assert both(S, T, epsilon=0.01)[0] < 0.98 * optimum

    def test_debiased_is_least_where_both_agree(self):
        """With the plan spread by entropy, a student of less spread than the teacher's is better."""
        soft, shrunk = 0.2 * T, 0.1 * T
        equal, near = both(soft, soft, epsilon=1.0)[0], both(shrunk, soft, epsilon=1.0)[0]
        assert 0.2 < near < equal
        equal, near = (both(z, soft, epsilon=1.0, debias=True)[0] for z in (soft, shrunk))
        np.testing.assert_allclose(equal, 0.0, atol=1e-6)
        assert near > 0.02
        expected = both(S, T)[0] - 0.5 * (both(S, S)[0] + both(T, T)[0])
        np.testing.assert_allclose(both(S, T, debias=True)[0], expected, atol=1e-6)

    def test_kernel_and_log_space_agree(self):
        """A traced epsilon takes log space, a concrete one of 0.1 the kernel."""
        traced = jax.jit(jax.value_and_grad(lambda s, e: losses.sinkhorn_kd(s, T, epsilon=e)))
        chex.assert_trees_all_close(both(S, T), traced(S, 0.1), rtol=1e-4, atol=1e-6)

    def test_weight_two_is_a_row_given_twice(self):
        twice = np.array([0, 0, 1, 2])
        expected, _ = both(S[twice], T[twice])
        weighted, _ = both(S[:3], T[:3], weights=jnp.array([2.0, 1.0, 1.0]))
        np.testing.assert_allclose(weighted, expected, rtol=1e-5)

    @pytest.mark.parametrize("epsilon", [0.1, 0.03])
    def test_absent_row_may_hold_anything(self, epsilon):
        weights = jnp.ones(8).at[2].set(0.0)
        expected = both(S, T, epsilon=epsilon, weights=weights)
        spoiled = both(S.at[2].set(jnp.nan), T.at[2].set(jnp.inf), epsilon=epsilon, weights=weights)
        chex.assert_trees_all_equal(spoiled, expected)
        np.testing.assert_array_equal(spoiled[1][2], 0.0)

    def test_no_weight_at_all_is_nan(self):
        assert np.isnan(both(S, T, weights=jnp.zeros(8))[0])

    @pytest.mark.parametrize("epsilon", [0.1, 1e-3])
    def test_extremes_are_finite(self, epsilon):
        """Certain distributions at distances of exactly 2 and 0, and a kernel that underflows."""
        scores = 1e4 * np.where(np.arange(5) == RNG.integers(0, 5, (8, 1)), 1.0, -1.0)
        value, gradient = both(jnp.asarray(scores, jnp.float32), T, epsilon=epsilon)
        chex.assert_tree_all_finite((value, gradient))
        value, gradient = both(S, jnp.asarray(scores, jnp.float32), epsilon=epsilon)
        chex.assert_tree_all_finite((value, gradient))
        assert abs(np.asarray(gradient)).max() > 1e-3

    def test_differences_are_held_in_blocks(self):
        """The B^2 C differences, 200 MB here, are never there at once."""
        logits = jax.ShapeDtypeStruct((32, 50_000), jnp.float32)
        compiled = both.lower(logits, logits).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 60e6

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": 0.0}, "temperature must lie in"),
            ({"epsilon": -1.0}, "epsilon must lie in"),
            ({"num_steps": 0}, "num_steps must lie in"),
            ({"weights": np.ones(3, np.float32)}, "weights must hold one weight per row"),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            losses.sinkhorn_kd(S, T, **options)
