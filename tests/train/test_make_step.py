"""make_step: a hand-written optax loop bit for bit, keys, fixed leaves, extra arguments, dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from jaxdiv import objectives, oracles, train

RNG = np.random.default_rng(0)
BATCH = {
    "inputs": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32),
    "targets": jnp.asarray(RNG.integers(0, 3, 6), jnp.int32),
    "weights": jnp.asarray([1.0, 2.0, 1.0, 0.0, 3.0, 1.0]),
}
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
KEY = jax.random.key(7)


def model(params, state, inputs, key):
    noise = 0.0 if key is None else jax.random.normal(key, inputs.shape, inputs.dtype)
    return (inputs + 0.1 * noise) @ params["w"] + params["b"], state


def classifier(apply=model):
    return objectives.chain(
        objectives.forward(apply),
        objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
        objectives.mean(),
    )


def keeps_keys():
    """A link that keeps the key it was given, and the one of its init."""
    return objectives.Link(
        init=lambda params, record, key: (jax.random.key_data(key), jnp.zeros(2, jnp.uint32)),
        update=lambda params, state, record, key: (
            record._replace(terms={"norm": jnp.sum(params**2)}),
            (state[0], jax.random.key_data(key)),
        ),
    )


def quadratic(curvature):
    """Half x' diag(curvature) x, minimal at zero."""

    def update(params, record, key):
        return record._replace(terms={"f": 0.5 * jnp.sum(curvature * params**2)})

    return objectives.chain(objectives.stateless(update))


class TestStep(chex.TestCase):
    def test_equals_a_hand_written_optax_loop_bit_for_bit(self):
        tx = optax.adamw(0.05)
        init, step = train.make_step(classifier(), oracles.plain(), tx)
        state = init(PARAMS, BATCH, KEY)

        def loss(params, key):
            # The forward link stands first in the chain.
            logits, _ = model(params, (), BATCH["inputs"], jax.random.fold_in(key, 0))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["targets"])
            return jnp.sum(BATCH["weights"] * losses) / jnp.sum(BATCH["weights"])

        @jax.jit
        def by_hand(params, opt_state, count):
            key = jax.random.fold_in(jax.random.split(KEY)[1], count)
            value, gradient = jax.value_and_grad(loss)(params, key)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        compiled = jax.jit(step)
        params, opt_state = PARAMS, tx.init(PARAMS)
        for count in range(4):
            params, opt_state, value = by_hand(params, opt_state, jnp.int32(count))
            state, metrics = compiled(state, BATCH)
            chex.assert_trees_all_equal(metrics["value"], metrics["terms"]["ce"], value)
        chex.assert_trees_all_equal(state.params, params)
        chex.assert_trees_all_equal(state.opt_state, opt_state)
        assert int(state.step) == 4

    def test_one_trace_for_two_calls(self):
        # Python numbers and weak types in the first parameters must not cost a second compilation.
        params = {"w": PARAMS["w"], "b": 0.0}
        init, step = train.make_step(classifier(), oracles.plain(), optax.adam(0.1))
        compiled = jax.jit(chex.assert_max_traces(step, n=1))
        state, _ = compiled(init(params, BATCH, KEY), BATCH)
        state, _ = compiled(state, {**BATCH, "inputs": BATCH["inputs"] + 1})
        chex.assert_tree_all_finite(state.params)

    def test_keys_are_one_split_and_then_one_fold_per_step(self):
        init, step = train.make_step(objectives.chain(keeps_keys()), oracles.plain(), optax.sgd(0.1))
        state = init(jnp.ones(2), {"inputs": jnp.zeros(1)}, KEY)
        init_key, key = jax.random.split(KEY)
        np.testing.assert_array_equal(
            state.loss_state[0][0], jax.random.key_data(jax.random.fold_in(init_key, 0))
        )
        compiled = jax.jit(step)
        for count in range(3):
            state, _ = compiled(state, {"inputs": jnp.zeros(1)})
            expected = jax.random.fold_in(jax.random.fold_in(key, count), 0)
            np.testing.assert_array_equal(state.loss_state[0][1], jax.random.key_data(expected))
            np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(key))

    def test_only_inexact_leaves_move(self):
        params = {
            **PARAMS,
            "classes": jnp.array([0, 1, 2]),
            "flag": jnp.array(True),
            "noise": jax.random.key(3),
            "nothing": None,
        }
        init, step = train.make_step(classifier(), oracles.plain(), optax.sgd(1.0))
        compiled = jax.jit(step)
        state, _ = compiled(init(params, BATCH, KEY), BATCH)
        small, _ = compiled(init(PARAMS, BATCH, KEY), BATCH)
        for name in ("classes", "flag"):
            np.testing.assert_array_equal(state.params[name], params[name])
        assert state.params["noise"] == params["noise"]
        assert state.params["nothing"] is None
        for name in ("w", "b"):
            np.testing.assert_array_equal(state.params[name], small.params[name])
            assert float(jnp.abs(state.params[name] - PARAMS[name]).max()) > 0.01

    def test_a_state_of_numpy_arrays_moves_too(self):
        init, step = train.make_step(quadratic(1.0), oracles.plain(), optax.sgd(0.1))
        state = init(jnp.ones(2), {"inputs": jnp.zeros(1)}, KEY)
        on_host = state._replace(params=np.ones(2, np.float32))
        state, _ = step(on_host, {"inputs": jnp.zeros(1)})
        np.testing.assert_allclose(state.params, 0.9, rtol=1e-6)

    def test_lanes_of_a_vmap_are_runs_of_their_own(self):
        init, step = train.make_step(objectives.chain(keeps_keys()), oracles.plain(), optax.sgd(0.1))
        starts, keys, batch = (
            jnp.arange(1.0, 7.0).reshape(3, 2),
            jax.random.split(KEY, 3),
            {"inputs": jnp.zeros(1)},
        )
        states = jax.vmap(lambda params, key: init(params, batch, key))(starts, keys)
        states, _ = jax.vmap(step, (0, None))(states, batch)
        np.testing.assert_allclose(states.params, 0.8 * starts, rtol=1e-6)
        for lane, key in enumerate(keys):
            expected = jax.random.fold_in(jax.random.fold_in(jax.random.split(key)[1], 0), 0)
            np.testing.assert_array_equal(states.loss_state[0][1][lane], jax.random.key_data(expected))

    def test_gradient_through_a_step_in_a_traced_learning_rate(self):
        """x1 = (1 - r) x0, so the derivative of x1^2 / 2 in r is -(1 - r) x0^2."""

        @jax.grad
        def slope(rate):
            init, step = train.make_step(quadratic(1.0), oracles.plain(), optax.sgd(rate))
            state, _ = step(init(jnp.float32(3.0), {"inputs": jnp.zeros(1)}, KEY), {"inputs": jnp.zeros(1)})
            return 0.5 * state.params**2

        np.testing.assert_allclose(slope(0.25), -0.75 * 9, rtol=1e-6)

    def test_first_state_is_read_from_shapes_alone(self):
        init, _ = train.make_step(classifier(), oracles.plain(), optax.adam(0.1))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH)
        chex.assert_trees_all_equal(init(PARAMS, shapes, KEY).opt_state, init(PARAMS, BATCH, KEY).opt_state)

    def test_metrics_are_terms_metrics_and_the_sum_of_the_losses(self):
        objective = objectives.chain(
            objectives.forward(model),
            objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
            objectives.loss(lambda logits, targets: jnp.sum(logits**2, -1), name="decay", weight=0.1),
            objectives.metric(lambda logits, targets: jnp.max(logits), name="top"),
            objectives.mean(),
        )
        init, step = train.make_step(objective, oracles.plain(), optax.sgd(0.1))
        _, metrics = jax.jit(step)(init(PARAMS, BATCH, KEY), BATCH)
        assert set(metrics) == {"value", "terms", "metrics", "losses"}
        assert set(metrics["terms"]) == {"ce", "decay"}
        np.testing.assert_allclose(metrics["value"], sum(metrics["terms"].values()), rtol=1e-6)
        shares = BATCH["weights"] / BATCH["weights"].sum()
        np.testing.assert_allclose(metrics["value"], jnp.sum(shares * metrics["losses"]), rtol=1e-6)
        chex.assert_shape(metrics["metrics"]["top"], ())


class TestExtraArguments(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "backtracking",
            lambda: optax.chain(
                optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=20)
            ),
            150,
        ),
        ("lbfgs", optax.lbfgs, 15),
    )
    def test_line_searches_reach_the_minimum(self, tx, steps):
        # Gradient descent of rate 1 on a curvature of 30 diverges unless the search shortens it.
        init, step = train.make_step(quadratic(jnp.array([1.0, 30.0])), oracles.plain(), tx())
        state = init(jnp.array([1.0, 1.0]), {"inputs": jnp.zeros(1)}, KEY)

        @jax.jit
        def run(state):
            return jax.lax.scan(lambda s, _: step(s, {"inputs": jnp.zeros(1)}), state, length=steps)

        state, metrics = run(state)
        values = np.asarray(metrics["value"])
        assert np.all(np.diff(values) <= 1e-07)
        assert values[-1] < 1e-06 * values[0]

    def test_value_grad_and_value_fn_are_those_of_the_step(self):
        """value_fn at the parameters is the step's own value: same key, same memory of the objective."""

        def init_fn(params):
            return {"value": jnp.zeros(()), "again": jnp.zeros(()), "same": jnp.array(False)}

        def update_fn(updates, state, params, *, value, grad, value_fn):
            same = jnp.all(jnp.stack([jnp.all(updates[k] == grad[k]) for k in updates]))
            return updates, {"value": value, "again": value_fn(params), "same": same}

        tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
        init, step = train.make_step(classifier(), oracles.plain(), tx)
        state, metrics = jax.jit(step)(init(PARAMS, BATCH, KEY), BATCH)
        assert float(state.opt_state["value"]) == float(metrics["value"])
        np.testing.assert_allclose(state.opt_state["again"], metrics["value"], rtol=1e-6)
        assert bool(state.opt_state["same"])


def test_bfloat16_parameters_stay_bfloat16_and_the_value_is_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    batch = {**BATCH, "inputs": BATCH["inputs"].astype(jnp.bfloat16)}
    init, step = train.make_step(classifier(), oracles.plain(), optax.adam(0.1))
    first = init(params, batch, KEY)
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=30))(first)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert metrics["value"].dtype == jnp.float32
    assert metrics["value"][-1] < 0.7 * metrics["value"][0]


def test_parameters_without_floats_raise():
    init, _ = train.make_step(quadratic(1.0), oracles.plain(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"params must hold at least one floating leaf.*int32"):
        init({"n": jnp.arange(3)}, {"inputs": jnp.zeros(1)}, KEY)
