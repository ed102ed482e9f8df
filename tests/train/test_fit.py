"""fit: its chunks are the plain loop, what the host sees between two of them, and what stops it."""

import concurrent.futures
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import objectives, oracles, sampling, train
from jaxdiv.train.checkpoint import Checkpoints

RNG = np.random.default_rng(1)
KEY = jax.random.key(5)
N = 10
DATA = {
    "inputs": RNG.normal(size=(N, 3)).astype(np.float32),
    "targets": RNG.integers(0, 2, N).astype(np.int32),
}


def classifier():
    return objectives.chain(
        objectives.forward(lambda params, state, x, key: (x @ params, state)),
        objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
        objectives.loss(lambda logits, targets: jnp.sum(logits**2, -1), name="decay", weight=0.01),
        objectives.mean(),
    )


# Runs of one and the same function share their compilation.
INIT, STEP = train.make_step(classifier(), oracles.plain(), optax.adam(0.1))


def first():
    return INIT(jnp.zeros((3, 2)), {name: value[:4] for name, value in DATA.items()}, KEY)


def in_order(batch_size, record=lambda state, index, losses: state):
    """Deals the examples in their order, so that tests can name them."""

    def draw(state):
        index = (state["at"] + np.arange(batch_size)) % N
        return index.astype(np.int32), {**state, "at": state["at"] + batch_size}

    return sampling.Sampler(lambda n, key: {"at": np.array(0), "seen": np.zeros(n)}, draw, record)


def mean_step(state, batch):
    """Needs nothing but inputs; moves the state to their mean."""
    x = batch["inputs"]
    return state + 0.5 * (jnp.mean(x) - state), {"value": jnp.mean((x - state) ** 2)}


def run(step=mean_step, state=0.0, data=None, **options):
    options = {"steps": 4, "chunk": 2, "sampler": in_order(2), "progress": False, **options}
    data = {"inputs": np.arange(N, dtype=np.float32)} if data is None else data
    return train.fit(step, state, data, **options)


class TestLoop:
    def test_equals_the_plain_loop_bit_for_bit_whatever_the_chunk(self):
        sampler = sampling.shuffle(4)
        sampler_state, state, compiled = sampler.init(N, KEY), first(), jax.jit(STEP)
        values = []
        for _ in range(6):
            index, sampler_state = sampler.draw(sampler_state)
            batch = {name: jnp.asarray(value[index]) for name, value in DATA.items()}
            state, metrics = compiled(state, {**batch, "index": jnp.asarray(index)})
            values.append(float(metrics["value"]))
        for chunk in (4, 100):
            options = {"steps": 6, "chunk": chunk, "sampler": sampler, "key": KEY}
            result = run(STEP, first(), DATA, **options)
            chex.assert_trees_all_equal(result.state, state)
            rows = result.history
            starts = range(0, 6, chunk)
            assert [row["step"] for row in rows] == [min(6, at + chunk) for at in starts]
            means = [np.mean(np.float32(values[at : at + chunk])) for at in starts]
            np.testing.assert_allclose([row["value"] for row in rows], means, rtol=1e-6)

    def test_default_sampler_is_a_reshuffle_of_up_to_128_examples(self):
        seen = []

        def keep(state, batch):
            jax.debug.callback(lambda index: seen.append(index), batch["index"], ordered=True)
            return state, {"value": jnp.zeros(())}

        run(keep, sampler=None, steps=2, chunk=2)
        for index in seen:
            assert sorted(index.tolist()) == list(range(N))
        assert len(seen) == 2
        assert seen[0].tolist() != seen[1].tolist()

    def test_one_compilation_for_all_full_chunks_and_all_runs(self):
        step = chex.assert_max_traces(lambda state, batch: mean_step(state, batch), n=1)
        run(step, steps=6)
        run(step, state=jnp.float32(1.0), steps=6)

    def test_the_given_state_is_not_donated(self):
        state = jnp.float32(3.0)
        run(state=state)
        assert float(state) == 3.0

    def test_runs_in_a_thread_that_may_not_handle_signals(self):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert float(pool.submit(run).result().state) == float(run().state)

    def test_index_is_the_drawn_one_unless_the_data_bring_their_own(self):
        def step(state, batch):
            return state + jnp.sum(batch["index"]), {"value": jnp.zeros(())}

        zero = jnp.zeros((), jnp.int32)
        assert int(run(step, zero).state) == sum(range(8))
        data = {"inputs": np.zeros(N), "index": np.full(N, 100, np.int32)}
        assert int(run(step, zero, data).state) == 800

    def test_shared_is_passed_whole(self):
        def step(state, batch):
            assert batch["inputs"].shape == (2,)
            assert batch["shared"]["table"].shape == (3, 7)
            return state + batch["shared"]["rate"] * jnp.mean(batch["inputs"]), {"value": state}

        data = {"inputs": np.ones(N), "shared": {"table": np.zeros((3, 7)), "rate": np.float32(0.25)}}
        assert float(run(step, 0.0, data).state) == 1.0

    def test_pytrees_of_rows_are_gathered_together(self):
        def step(state, batch):
            same = batch["inputs"]["a"] == batch["inputs"]["b"][:, 0]
            return state + jnp.sum(same), {"value": jnp.zeros(())}

        rows = np.arange(N)
        data = {"inputs": {"a": rows, "b": np.stack([rows, -rows], 1)}}
        assert int(run(step, jnp.zeros((), jnp.int32), data, sampler=sampling.shuffle(5)).state) == 20


class TestBetweenChunks:
    def test_sampler_is_told_the_losses_in_the_order_of_the_draws(self):
        calls = []

        def record(state, index, losses):
            calls.append((index.tolist(), losses))
            return {**state, "seen": state["seen"] + np.bincount(index, minlength=N)}

        result = run(STEP, first(), DATA, sampler=in_order(4, record), steps=4, chunk=4)
        assert [index for index, _ in calls] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
        # At zero weights every example costs log 2, and nothing decays.
        np.testing.assert_allclose(calls[0][1], np.log(2), rtol=1e-6)
        averages = [losses.mean() for _, losses in calls]
        np.testing.assert_allclose(np.mean(averages), result.history[0]["value"], rtol=1e-6)

    def test_a_sampler_acts_on_what_it_was_told(self):
        """Draws the example that cost most; its own loss shows that it was drawn."""

        def step(state, batch):
            return state, {"value": jnp.mean(batch["inputs"]), "losses": batch["inputs"]}

        def draw(state):
            return np.array([int(np.argmax(state))], np.int32), state

        def record(state, index, losses):
            state = state.copy()
            state[index] = losses
            return state

        sampler = sampling.Sampler(lambda n, key: np.full(n, 50.0), draw, record)
        result = run(step, 0.0, sampler=sampler, steps=N + 3, chunk=1)
        assert [row["value"] for row in result.history] == [*range(N), 9, 9, 9]

    def test_appended_rows_are_not_told_to_the_sampler(self):
        told = []

        def step(state, batch):
            doubled = jnp.concatenate([batch["inputs"], batch["inputs"] + 100])
            return state, {"value": jnp.zeros(()), "losses": doubled}

        run(step, sampler=in_order(2, lambda state, index, losses: told.append(losses.tolist()) or state))
        assert told == [[0, 1], [2, 3], [4, 5], [6, 7]]

    def test_history_has_terms_metrics_evaluations_and_seconds(self):
        def step(state, batch):
            metrics = {"terms": {"a": state, "b": 2 * state}, "metrics": {"m": state}}
            return state + 1, {"value": 3 * state, **metrics}

        visits = []
        result = run(
            step,
            evaluate=lambda state: {"square": state**2},
            on_visit=lambda state, row: visits.append((float(state), row)),
        )
        seconds = [row.pop("seconds") for row in result.history]
        assert all(second > 0 for second in seconds)
        expected = [
            {"step": 2, "value": 1.5, "terms/a": 0.5, "terms/b": 1, "metrics/m": 0.5, "evaluation/square": 4},
            {
                "step": 4,
                "value": 7.5,
                "terms/a": 2.5,
                "terms/b": 5,
                "metrics/m": 2.5,
                "evaluation/square": 16,
            },
        ]
        assert result.history == expected
        assert [state for state, _ in visits] == [2, 4]
        assert [row for _, row in visits] == expected

    def test_out_holds_the_history_line_by_line_and_the_last_two_states(self, tmp_path):
        result = run(steps=7, out=tmp_path / "run")
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == result.history
        folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        assert folders == ["6", "7"]

    def test_nothing_is_written_without_out(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run()
        assert not list(tmp_path.iterdir())

    def test_progress_shows_steps_and_value(self, capsys):
        run(progress=True)
        assert "4/4" in capsys.readouterr().out


class TestBadArguments:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "one common, positive number of rows"),
            ({"inputs": np.zeros(0)}, "positive number of rows"),
            ({"inputs": np.float32(1.0)}, "positive number of rows"),
            ({"shared": {"x": np.zeros(3)}}, "positive number of rows"),
            ({"inputs": np.zeros(N), "targets": np.zeros(N - 1)}, r"'inputs': \{10\}, 'targets': \{9\}"),
            ({"inputs": {"a": np.zeros(N), "b": np.zeros(3)}}, "one common, positive"),
            (
                {"inputs": np.zeros(N), "weights": np.full(N, -1.0)},
                r"data\['weights'\] must be finite and non-negative",
            ),
            ({"inputs": np.zeros(N), "weights": np.zeros(N)}, "positive sum"),
            ({"inputs": np.zeros(N), "weights": np.full(N, np.nan)}, "non-negative"),
            ({"inputs": np.zeros(N), "weights": np.full(N, np.inf)}, "a sum of inf"),
        ],
    )
    def test_data(self, data, message):
        with pytest.raises(ValueError, match=message):
            run(data=data)

    @pytest.mark.parametrize("options", [{"steps": 0}, {"chunk": 0}, {"steps": -3}])
    def test_counts_below_one(self, options):
        with pytest.raises(ValueError, match="steps and chunk must be at least 1; got steps="):
            run(**options)

    def test_batch_sizes_that_differ_within_a_chunk(self):
        def draw(state):
            return np.arange(1 + state % 2, dtype=np.int32), state + 1

        sampler = sampling.Sampler(lambda n, key: 0, draw, lambda state, index, losses: state)
        with pytest.raises(ValueError, match="sampler must keep one batch size within a chunk"):
            run(sampler=sampler)
        assert [row["step"] for row in run(sampler=sampler, chunk=1).history] == [1, 2, 3, 4]

    @pytest.mark.parametrize(("index", "drawn"), [([0, N], "0 to 10"), ([-1, 3], "-1 to 3"), ([], "none")])
    def test_indices_beyond_the_data(self, index, drawn):
        draw = np.array(index, np.int32)
        sampler = sampling.Sampler(lambda n, key: (), lambda state: (draw, state), lambda state, *_: state)
        with pytest.raises(ValueError, match=f"sampler must draw .* all from 0 to 9; got {drawn}"):
            run(sampler=sampler)

    def test_a_batch_larger_than_the_data(self):
        with pytest.raises(ValueError, match="at most the number of examples, 10; got 11"):
            run(sampler=sampling.shuffle(N + 1))


class TestNonFinite:
    def test_names_step_term_and_examples_and_keeps_the_last_finite_checkpoint(self, tmp_path):
        inputs = DATA["inputs"].copy()
        inputs[9] = np.nan
        visits = []
        with pytest.raises(train.NonFiniteError) as caught:
            run(
                STEP,
                first(),
                {**DATA, "inputs": inputs},
                sampler=in_order(4),
                on_visit=lambda state, row: visits.append(row["step"]),
                out=tmp_path,
            )
        # Batches are 0-3, 4-7, then 8, 9, 0, 1.
        error = caught.value
        assert (error.step, error.term) == (2, "term 'ce'")
        kept = tmp_path / "checkpoints" / "2"
        assert str(error) == (
            f"step 2: term 'ce' is not finite for the examples [9]; the last finite checkpoint is {kept}"
        )
        assert visits == [2]
        like = (first(), in_order(4).init(N, KEY))
        state, sampler_state = Checkpoints(tmp_path / "checkpoints").restore(2, like)
        chex.assert_tree_all_finite(state.params)
        assert int(state.step) == 2
        assert sampler_state["at"] == 8
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2]
        # With the data mended, the run goes on from there.
        mended = run(STEP, first(), DATA, sampler=in_order(4), out=tmp_path)
        straight = run(STEP, first(), DATA, sampler=in_order(4))
        chex.assert_trees_all_equal(mended.state, straight.state)

    def test_a_nan_target_is_named(self):
        def step(state, batch):
            losses = (batch["inputs"] - batch["targets"]) ** 2
            value = jnp.mean(losses)
            return state, {"value": value, "terms": {"other": state, "mse": value}, "losses": losses}

        targets = np.zeros(N)
        targets[[1, 2, 3, 4, 5, 7]] = np.nan
        with pytest.raises(train.NonFiniteError, match=r"step 0: term 'mse' .* the examples \[1\]$"):
            run(step, 0.0, {"inputs": np.zeros(N), "targets": targets})
        message = r"examples \[1, 2, 3, 4, 5\] and others$"
        with pytest.raises(train.NonFiniteError, match=message):
            run(step, 0.0, {"inputs": np.zeros(N), "targets": targets}, sampler=in_order(8))

    def test_an_infinite_value_without_terms(self):
        def step(state, batch):
            return state + 1, {"value": 1 / (3 - state)}

        with pytest.raises(train.NonFiniteError, match=r"step 3: the value is not finite$") as caught:
            run(step, 0.0)
        assert isinstance(caught.value, FloatingPointError)

    def test_a_nan_in_the_state_while_the_value_is_finite(self):
        def step(state, batch):
            bad = jnp.where(state["count"] == 2, jnp.nan, 0.0)
            return {"count": state["count"] + 1, "memory": state["memory"] + bad}, {"value": jnp.zeros(())}

        # An infinity may stand in a memory, as the best value so far does before the first.
        state = {"count": jnp.zeros((), jnp.int32), "memory": jnp.array([jnp.inf, 0.0], jnp.bfloat16)}
        message = r"step 3: the state \(parameters or memories\) is not finite"
        with pytest.raises(train.NonFiniteError, match=message):
            run(step, state)
        assert int(run(step, state, steps=2).state["count"]) == 2


def test_bfloat16_and_integer_leaves_and_keys_pass_through_chunks():
    state = {"x": jnp.zeros(2, jnp.bfloat16), "n": 0, "key": KEY, "u": jnp.uint8(3)}

    def step(state, batch):
        key = jax.random.fold_in(state["key"], state["n"])
        x = state["x"] + jax.random.normal(key, (2,), jnp.bfloat16)
        return {**state, "x": x, "n": state["n"] + 1}, {"value": jnp.sum(x)}

    end = run(step, state).state
    assert {name: leaf.dtype for name, leaf in end.items()} == {
        "x": jnp.bfloat16,
        "n": jnp.int32,
        "key": KEY.dtype,
        "u": jnp.uint8,
    }
    assert int(end["n"]) == 4
