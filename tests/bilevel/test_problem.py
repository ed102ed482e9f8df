"""Problems of objectives, projections, constraints, runs by `train.fit`, and shards of the data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel, convex, objectives, sampling, train
from jaxdiv.testing import bilevel as contract

KEY = jax.random.key(0)


def running_mean():
    """A link that counts and remembers the mean of the inputs it has seen."""

    def update(params, state, record, key):
        count, mean = state
        mean = mean + (jnp.mean(record.inputs) - mean) / (count + 1)
        extras = record.extras | {"mean": jax.lax.stop_gradient(mean)}
        return record._replace(extras=extras), (count + 1, mean)

    return objectives.Link(lambda params, record, key: (jnp.zeros(()), jnp.zeros(())), update)


def chained(*first):
    """A regression whose ridge is the exponential of the outer variable."""

    def forward(params, state, inputs, key):
        return inputs @ params[1], state

    def ridge(params):
        return jnp.exp(params[0]) * jnp.sum(params[1] ** 2)

    return objectives.chain(
        *first,
        objectives.forward(forward),
        objectives.loss(lambda z, t: (z - t) ** 2, name="fit"),
        objectives.mean(),
        objectives.parameter_regularizer(ridge, name="ridge"),
    )


RNG = np.random.default_rng(2)
INPUTS = np.float32(RNG.normal(size=(12, 3)))
TARGETS = np.float32(INPUTS @ RNG.normal(size=3) + 0.1 * RNG.normal(size=12))
TRAIN = {"inputs": INPUTS[:8], "targets": TARGETS[:8]}
VALIDATION = {"inputs": INPUTS[8:], "targets": TARGETS[8:]}
DATA = bilevel.Data(TRAIN, VALIDATION)


def plain_inner(x, y, batch):
    return jnp.mean((batch["inputs"] @ y - batch["targets"]) ** 2) + jnp.exp(x) * jnp.sum(y**2)


def plain_outer(x, y, batch):
    return jnp.mean((batch["inputs"] @ y - batch["targets"]) ** 2)


def after(problem, steps=5):
    init, step = bilevel.soba(problem, optax.sgd(0.1), optax.sgd(0.1))
    state = init(jnp.float32(-1.0), jnp.zeros(3), DATA, KEY)
    return jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, DATA), s, length=steps))(state)


class TestObjectives:
    def test_an_objective_is_its_function(self):
        outer = objectives.chain(
            objectives.forward(lambda params, state, inputs, key: (inputs @ params[1], state)),
            objectives.loss(lambda z, t: (z - t) ** 2, name="fit"),
            objectives.mean(),
        )
        ours, infos = after(bilevel.problem(chained(), outer))
        plain, expected = after(bilevel.problem(plain_inner, plain_outer))
        chex.assert_trees_all_close((ours.outer, ours.inner), (plain.outer, plain.inner), rtol=1e-5)
        np.testing.assert_allclose(infos.value, expected.value, rtol=1e-5)

    def test_memories_advance_once_a_step(self):
        """Of the inner loss; the outer one is an evaluation."""
        objective = chained(running_mean())
        state, _ = after(bilevel.problem(objective, objective), steps=4)
        (count, mean), (evaluations, _) = (memory[0] for memory in state.memory)
        assert count == 4
        np.testing.assert_allclose(mean, TRAIN["inputs"].mean(), rtol=1e-5)
        assert evaluations == 0

    def test_the_outer_objective_is_an_evaluation(self):
        """Without a key its noise is off."""

        def noise(params, record, key):
            return record if key is None else record._replace(inputs=record.inputs + 1e3)

        noisy, calm = (
            after(bilevel.problem(plain_inner, chained(*links)), steps=1)[1].value
            for links in ((objectives.stateless(noise),), ())
        )
        assert noisy == calm


class TestSets:
    def test_projection_after_each_step(self):
        problem = bilevel.problem(
            plain_inner, plain_outer,
            project=lambda x, y: (convex.project_box(x, -1.5, -0.5), convex.project_l2_ball(y, 0.1)),
        )  # fmt: skip
        state, _ = after(problem, steps=30)
        assert -1.5 <= state.outer <= -0.5
        np.testing.assert_allclose(jnp.linalg.norm(state.inner), 0.1, rtol=1e-5)

    def test_a_constraint_is_not_ignored(self):
        problem = bilevel.problem(plain_inner, plain_outer, constraint=lambda x, y: y - x)
        with pytest.raises(ValueError, match="lv_hba"):
            bilevel.soba(problem, optax.sgd(0.1), optax.sgd(0.1))


class TestFit:
    def test_a_killed_run_goes_on_exactly(self, tmp_path):
        """`train.fit` saves and restores the whole state, keys of minibatches included."""
        sampler = bilevel.minibatches(inner=2, outer=2)
        problem = bilevel.problem(chained(running_mean()), plain_outer)
        init, step = bilevel.soba(problem, optax.adam(0.1), optax.adam(0.1), sampler=sampler)
        first = init(jnp.float32(-1.0), jnp.zeros(3), DATA, KEY)
        options = {"chunk": 2, "progress": False}
        whole = train.fit(step, first, DATA, steps=6, **options)
        train.fit(step, first, DATA, steps=4, out=tmp_path, **options)
        resumed = train.fit(step, first, DATA, steps=6, out=tmp_path, **options)
        chex.assert_trees_all_equal(whole.state, resumed.state)
        assert {"value", "metrics/hypergradient", "metrics/products"} <= set(whole.history[0])

    def test_what_it_cannot_draw_from(self):
        init, step = bilevel.soba(bilevel.problem(plain_inner, plain_outer), optax.sgd(0.1), optax.sgd(0.1))
        state = init(jnp.float32(-1.0), jnp.zeros(3), DATA, KEY)
        with pytest.raises(ValueError, match="sampler"):
            train.fit(step, state, DATA, steps=1, sampler=sampling.shuffle(2))


def test_minibatches():
    """Rows of all arrays together, what is shared whole, the index beside them."""
    data = {"inputs": np.arange(5.0), "twice": 2 * np.arange(5.0), "shared": np.ones(2)}
    batch = bilevel.minibatches(inner=40)(bilevel.Data(data, None), KEY).inner
    np.testing.assert_array_equal(batch["twice"], 2 * batch["inputs"])
    np.testing.assert_array_equal(batch["index"], batch["inputs"])
    assert batch["shared"].shape == (2,)
    assert set(np.asarray(batch["index"])) == set(range(5))


def test_eager_is_compiled():
    """One step, with and without jit."""
    case = contract.quadratic(dtype=np.float32)
    init, step = bilevel.soba(case.problem, optax.sgd(0.1), optax.sgd(0.01))
    state = init(case.outer, case.inner, case.data, KEY)
    eager, compiled = (run(state, case.data)[0]._replace(key=()) for run in (step, jax.jit(step)))
    chex.assert_trees_all_close(eager, compiled, rtol=1e-5)
