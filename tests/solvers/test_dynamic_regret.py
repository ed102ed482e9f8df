"""Dynamic regret: by hand, and of gradient descent within Zinkevich's bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import convex, solvers


@pytest.mark.paper(57)
def test_by_hand_on_trees():
    comparators = {"a": jnp.array([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0]]), "b": jnp.array([0.0, 4.0, 4.0])}
    out = solvers.dynamic_regret(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 1.0, 1.0]), comparators)
    np.testing.assert_allclose(out.regret, [1.0, 1.0, 0.0])
    np.testing.assert_allclose(out.path_length, [0.0, 5.0, 5.0])


@pytest.mark.paper(57)
def test_bound_of_optimistic_steps_against_a_moving_comparator():
    """Losses ½‖x - c_t‖² on the ball: Σ⟨g_t, x_t - u_t⟩ <= (D² + 2 D P_T) / (2 η) + (η / 2) Σ‖g_t - M_t‖²."""
    rng = np.random.default_rng(0)
    targets = np.cumsum(0.05 * rng.normal(size=(200, 2)), 0) / 2
    targets /= np.maximum(1, np.linalg.norm(targets, axis=1, keepdims=True))
    eta, learner = (
        0.2,
        solvers.OptimisticOMD(functools.partial(convex.project_l2_ball, radius=1.0), learning_rate=0.2),
    )

    def round_(state, c):
        x, state = learner.play(state)
        return learner.update(state, x - c), jnp.sum((x - c) ** 2) / 2

    with jax.enable_x64(True):
        targets = jnp.asarray(targets)
        state, losses = jax.jit(lambda c: jax.lax.scan(round_, learner.init(jnp.zeros(2)), c))(targets)
        out = solvers.dynamic_regret(losses, jnp.zeros(200), targets)
        bound = (4 + 4 * out.path_length[-1]) / (2 * eta) + eta / 2 * state.variation
        assert 0 < out.regret[-1] <= bound


def test_bad_input():
    for args in (
        (jnp.ones(2), jnp.ones(3), jnp.ones((2, 1))),
        (jnp.ones(2), jnp.ones(2), jnp.ones((3, 1))),
        (jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.ones((2, 1))),
        (jnp.ones(2, jnp.int32), jnp.ones(2), jnp.ones((2, 1))),
    ):
        with pytest.raises(ValueError, match="must"):
            solvers.dynamic_regret(*args)
