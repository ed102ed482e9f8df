"""The tuning experiment and the bilevel benchmark at a small size."""

import dataclasses
import json

import pytest

from experiments import tune
from experiments.bench import bilevel as bench

TINY = tune.Config(
    seeds=2, trainings=2, steps=30, batch_size=8, train_examples=20, validation_examples=10, teacher_width=4,
    student_width=3, inner_steps=2,
)  # fmt: skip


def test_tuning(tmp_path):
    """Every method ends with values in their ranges, and bilevel optimization has moved."""
    results = tune.main(dataclasses.replace(TINY, out=tmp_path))
    assert len(results) == 2
    for result in results:
        assert set(result["rows"]) == set(tune.METHODS)
        for row in result["rows"].values():
            assert 0 < row["values"]["mixture"] < 1
            assert 0 <= row["accuracy"] <= 1
        assert result["rows"]["bilevel"]["values"] != result["rows"]["middle"]["values"]
        # One training of 30 gradients, at 2 + 1 + 2 * 2 of them a step.
        assert len(result["path"]["mixture"]) == 30 // 7
    assert (tmp_path / "tuning.png").is_file()
    assert json.loads((tmp_path / "results.json").read_text())["config"]["seeds"] == 2


def test_tuning_says_what_is_wrong():
    with pytest.raises(ValueError, match="--trainings"):
        tune.main(tune.Config(trainings=1))
    with pytest.raises(ValueError, match="--seeds"):
        tune.main(tune.Config(seeds=0))


def test_benchmark(tmp_path):
    config = bench.Config(
        problems=("logistic",), algorithms=("SOBA", "SABA", "first order"), passes=4.0, seeds=1, points=2,
        inner_rates=(0.5,), outer_rates=(1.0,), out=tmp_path / "out.json", figure=tmp_path / "out.png",
    )  # fmt: skip
    table = bench.main(config)["tables"]["logistic"]
    assert [row["value"] for row in table] == sorted(row["value"] for row in table)
    assert {row["algorithm"] for row in table} == {"SOBA", "SABA", "first order"}
    for row in table:
        assert row["passes"] >= 4.0
        assert row["diverged"] == 0
    assert (tmp_path / "out.png").is_file()
    with pytest.raises(SystemExit, match="--algorithms"):
        bench.main(bench.Config(algorithms=("ADAM",)))
