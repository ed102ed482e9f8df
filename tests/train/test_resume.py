"""A run that is killed and started again ends as if it had never been: run as a script, this file is one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import objectives, oracles, sampling, train

N, STEPS, CHUNK = 12, 120, 4
RNG = np.random.default_rng(3)
DATA = {
    "inputs": RNG.normal(size=(N, 3)).astype(np.float32),
    "targets": RNG.integers(0, 2, N).astype(np.int32),
}


def remembering():
    """Adds noise to the inputs, and to each loss what the example cost when it was last seen."""

    def init(params, record, key):
        return jnp.zeros(N), jax.random.normal(key, (3,))

    def update(params, state, record, key):
        table, offset = state
        losses, old = record.losses["ce"], table[record.index]
        noisy = losses * (1 + 0.1 * jax.random.normal(key, losses.shape)) + 0.1 * old * losses
        record = record._replace(losses={"ce": noisy})
        return record, (table.at[record.index].set(jax.lax.stop_gradient(losses)), offset * 0.9)

    return objectives.Link(init, update)


OBJECTIVE = objectives.chain(
    objectives.forward(lambda params, state, x, key: (x @ params, state)),
    objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
    remembering(),
    objectives.mean(),
)
INIT, STEP = train.make_step(OBJECTIVE, oracles.plain(), optax.adam(0.01))


def learning_sampler():
    """Shuffles, and swaps the first example drawn for the one that cost most: a memory on the host."""
    shuffle = sampling.shuffle(4)

    def draw(state):
        dealt, costs = state
        index, dealt = shuffle.draw(dealt)
        return np.array([np.argmax(costs), *index[1:]], np.int32), (dealt, costs)

    def record(state, index, losses):
        costs = state[1].copy()
        costs[index] = losses
        return state[0], costs

    return sampling.Sampler(lambda n, key: (shuffle.init(n, key), np.zeros(n, np.float32)), draw, record)


def run(out=None, on_visit=None):
    state = INIT(jnp.zeros((3, 2)), {**DATA, "index": np.arange(N)}, jax.random.key(1))
    options = {"sampler": learning_sampler(), "on_visit": on_visit, "out": out}
    return train.fit(
        STEP,
        state,
        DATA,
        steps=STEPS,
        chunk=CHUNK,
        evaluate=lambda state: {"norm": jnp.sum(state.params**2)},
        progress=False,
        key=jax.random.key(2),
        **options,
    )


def start(out):
    return subprocess.Popen([sys.executable, __file__, str(out)], env={**os.environ, "JAX_PLATFORMS": "cpu"})


def saved_steps(out):
    folder = out / "checkpoints"
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def is_saving(out):
    """Whether a checkpoint is half written just now, under the name it has before it is renamed."""
    folder = out / "checkpoints"
    return folder.exists() and any(not path.name.isdigit() for path in folder.iterdir())


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """One run killed with SIGKILL while it saves, one told to end by SIGTERM; both at once, for time."""
    killed, ended = (tmp_path_factory.mktemp(name) for name in ("killed", "ended"))
    processes = {out: start(out) for out in (killed, ended)}
    until = time.monotonic() + 90
    try:
        waiting = {killed: signal.SIGKILL, ended: signal.SIGTERM}
        while waiting:
            for out, number in list(waiting.items()):
                assert processes[out].poll() is None, f"the run ended with {processes[out].returncode}"
                if len(saved_steps(out)) >= 2 and (number == signal.SIGTERM or is_saving(out)):
                    processes[out].send_signal(number)
                    del waiting[out]
            assert time.monotonic() < until, "the runs did not come so far"
            time.sleep(0.0005)
        status = {out: process.wait(timeout=30) for out, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {"killed": (killed, status[killed]), "ended": (ended, status[ended])}


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


def test_killed_while_saving_it_resumes_bit_for_bit(interrupted, uninterrupted):
    out, status = interrupted["killed"]
    assert status == -signal.SIGKILL
    steps = saved_steps(out)
    assert max(steps) < STEPS
    # The kill may as well have left half a line.
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    taken = []
    result = run(out, on_visit=lambda state, row: taken.append(row["step"]))
    assert taken == list(range(max(steps) + CHUNK, STEPS + 1, CHUNK))
    chex.assert_trees_all_equal(result.state, uninterrupted.state)
    assert without_seconds(result.history) == without_seconds(uninterrupted.history)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert saved_steps(out) != steps
    assert not is_saving(out)


def test_sigterm_saves_and_exits_with_143(interrupted, uninterrupted):
    out, status = interrupted["ended"]
    assert status == 143
    last = max(saved_steps(out))
    assert last < STEPS
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(CHUNK, last + 1, CHUNK))
    assert not is_saving(out)
    result = run(out)
    chex.assert_trees_all_equal(result.state, uninterrupted.state)
    assert without_seconds(result.history) == without_seconds(uninterrupted.history)


def test_a_finished_run_returns_at_once_what_it_gave(interrupted, uninterrupted):
    out, _ = interrupted["ended"]
    if max(saved_steps(out)) < STEPS:
        run(out)
    visits = []
    result = run(out, on_visit=lambda state, row: visits.append(row))
    assert not visits
    chex.assert_trees_all_equal(result.state, uninterrupted.state)
    assert without_seconds(result.history) == without_seconds(uninterrupted.history)


def test_sigterm_is_handled_as_before_once_fit_is_done():
    before = signal.getsignal(signal.SIGTERM)

    def step(state, batch):
        return state, {"value": state}

    train.fit(step, 0.0, {"inputs": np.zeros(2)}, steps=1, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before


if __name__ == "__main__":
    # Time for the test to see where the run is, however busy the machine.
    run(Path(sys.argv[1]), on_visit=lambda state, row: time.sleep(0.05 if row["step"] < STEPS // 2 else 1))
