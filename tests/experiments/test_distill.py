"""The main job: what it writes, how it goes on, and what it says of bad options."""

import copy
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import distill
from jaxdiv import divergences, losses, nn, objectives, train

SMALL = {"teacher_width": 8, "student_width": 4, "steps": 8, "batch_size": 32, "seeds": 1}


def config(out, **options):
    return distill.Config(**{"divergence": ("kl",), **SMALL, "out": out, **options})


def without_times(results):
    results = copy.deepcopy(results)
    for row in (*results["rows"], *results["table"]):
        del row["seconds"]
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, distill.main(config(out))


def test_writes_table_figure_logs_and_checkpoints(finished):
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [row["model"] for row in results["rows"]] == ["teacher", "none", "kl"]
    for row in results["rows"]:
        assert all(np.isfinite(row[metric]) for metric in distill.METRICS)
        folder = out / "seed-0" / row["model"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]
        assert (folder / "checkpoints" / "8").is_dir()
    assert (out / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "config.json").read_text())
    assert saved["config"]["student_width"] == 4
    assert "jax" in saved["versions"]


def test_sinkhorn_is_a_term_of_the_batch_beside_the_whole_cross_entropy():
    """Its weights are its own: alpha does not matter to it."""
    options = config(None, alpha=0.3)
    student, teacher = (nn.functional(nn.MLP((4, 3), rngs=nnx.Rngs(seed))) for seed in range(2))
    link, labels = distill.distillation("sinkhorn", options)
    guide = objectives.teacher(teacher.apply, teacher.params)
    objective = distill.Trainer((4, 3), options).objective(guide, link, labels)
    batch = {"inputs": jnp.eye(4), "targets": jnp.array([0, 1, 2, 0])}
    key = jax.random.key(0)

    @jax.jit
    def terms(params):
        _, (_, aux) = objective.apply(params, objective.init(params, batch, key), batch, key)
        z, t = (model.apply(model.params, (), batch["inputs"], None)[0] for model in (student, teacher))
        transport = losses.sinkhorn_kd(z, t, temperature=4.0)
        return aux["terms"], {"ce": losses.cross_entropy(z, batch["targets"]).mean(), "kd": 0.8 * transport}

    chex.assert_trees_all_close(*terms(student.params), rtol=1e-6)


def test_an_interrupted_run_ends_with_the_same_file(finished, tmp_path, monkeypatch):
    """The folder as a kill leaves it: the last training's last checkpoint, and what follows, not there."""
    out, _ = finished
    expected = json.loads((out / "results.json").read_text())
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for late in ("results.json", "tradeoff.png"):
        (tmp_path / late).unlink()
    shutil.rmtree(tmp_path / "seed-0" / "kl" / "checkpoints" / "8")
    fit, visits = train.fit, []

    def watched(*args, on_visit, out, **options):
        def visit(state, row):
            on_visit(state, row)
            visits.append((out.name, row["step"]))

        return fit(*args, on_visit=visit, out=out, **options)

    monkeypatch.setattr(train, "fit", watched)
    distill.main(config(tmp_path))
    assert visits == [("kl", 8)]
    found = json.loads((tmp_path / "results.json").read_text())
    assert without_times(found) == without_times(expected)


def test_unknown_divergence_lists_the_known():
    with pytest.raises(ValueError, match="'no_such'") as error:
        distill.main(config(None, divergence=("kl", "no_such")))
    assert all(name in str(error.value) for name in (*divergences.NAMES, "sinkhorn"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1; got 0"),
        ({"alpha": 1.5}, r"--alpha must lie in \[0, 1\]; got 1.5"),
        ({"temperature": 0.0}, "--temperature must be positive; got 0.0"),
        ({"divergence": ()}, "--divergence needs at least one name"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        distill.main(config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_options_is_left_alone(finished):
    out, _ = finished
    before = (out / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"other options \(steps\)"):
        distill.main(config(out, steps=12))
    assert (out / "results.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to --out .*file"):
        distill.main(config(tmp_path / "file"))


def test_mnist_without_a_folder_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXDIV_DATA", raising=False)
    with pytest.raises(ValueError, match="JAXDIV_DATA"):
        distill.main(config(tmp_path, data="mnist"))
