"""The comparison of transforms and oracles and the benchmark of their costs, at a small size."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import transforms as bench
from experiments.optimizers import __main__ as optimizers

TINY = optimizers.Config(
    transforms=("sgd",), oracles=("sam", "saf"), rates=2, factor=100.0, seeds=2, steps=40,
    evaluations=4, batch_size=16, width=8, train_examples=64, validation_examples=64, target=1.5, products=5,
)  # fmt: skip


def test_comparison(tmp_path):
    """One row for each pair, and each is trained: the loss falls, and the rate is the one that validates best."""
    config = dataclasses.replace(TINY, out=tmp_path)
    rows = optimizers.main(config)
    assert [(row["transform"], row["oracle"]) for row in rows] == [
        (transform, oracle) for transform in config.transforms for oracle in config.oracles
    ]
    for row in rows:
        accuracy = row["validation accuracy"]
        assert row["rates"].index(row["rate"]) == int(np.argmax(accuracy))
        assert len(row["accuracy"]) == len(row["sharpness"]) == config.seeds
        assert row["curve"]["steps"] == [0, 10, 20, 30, 40]
        assert np.all(np.array(row["curve"]["loss"][-1]) < np.array(row["curve"]["loss"][0]))
        assert all(sharpness > 0 for sharpness in row["sharpness"])
    for row, count in zip(rows, (2, 1), strict=True):
        assert row["gradients"] == [None if n is None else count * n for n in row["steps"]]
    assert (tmp_path / "curves.png").is_file()
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows


def test_comparison_chooses_a_rate_that_did_not_diverge():
    best = optimizers.choose(np.array([0.9, 0.95, 0.95, 1.0]), np.array([0.1, 0.3, 0.2, math.nan]))
    assert best == 2
    assert optimizers.first_below(np.array([0, 5, 10]), np.array([2.0, 1.0, 1.5]), 1.0) == 5
    assert optimizers.first_below(np.array([0, 5]), np.array([2.0, math.nan]), 1.0) is None


@pytest.mark.parametrize("name", optimizers.TRANSFORMS)
def test_transforms_take_any_rate_of_their_sweep(name):
    """The rates are traced numbers, around the transform's own."""
    transform = optimizers.TRANSFORMS[name]
    rates = optimizers.sweep(transform, optimizers.Config(rates=5, factor=3.0))
    assert rates[2] == pytest.approx(transform.rate)
    assert rates[4] / rates[3] == pytest.approx(3.0)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}

    def update(rate):
        tx = transform.make(rate)
        return tx.update(params, tx.init(params), params)[0]

    shapes = jax.eval_shape(jax.vmap(update), rates)
    assert {key: leaf.shape for key, leaf in shapes.items()} == {"kernel": (5, 2, 3), "bias": (5, 3)}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"transforms": ("sgd", "adamw")}, "--transforms"),
        ({"oracles": ()}, "--oracles"),
        ({"oracles": ("sam", "sam")}, "--oracles"),
        ({"seeds": 0}, "--seeds"),
        ({"steps": 41}, "--steps"),
        ({"batch_size": 65}, "--train-examples"),
        ({"factor": 1.0}, "--factor"),
    ],
)
def test_comparison_says_what_is_wrong(options, named):
    with pytest.raises(ValueError, match=named):
        optimizers.main(dataclasses.replace(TINY, **options))


def test_benchmark(tmp_path):
    """States have the size that the methods need; what is compared is there without being named."""
    config = bench.Config(
        parameters=1600, window=2, batch_size=4, width=4, repetitions=2, steps=1, out=tmp_path / "out.json",
        only=("lion_k", "adan", "mfac", "sam"),
    )  # fmt: skip
    results = bench.main(config)
    rows = {row["transform"]: row for row in results["transforms"]}
    copies = {"optax lion": 1, "optax adan": 4, "optax adam": 2, "lion_k": 1, "adan": 4, "mfac": 2}
    assert set(rows) == set(copies)
    for name, count in copies.items():
        assert rows[name]["state_bytes"] == pytest.approx(4 * count, abs=0.1)
    assert [name for name, row in rows.items() if row["target"] is not None] == ["lion_k", "adan"]
    assert rows["optax adam"]["to_adam"] == 1
    assert results["mfac"]["bound_bytes"] == 4 * 1680 * (2 * 2 + 3)
    assert [row["oracle"] for row in results["oracles"]] == ["plain", "sam"]
    assert json.loads((tmp_path / "out.json").read_text())["mfac"] == results["mfac"]
    for options, named in (({"parameters": 1}, "--parameters"), ({"only": ("adamw",)}, "--only")):
        with pytest.raises(ValueError, match=named):
            bench.main(bench.Config(**options))


def test_benchmark_compares_what_exists():
    """Every transform makes an update of the tree, every oracle an oracle, and every counterpart is a case."""
    config = bench.Config(parameters=16, window=2)
    cases, params = bench.cases(config), bench.tree(config, 0)
    for case in cases.values():
        assert case.counterpart in (None, *cases)
        direction = jax.eval_shape(lambda case=case: case.tx.update(params, case.tx.init(params), params)[0])
        assert jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, params)
    for way in bench.ways(config).values():
        assert callable(way.make(lambda params, state, x, key: (x, state)).value_and_grad)
