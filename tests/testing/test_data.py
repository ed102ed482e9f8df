"""The data harnesses: what they promise of their splits, and which file they blame."""

import gzip
import os
import struct

import numpy as np
import pytest

from jaxdiv.testing import data


def write_idx(file, values, *, compress):
    content = (
        bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )
    file.write_bytes(gzip.compress(content) if compress else content)


def pair(folder, n, prefix="", *, compress=False, seed=0):
    """Writes n images whose first pixel is their label."""
    folder.mkdir(exist_ok=True)
    labels = np.random.default_rng(seed).integers(0, 10, n).astype(np.uint8)
    images = np.zeros((n, 2, 3), np.uint8)
    images[:, 0, 0] = labels
    suffix = ".gz" if compress else ""
    write_idx(folder / f"{prefix}images-idx3-ubyte{suffix}", images, compress=compress)
    write_idx(folder / f"{prefix}labels-idx1-ubyte{suffix}", labels, compress=compress)


def agree(batch):
    np.testing.assert_allclose(batch["inputs"][:, 0] * 255, batch["targets"], rtol=1e-6)
    return len(batch["targets"])


class TestDigits:
    def test_splits_without_overlap_by_seed(self):
        first, again, other = data.digits(0, train=500), data.digits(0, train=500), data.digits(1, train=500)
        np.testing.assert_array_equal(first["train"]["inputs"], again["train"]["inputs"])
        assert not np.array_equal(first["train"]["targets"], other["train"]["targets"])
        assert len(first["train"]["inputs"]) + len(first["test"]["inputs"]) == 1797
        rows = {row.tobytes() for row in first["train"]["inputs"]}
        assert not rows & {row.tobytes() for row in first["test"]["inputs"]}
        assert first["train"]["inputs"].dtype == np.float32
        assert 0 <= first["train"]["inputs"].min() < first["train"]["inputs"].max() == 1

    def test_label_noise_replaces_its_share_in_training_alone(self):
        clean, noisy = data.digits(3, train=500), data.digits(3, train=500, label_noise=0.3)
        assert np.sum(clean["train"]["targets"] != noisy["train"]["targets"]) == 150
        np.testing.assert_array_equal(clean["test"]["targets"], noisy["test"]["targets"])

    @pytest.mark.parametrize("train", [0, 1797])
    def test_both_sides_need_examples(self, train):
        with pytest.raises(
            ValueError, match=f"train must leave examples on both sides, 1 to 1796; got {train}"
        ):
            data.digits(train=train)


def test_diabetes_is_standardized_and_shifts_training_targets_alone():
    clean, dirty = data.diabetes(2), data.diabetes(2, outliers=0.15, shift=8.0)
    np.testing.assert_allclose(clean["train"]["inputs"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(clean["train"]["targets"].std(), 1, rtol=1e-5)
    moved = dirty["train"]["targets"] - clean["train"]["targets"]
    np.testing.assert_allclose(np.unique(moved.round(3)), [0, 8])
    assert np.sum(moved > 1) == round(0.15 * len(moved))
    np.testing.assert_array_equal(clean["test"]["targets"], dirty["test"]["targets"])


def test_the_disparity_of_intersectional_is_one_of_intersections():
    batch = data.intersectional(0, train=4, test=20_000)["test"]
    s1, s2 = batch["protected"].T
    y = batch["targets"]
    for s in (s1, s2):
        assert abs(y[s == 1].mean() - y[s == 0].mean()) < 0.03
    assert y[s1 != s2].mean() - y[s1 == s2].mean() > 0.2


class TestMNIST:
    @pytest.mark.parametrize("compress", [False, True])
    def test_a_single_pair_is_split_by_seed(self, tmp_path, compress):
        pair(tmp_path / "mnist", 20, compress=compress)
        split = data.mnist(tmp_path, seed=1)
        assert (agree(split["train"]), agree(split["test"])) == (16, 4)
        assert split["train"]["inputs"].shape == (16, 6)
        other = data.mnist(tmp_path, seed=2)
        assert not np.array_equal(split["train"]["targets"], other["train"]["targets"])

    def test_given_parts_are_kept(self, tmp_path):
        pair(tmp_path / "mnist", 7, "train-")
        pair(tmp_path / "mnist", 3, "t10k-", compress=True)
        split = data.mnist(tmp_path)
        assert (agree(split["train"]), agree(split["test"])) == (7, 3)

    def test_a_missing_folder_or_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"no folder .*mnist"):
            data.mnist(tmp_path)
        pair(tmp_path / "mnist", 7, "train-")
        with pytest.raises(ValueError, match=r"no file .*t10k-images"):
            data.mnist(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-1], "promises 20 values and holds 19"),
            (lambda content: b"\x00\x00\x0d" + content[3:], "not an IDX file"),
            (lambda content: gzip.compress(content)[:-9], "cannot read"),
            (lambda content: content[:8] + b"\xff" + content[9:], "labels from 0 to 9; got up to 255"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path, damage, message):
        pair(tmp_path / "mnist", 20)
        file = tmp_path / "mnist" / "labels-idx1-ubyte"
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ValueError, match=message) as error:
            data.mnist(tmp_path)
        assert str(file) in str(error.value)


class TestCOMPAS:
    def test_a_missing_or_foreign_table_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"cannot read .*compas-two-years.csv"):
            data.compas(tmp_path)
        (tmp_path / "compas-two-years.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"compas-two-years.csv is not the COMPAS"):
            data.compas(tmp_path)

    @pytest.mark.skipif("JAXDIV_DATA" not in os.environ, reason="JAXDIV_DATA names no folder")
    def test_the_filter_leaves_the_known_number_of_rows(self):
        """ProPublica's notebook keeps 6,172 defendants, of whom 3,175 and 2,103 are of the two races."""
        split = data.compas(os.environ["JAXDIV_DATA"])
        protected = np.concatenate([part["protected"] for part in split.values()])
        assert (np.sum(protected[:, 0] == 1), np.sum(protected[:, 0] == 0)) == (3175, 2103)
