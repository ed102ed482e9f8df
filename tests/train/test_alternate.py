"""alternate: two players of a game with a closed form, counts, keys, and what each sees of the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import objectives, oracles, train

RATE = 0.1
BATCH = {"inputs": jnp.zeros(3)}
KEY = jax.random.key(0)


def player(value, tx=None):
    """A player who minimizes ``value(own parameters, shared)``."""

    def update(params, record, key):
        shared = record.extras["shared"]
        metrics = {"draw": jax.random.uniform(key), "own": params}
        record = record._replace(terms={"f": value(params, shared)})
        return record._replace(extras={**record.extras, "metrics": metrics})

    objective = objectives.chain(objectives.stateless(update))
    return train.make_step(objective, oracles.plain(), optax.sgd(RATE) if tx is None else tx)


# f(x, y) = x^2/2 + 2 x y - y^2/2: x descends and y ascends to the saddle at 0.
INIT_X, STEP_X = player(lambda x, shared: x**2 / 2 + 2 * x * shared["y"])
INIT_Y, STEP_Y = player(lambda y, shared: y**2 / 2 - 2 * shared["x"] * y)
X0, Y0 = 1.0, -0.5


def first():
    return {
        "x": INIT_X(X0, {**BATCH, "shared": {"y": Y0}}, KEY),
        "y": INIT_Y(Y0, {**BATCH, "shared": {"x": X0}}, KEY),
    }


def closed_form(order, rounds):
    """Each step of x is ``x <- (1 - r) x - 2 r y`` and each of y ``y <- (1 - r) y + 2 r x``."""
    moves = {
        "x": np.array([[1 - RATE, -2 * RATE], [0, 1]]),
        "y": np.array([[1, 0], [2 * RATE, 1 - RATE]]),
    }
    once = np.eye(2)
    for name, count in order:
        once = np.linalg.matrix_power(moves[name], count) @ once
    return np.linalg.matrix_power(once, rounds) @ np.array([X0, Y0])


@pytest.mark.parametrize("order", [[("y", 5), ("x", 1)], [("x", 1), ("y", 5)]])
def test_follows_the_closed_form(order):
    steps = {"x": STEP_X, "y": STEP_Y}
    step = train.alternate({name: (steps[name], count) for name, count in order})
    end, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, BATCH), s, length=5))(first())
    expected = closed_form(order, 5)
    np.testing.assert_allclose([end["x"].params, end["y"].params], expected, rtol=1e-4, atol=1e-7)
    assert {name: int(end[name].step) for name in end} == {name: 5 * count for name, count in order}
    # It differs from the other order by far more than the tolerance.
    assert np.abs(closed_form(order[::-1], 5) - expected).max() > 0.01


def test_players_see_who_moved_before_them_and_not_whom_they_move():
    """y moves first; x answers its new position, and neither step moves the other's parameters."""
    step = jax.jit(train.alternate({"y": (STEP_Y, 1), "x": (STEP_X, 1)}))
    states, _ = step(first(), BATCH)
    y1 = Y0 - RATE * (Y0 - 2 * X0)
    np.testing.assert_allclose(states["y"].params, y1, rtol=1e-6)
    np.testing.assert_allclose(states["x"].params, X0 - RATE * (X0 + 2 * y1), rtol=1e-6)


def test_a_player_alone_is_its_own_step_repeated():
    alone = {**BATCH, "shared": {"y": jnp.float32(Y0)}}
    state = first()["x"]
    together, metrics = jax.jit(train.alternate({"x": (STEP_X, 3)}))({"x": state}, alone)
    compiled = jax.jit(STEP_X)
    draws = []
    for _ in range(3):
        state, last = compiled(state, alone)
        draws.append(float(last["metrics"]["draw"]))
    chex.assert_trees_all_close(together["x"].params, state.params, rtol=1e-6)
    assert int(together["x"].step) == 3
    # The repeated steps get new keys, and the metrics are those of the last.
    assert len(set(draws)) == 3
    assert float(metrics["metrics"]["x/draw"]) == draws[-1]


def test_metrics_bear_the_players_names_and_the_values_add_up():
    states = first()
    _, metrics = jax.jit(train.alternate({"x": (STEP_X, 1), "y": (STEP_Y, 2)}))(states, BATCH)
    assert set(metrics) == {"value", "terms", "metrics"}
    assert set(metrics["terms"]) == {"x/f", "y/f"}
    assert set(metrics["metrics"]) == {"x/draw", "x/own", "y/draw", "y/own"}
    np.testing.assert_allclose(metrics["value"], metrics["terms"]["x/f"] + metrics["terms"]["y/f"], rtol=1e-6)
    np.testing.assert_allclose(metrics["terms"]["x/f"], X0**2 / 2 + 2 * X0 * Y0, rtol=1e-6)
    # y's last step starts where its first one ended.
    x1 = X0 - RATE * (X0 + 2 * Y0)
    np.testing.assert_allclose(metrics["metrics"]["y/own"], Y0 - RATE * (Y0 - 2 * x1), rtol=1e-6)


def test_a_players_gradient_takes_the_others_as_constants_and_a_gradient_of_the_step_does_not():
    """x moves by its partial derivative; who differentiates the step, as unrolling does, gets all of it."""
    step = train.alternate({"x": (STEP_X, 1)})

    @jax.value_and_grad
    def moved(y):
        states, _ = step({"x": first()["x"], "y": first()["y"]._replace(params=y)}, BATCH)
        return states["x"].params

    position, slope = moved(jnp.float32(Y0))
    np.testing.assert_allclose(position, X0 - RATE * (X0 + 2 * Y0), rtol=1e-6)
    np.testing.assert_allclose(slope, -2 * RATE, rtol=1e-6)


def test_what_the_batch_shares_stays_beside_the_players():
    init, step = player(lambda x, shared: shared["scale"] * (x - shared["other"]) ** 2 / 2)
    state = init(1.0, {**BATCH, "shared": {"scale": 3.0, "other": 0.0}}, KEY)
    states = {"x": state, "other": state._replace(params=jnp.float32(0.0))}
    batch = {**BATCH, "shared": {"scale": jnp.float32(3.0)}}
    states, _ = train.alternate({"x": (step, 1)})(states, batch)
    np.testing.assert_allclose(states["x"].params, 1 - RATE * 3, rtol=1e-6)
    assert float(states["other"].params) == 0


def test_runs_in_fit():
    step = train.alternate({"y": (STEP_Y, 2), "x": (STEP_X, 1)})
    data = {"inputs": np.zeros(3), "shared": {}}
    result = train.fit(step, first(), data, steps=6, chunk=3, progress=False)
    end = [result.state[name].params for name in ("x", "y")]
    np.testing.assert_allclose(end, closed_form([("y", 2), ("x", 1)], 6), rtol=1e-4, atol=1e-7)
    assert {"terms/x/f", "terms/y/f", "metrics/x/draw"} < set(result.history[0])


def test_names_the_player_whose_count_is_below_one():
    with pytest.raises(ValueError, match="player 'critic' must take at least 1 step; got 0"):
        train.alternate({"generator": (STEP_X, 1), "critic": (STEP_Y, 0)})
    with pytest.raises(ValueError, match="players must name at least one player; got none"):
        train.alternate({})
    with pytest.raises(ValueError, match=r"every player's state; \['y'\] are missing of \['x', 'y'\]"):
        train.alternate({"x": (STEP_X, 1), "y": (STEP_Y, 1)})({"x": first()["x"]}, BATCH)
