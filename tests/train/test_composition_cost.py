"""Composing costs nothing: the compiled step against one written by hand, neither of them run."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.bench import composition

CONFIG = composition.Config(batch_size=64, width=256)
# Each layer is applied once forward and twice backward, but for the first, whose inputs want no gradient.
PRODUCTS = {"3-layer MLP": {"dot_general": 8}, "small CNN": {"convolution": 5, "dot_general": 3}}


@pytest.mark.parametrize("name", composition.MODELS)
def test_a_composed_step_costs_what_the_hand_written_one_does(name):
    pair = composition.pair(composition.MODELS[name](CONFIG))
    composed = jax.jit(pair.composed, donate_argnums=0).lower(pair.composed_state, pair.batch)
    by_hand = jax.jit(pair.by_hand, donate_argnums=0).lower(pair.by_hand_state, pair.batch)
    for operation, count in PRODUCTS[name].items():
        for lowered in (composed, by_hand):
            assert lowered.as_text().count(f"stablehlo.{operation}") == count
    composed, by_hand = composed.compile(), by_hand.compile()
    flops = by_hand.cost_analysis()["flops"]
    assert flops > 1e6
    assert composed.cost_analysis()["flops"] <= 1.01 * flops
    memory = by_hand.memory_analysis().temp_size_in_bytes
    assert memory > 1e4
    assert composed.memory_analysis().temp_size_in_bytes <= 1.05 * memory


@pytest.mark.parametrize("name", composition.MODELS)
def test_a_step_gives_a_state_of_the_types_it_takes(name):
    """So that the second call has nothing to trace; a weak type would be enough."""
    pair = composition.pair(composition.MODELS[name](CONFIG))
    after, _ = jax.eval_shape(pair.composed, pair.composed_state, pair.batch)
    before = jax.eval_shape(lambda state: state, pair.composed_state)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, old.weak_type)


def linear(config):
    params = jnp.zeros((3, 10))
    return composition.Model(lambda params, x: x @ params, params, jnp.ones((config.batch_size, 3)))


def test_the_second_call_does_not_trace_again():
    pair = composition.pair(linear(composition.Config(batch_size=4)))
    step = jax.jit(chex.assert_max_traces(pair.composed, n=1), donate_argnums=0)
    state, metrics = step(pair.composed_state, pair.batch)
    state, metrics = step(state, pair.batch)
    assert int(state.step) == 2
    chex.assert_tree_all_finite(metrics)


def test_the_benchmark_runs_and_writes_only_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "MODELS", {"linear": linear})
    config = composition.Config(batch_size=4, repetitions=5, steps=1)
    (row,) = composition.main(config)
    assert row["time_ratio"] > 0
    assert "target: a time ratio of at most 1.05" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(composition, "compare", lambda name, config: row)
    composition.main(dataclasses.replace(config, out=tmp_path / "rows.json"))
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [row]
    with pytest.raises(OSError, match=r"cannot write --out .*name a writable file"):
        composition.main(dataclasses.replace(config, out=tmp_path / "none" / "rows.json"))
    with pytest.raises(ValueError, match="--repetitions must be at least 5; got 4"):
        composition.main(dataclasses.replace(config, repetitions=4))
