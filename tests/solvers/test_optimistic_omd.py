"""OptimisticOMD: its regret bound, closed forms of plays, optax, games; dynamic regret."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import convex, solvers

ROUNDS = 200
BALL = functools.partial(convex.project_l2_ball, radius=1.0)


def against(learner, x0, gradients, optimistic=True):
    """Plays and last state of a learner against fixed gradients."""

    def round_(state, g):
        play, state = learner.play(state, None if optimistic else jnp.zeros_like(g))
        return learner.update(state, g), play

    state, plays = jax.lax.scan(round_, learner.init(x0), gradients)
    return plays, state


def sequences():
    rng = np.random.default_rng(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    direction = unit(rng.normal(size=3))
    signs = np.where(np.arange(ROUNDS) % 2, 1.0, -1.0)[:, None]
    return {
        "constant": np.tile(direction, (ROUNDS, 1)),
        "independent": unit(rng.normal(size=(ROUNDS, 3))),
        "flipping": signs * direction,
        "noisy": unit(direction + 0.3 * rng.normal(size=(ROUNDS, 3))),
    }


@pytest.mark.paper(57)
def test_regret_is_within_the_bound():
    """Σ⟨g_t, x_t - u⟩ <= D²/(2η_T) + ½Σ η_t‖g_t - M_t‖² <= 3/2 D √(δ + 4G² + V_T) for the best u of the ball."""

    @jax.jit
    @chex.assert_max_traces(1)
    def play(gradients):
        learner = solvers.OptimisticOMD(BALL, diameter=2.0, gradient_bound=1.0)
        return against(learner, jnp.zeros(3), gradients)

    with jax.enable_x64(True):
        for name, g in sequences().items():
            plays, state = play(jnp.asarray(g))
            regret = float(jnp.sum(plays * g)) + np.linalg.norm(g.sum(0))
            surprise = np.sum((g - np.concatenate([np.zeros((1, 3)), g[:-1]])) ** 2, 1)
            eta = 2 / np.sqrt(5 + np.cumsum(surprise) - surprise)
            middle = 4 / (2 * eta[-1]) + np.sum(eta * surprise) / 2
            bound = 1.5 * 2 * np.sqrt(5 + surprise.sum())
            assert regret <= middle + 1e-9 <= bound + 2e-9, name
            np.testing.assert_allclose(state.variation, surprise.sum())
            assert state.rounds == ROUNDS
            if name == "constant":
                # One surprise only, whatever the number of rounds.
                assert regret < 2.0


@pytest.mark.paper(57)
def test_increments_are_those_of_optax_from_the_third_play_on():
    """optax takes the first gradient for the one before it, this a hint of 0: the plays differ by -η g_1."""
    g = jnp.asarray(sequences()["independent"][:6], jnp.float32)
    plays, _ = jax.jit(lambda g: against(solvers.OptimisticOMD(learning_rate=0.1), jnp.zeros(3), g))(g)
    tx = optax.optimistic_gradient_descent(0.1)
    x, state, theirs = jnp.zeros(3), tx.init(jnp.zeros(3)), []
    for gradient in g:
        updates, state = tx.update(gradient, state)
        x = x + updates
        theirs.append(x)
    theirs = jnp.stack(theirs)
    np.testing.assert_allclose(plays[1:], theirs[:-1] - 0.1 * g[0], atol=1e-6)


@pytest.mark.paper(57)
def test_plays_are_projected_steps_from_the_center():
    """On the box both come from x̂, not from the play."""
    g = np.array([[1.0, -3.0], [0.5, 2.0], [-1.0, 0.2]])
    learner = solvers.OptimisticOMD(lambda x: convex.project_box(x, -0.2, 0.2), learning_rate=0.1)
    plays, state = jax.jit(lambda g: against(learner, jnp.zeros(2), g))(jnp.asarray(g, jnp.float32))
    center, hint = np.zeros(2), np.zeros(2)
    for play, gradient in zip(plays, g, strict=True):
        np.testing.assert_allclose(play, np.clip(center - 0.1 * hint, -0.2, 0.2), atol=1e-7)
        center, hint = np.clip(center - 0.1 * gradient, -0.2, 0.2), gradient
    np.testing.assert_allclose(state.center, center, atol=1e-7)


@pytest.mark.paper(57)
def test_entropy_has_its_closed_form():
    """x_t ∝ x_1 exp(-η (Σ_{s<t} g_s + M_t)), also where the products underflow."""
    g = np.random.default_rng(1).normal(size=(8, 3)) * np.array([1.0, 1.0, 60.0])
    learner = solvers.OptimisticOMD(mirror="entropy", learning_rate=0.7)
    x0 = np.array([0.6, 0.3, 0.1])
    plays, _ = jax.jit(lambda g: against(learner, jnp.asarray(x0, jnp.float32), g))(
        jnp.asarray(g, jnp.float32)
    )
    before = np.cumsum(g, 0) - g
    logits = np.log(x0) - 0.7 * (before + np.concatenate([np.zeros((1, 3)), g[:-1]]))
    np.testing.assert_allclose(plays, jax.nn.softmax(jnp.asarray(logits, jnp.float32)), atol=1e-5)


def game(learner, payoff, x0, y0, rounds, optimistic):
    def round_(states, _):
        hint = None if optimistic else jnp.zeros(3)
        (x, first), (y, second) = (learner.play(state, hint) for state in states)
        new = learner.update(first, payoff.T @ y), learner.update(second, -payoff @ x)
        return new, jnp.max(payoff @ x) - jnp.min(payoff.T @ y)

    return jax.lax.scan(round_, (learner.init(x0), learner.init(y0)), length=rounds)[1]


@pytest.mark.paper(57)
def test_last_iterate_converges_in_a_game_only_with_optimism():
    """Rock, paper, scissors."""
    payoff = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    x0, y0 = jnp.array([0.6, 0.3, 0.1]), jnp.array([0.2, 0.5, 0.3])
    learner = solvers.OptimisticOMD(mirror="entropy", learning_rate=0.3)
    with_it, without = (
        jax.jit(functools.partial(game, learner, payoff, x0, y0, 800, optimistic))()[-1]
        for optimistic in (True, False)
    )
    assert with_it < 0.05
    assert without > 0.5


@pytest.mark.paper(57)
def test_steps_of_strongly_convex_losses():
    """η_t = 2 / (λ t), and on trees; a traced rate gives what a number gives."""
    learner = solvers.OptimisticOMD(strong_convexity=4.0)
    state = learner.init({"a": jnp.ones(2), "b": jnp.ones(())})
    for t in (1, 2, 3):
        _, state = learner.play(state)
        np.testing.assert_allclose(state.step_size, 2 / (4.0 * t), rtol=1e-6)
        state = learner.update(state, {"a": jnp.ones(2), "b": jnp.zeros(())})
    np.testing.assert_allclose(state.center["a"], 1 - 0.5 * (1 + 1 / 2 + 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(state.center["b"], 1.0)

    g = jnp.asarray(sequences()["noisy"][:5], jnp.float32)

    def last(rate):
        return against(solvers.OptimisticOMD(learning_rate=rate), jnp.zeros(3), g)[0][-1].sum()

    # The fifth play is -η (g_1 + g_2 + g_3 + 2 g_4).
    np.testing.assert_allclose(jax.grad(last)(0.2), -(g[:4].sum() + g[3].sum()), rtol=1e-5)


def test_bad_input():
    for options in (
        {},
        {"learning_rate": 0.1, "diameter": 1.0},
        {"learning_rate": 0.0},
        {"diameter": 1.0, "offset": 0.0},
        {"diameter": 1.0, "gradient_bound": -1.0},
        {"learning_rate": 0.1, "mirror": "hyperbolic"},
        {"learning_rate": 0.1, "project": 3},
        {"learning_rate": 0.1, "project": BALL, "mirror": "entropy"},
    ):
        with pytest.raises(ValueError, match="must"):
            solvers.OptimisticOMD(**options)
    learner = solvers.OptimisticOMD(learning_rate=0.1)
    state = learner.init(jnp.zeros(2))
    for call in (
        lambda: learner.init(jnp.zeros(2, jnp.int32)),
        lambda: learner.play(state, jnp.zeros(3)),
        lambda: learner.update(state, jnp.zeros(3)),
        lambda: solvers.OptimisticOMD(lambda x: x[:1], learning_rate=0.1).play(state),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
