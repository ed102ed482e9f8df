"""Checkpoints: bit-for-bit round trips, and one clear sentence whenever a folder is not what it should be."""

import contextlib
import json
import os
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxdiv import train
from jaxdiv.train.checkpoint import Checkpoints
from jaxdiv.train.folder import RunFolder

RNG = np.random.default_rng(2)
BIG = RNG.normal(size=20_000).astype(np.float32)


def tree_of(scale=1.0):
    return {
        "params": [jnp.asarray(scale * RNG.normal(size=(3, 2)), jnp.float32), jnp.float32(scale)],
        "x": scale * np.arange(3.0),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of which tests copy what they spoil."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("saved"))
    trees = {step: tree_of(step) for step in (1, 2)}
    for step, tree in trees.items():
        checkpoints.save(step, tree)
    return checkpoints.folder, trees


@pytest.fixture
def copy(saved, tmp_path):
    folder, trees = saved
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy", trees


def blank(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = jnp.zeros_like(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return jnp.zeros_like(leaf) if isinstance(leaf, jax.Array) else np.zeros_like(leaf)


def assert_identical(found, expected):
    """Same structure, kinds of leaves, dtypes and bits."""
    chex.assert_trees_all_equal_structs(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class TestRoundTrip:
    def test_any_pytree_bit_for_bit(self, tmp_path):
        odd = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45], np.float32)
        state = train.TrainState(
            params={"w": jnp.asarray(odd), "half": jnp.asarray(odd, jnp.bfloat16), "none": None},
            loss_state=((), [jnp.zeros((0, 3)), jnp.array([1, -2], jnp.int8)], jnp.array([True, False])),
            oracle_state={"16": jnp.asarray(odd, jnp.float16), "c": jnp.array([1 + 2j], jnp.complex64)},
            opt_state={"numpy": np.arange(3), "empty": np.zeros((2, 0)), "0d": np.array(2.5)},
            key=jax.random.key(1, impl="rbg"),
            step=jnp.uint32(2**32 - 1),
        )
        tree = (state, jax.random.split(jax.random.key(2), 3), np.array([1.5, 2.5], ml_dtypes.bfloat16))
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(0, tree)
        like = jax.tree.map(blank, tree)
        assert_identical(checkpoints.restore(0, like), tree)
        # A new process sees what this one saved.
        assert_identical(Checkpoints(tmp_path).restore(0, like), tree)

    def test_a_lone_array_and_python_numbers(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, jnp.arange(3))
        assert_identical(checkpoints.restore(1, jnp.zeros(3, jnp.int32)), jnp.arange(3))
        checkpoints.save(2, {"count": 7, "rate": 0.1})
        assert {k: v.item() for k, v in checkpoints.restore(2, {"count": 0, "rate": 0.0}).items()} == {
            "count": 7,
            "rate": 0.1,
        }

    def test_keeps_the_last_two(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "made" / "on the way")
        assert checkpoints.latest() is None
        for step in (1, 5, 7):
            checkpoints.save(step, jnp.float32(step))
        assert checkpoints.latest() == 7
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["5", "7"]
        assert float(checkpoints.restore(5, jnp.zeros(()))) == 5

    def test_steps_must_rise(self, saved):
        with pytest.raises(ValueError, match="step must be above the latest saved one, 2; got 2"):
            Checkpoints(saved[0]).save(2, saved[1][2])


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file() and path.name != "checksums.json"),
        key=lambda path: path.stat().st_size,
    )


class TestDamage:
    def test_every_file_of_a_checkpoint_is_guarded(self, saved):
        folder, trees = saved
        files = [p for p in (folder / "2" / "default").rglob("*") if p.is_file() and p.stat().st_size]
        assert len(files) > 2
        for path in files:
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 1
            path.write_bytes(flipped)
            try:
                with pytest.raises(ValueError, match=r"checkpoint .*/2 is damaged: .*has changed") as caught:
                    Checkpoints(folder).restore(2, trees[2])
            finally:
                path.write_bytes(whole)
            assert str(path.relative_to(folder / "2")) in str(caught.value)
            assert "name another folder, or delete it to go on from step 1." in str(caught.value)
        assert_identical(Checkpoints(folder).restore(2, trees[2]), trees[2])

    def test_a_missing_file(self, copy):
        folder, trees = copy
        path = largest_file(folder / "2")
        path.unlink()
        with pytest.raises(ValueError, match=f"damaged: its file .*{path.name} is missing"):
            Checkpoints(folder).restore(2, trees[2])
        assert_identical(Checkpoints(folder).restore(1, trees[1]), trees[1])

    def test_a_truncated_file_without_checksums(self, copy):
        """As a run leaves it that was killed before it wrote them, on a file system that lost the tail."""
        folder, trees = copy
        (folder / "2" / "checksums.json").unlink()
        assert_identical(Checkpoints(folder).restore(2, trees[2]), trees[2])
        for path in (folder / "2" / "default").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"checkpoint .*/2 is damaged: .*delete it to go on from step 1"):
            Checkpoints(folder).restore(2, trees[2])

    def test_unreadable_checksums(self, copy):
        folder, trees = copy
        (folder / "2" / "checksums.json").write_text("{")
        with pytest.raises(ValueError, match=r"checkpoint .*/2 is damaged"):
            Checkpoints(folder).restore(2, trees[2])

    def test_a_step_that_was_never_saved(self, saved):
        with pytest.raises(ValueError, match=r"/9 is damaged: it is not there"):
            Checkpoints(saved[0]).restore(9, saved[1][2])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: {**t, "x": np.arange(4.0)}, r"\['x'\] is float64\(3,\) there and float64\(4,\) here"),
            (lambda t: {**t, "x": np.arange(3)}, r"\['x'\] is float64\(3,\) there and int64\(3,\) here"),
            (lambda t: {**t, "params": t["params"][:1]}, r"float32\(\) there and float64\(3,\) here"),
            (lambda t: {**t, "y": np.zeros(1)}, r"\['y'\] is nothing there and float64\(1,\) here"),
            (lambda t: {"params": t["params"]}, "it holds 3 arrays, and this run 2"),
        ],
    )
    def test_another_configuration(self, saved, change, message):
        folder, trees = saved
        with pytest.raises(ValueError, match=r"/2 belongs to another configuration: .*" + message):
            Checkpoints(folder).restore(2, change(trees[2]))


@contextlib.contextmanager
def files_of_at_most(size):
    """No file may grow beyond this: writes fail for real, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def one_sentence(error):
    text = str(error)
    return "\n" not in text and "free space or name a writable folder" in text and "untouched" in text


class TestUnwritable:
    def test_a_full_disk_leaves_the_earlier_checkpoints(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        trees = {step: {"big": jnp.asarray(BIG + step)} for step in (1, 2, 3)}
        checkpoints.save(1, trees[1])
        checkpoints.save(2, trees[2])
        with (
            files_of_at_most(16_000),
            pytest.raises(OSError, match=f"cannot write checkpoints in {tmp_path}") as caught,
        ):
            checkpoints.save(3, trees[3])
        assert one_sentence(caught.value)
        for again in (checkpoints, Checkpoints(tmp_path)):
            assert again.latest() == 2
            for step in (1, 2):
                assert_identical(again.restore(step, trees[3]), trees[step])
        # With room again, the same run saves the same step.
        checkpoints.save(3, trees[3])
        assert_identical(Checkpoints(tmp_path).restore(3, trees[1]), trees[3])

    def test_a_full_disk_when_the_checksums_are_written(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, jnp.zeros(2))

        def no_space(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            with pytest.raises(OSError, match="No space left on device") as caught:
                checkpoints.save(2, jnp.ones(2))
        assert one_sentence(caught.value)
        assert_identical(Checkpoints(tmp_path).restore(1, jnp.zeros(2)), jnp.zeros(2))

    def test_a_file_in_the_folders_place(self, tmp_path):
        (tmp_path / "file").write_text("")
        for make in (Checkpoints, lambda folder: RunFolder(folder, resume=True)):
            for folder in (tmp_path / "file", tmp_path / "file" / "below"):
                with pytest.raises(OSError, match=f"cannot write .*{tmp_path / 'file'}") as caught:
                    make(folder)
                assert one_sentence(caught.value)

    def test_a_full_disk_under_the_log(self, tmp_path):
        folder = RunFolder(tmp_path, resume=True)
        folder.save(1, jnp.zeros(2), {"step": 1})
        folder.path.rename(tmp_path / "old")
        folder.path.symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: .*No space left") as caught:
            folder.save(2, jnp.ones(2), {"step": 2})
        assert one_sentence(caught.value)
        assert folder.checkpoints.latest() == 1


class TestRunFolder:
    def test_half_a_line_and_lines_beyond_the_checkpoint_are_dropped(self, tmp_path):
        """What a kill leaves: the row is written before its checkpoint, and perhaps not to its end."""
        folder = RunFolder(tmp_path, resume=True)
        for step in (1, 2):
            folder.save(step, jnp.float32(step), {"step": step, "value": np.nan})
        with folder.path.open("a") as file:
            file.write('{"step": 3, "value": 0.5}\n{"step": 4, "val')
        done, tree, rows = RunFolder(tmp_path, resume=True).restore(jnp.zeros(()), steps=9)
        assert (done, float(tree), [row["step"] for row in rows]) == (2, 2.0, [1, 2])
        assert [json.loads(line)["step"] for line in folder.path.read_text().splitlines()] == [1, 2]
        folder.save(3, jnp.float32(3), {"step": 3})
        assert [json.loads(line)["step"] for line in folder.path.read_text().splitlines()] == [1, 2, 3]

    def test_without_a_checkpoint_the_log_starts_afresh(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
        assert RunFolder(tmp_path, resume=True).restore(jnp.zeros(()), steps=9)[0] == 0
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_a_lost_log_is_no_loss_of_the_run(self, tmp_path):
        folder = RunFolder(tmp_path, resume=True)
        folder.save(1, jnp.float32(1), {"step": 1})
        folder.path.unlink()
        assert RunFolder(tmp_path, resume=True).restore(jnp.zeros(()), steps=9)[::2] == (1, [])

    def test_a_folder_with_a_run_is_not_overwritten(self, tmp_path):
        RunFolder(tmp_path, resume=False).save(4, jnp.zeros(2), {"step": 4})
        with pytest.raises(ValueError, match=r"holds a run at step 4; pass resume=True or name another"):
            RunFolder(tmp_path, resume=False)
        with pytest.raises(ValueError, match=r"steps must be at least those taken already, 4 .*; got 3"):
            RunFolder(tmp_path, resume=True).restore(jnp.zeros(2), steps=3)
