"""Small data sets, split and scaled, as dictionaries of numpy arrays.

Each function gives ``{"train": batch, "test": batch}`` with the keys that objectives expect (``"inputs"``,
``"targets"``, and what the data set has besides), and is a function of its arguments alone. `digits` and
`diabetes` come with scikit-learn and `intersectional` is synthetic; `mnist` and `compas` read files from a
folder that the caller names.
"""

import csv
import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np

from jaxdiv.core import checks

Split: TypeAlias = dict[str, dict[str, np.ndarray]]


def digits(seed: int = 0, *, train: int | None = None, label_noise: float = 0.0) -> Split:
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels in ten classes.

    Args:
        seed: Draws the split and the wrong labels.
        train: Number of training examples; 80 % by default. The rest is the test.
        label_noise: Share of the training labels replaced by another label.

    Returns:
        Inputs float32 [n, 64] in [0, 1] and targets int32 [n].

    Raises:
        ValueError: If `train` leaves no example on one side, or `label_noise` leaves [0, 1].

    Example:
        >>> {part: batch["inputs"].shape for part, batch in digits(train=500).items()}
        {'train': (500, 64), 'test': (1297, 64)}
    """
    from sklearn.datasets import load_digits

    checks.in_range("label_noise", label_noise, 0.0, 1.0)
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    split = _split((images / 16).astype(np.float32), labels.astype(np.int32), train, rng)
    noisy = split["train"]["targets"]
    wrong = rng.permutation(len(noisy))[: round(label_noise * len(noisy))]
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return split


def diabetes(seed: int = 0, *, train: int | None = None, outliers: float = 0.0, shift: float = 8.0) -> Split:
    """Scikit-learn's diabetes regression: 442 patients, ten features, one score.

    Args:
        seed: Draws the split and the outliers.
        train: Number of training examples; 80 % by default.
        outliers: Share of the training targets that are shifted; the test stays clean.
        shift: By how many standard deviations.

    Returns:
        Inputs float32 [n, 10] and targets float32 [n], standardized by the clean training part.

    Raises:
        ValueError: If `train` leaves no example on one side, or `outliers` leaves [0, 1].

    Example:
        >>> diabetes()["train"]["inputs"].shape
        (353, 10)
    """
    from sklearn.datasets import load_diabetes

    checks.in_range("outliers", outliers, 0.0, 1.0)
    features, scores = load_diabetes(return_X_y=True)
    rng = np.random.default_rng(seed)
    split = _standardize(_split(features, scores, train, rng), "inputs", "targets")
    targets = split["train"]["targets"]
    targets[rng.permutation(len(targets))[: round(outliers * len(targets))]] += np.float32(shift)
    return split


def intersectional(seed: int = 0, *, train: int = 600, test: int = 2000) -> Split:
    """A disparity between intersections of two attributes that neither attribute shows alone.

    ``logit P(y = 1) = x·(1.5, -1, 0.5) + 2 (XOR(s1, s2) - 1/2)`` with ``x ~ N(0, I)`` and fair coins s1, s2.

    Args:
        seed: Draws everything.
        train: Number of training examples.
        test: Number of test examples.

    Returns:
        Inputs float32 [n, 6], which are x, the two attributes and the XOR with noise of deviation 0.3;
        targets float32 [n] in {0, 1}; ``"protected"`` float32 [n, 2].

    Example:
        >>> sorted(intersectional(train=8, test=4)["train"])
        ['inputs', 'protected', 'targets']
    """
    rng = np.random.default_rng(seed)

    def draw(n: int) -> dict[str, np.ndarray]:
        x = rng.normal(size=(n, 3))
        protected = rng.integers(0, 2, (n, 2))
        xor = protected[:, 0] ^ protected[:, 1]
        logit = x @ np.array([1.5, -1.0, 0.5]) + 2 * (xor - 0.5)
        targets = rng.random(n) < 1 / (1 + np.exp(-logit))
        inputs = np.column_stack([x, protected, xor + 0.3 * rng.normal(size=n)])
        batch = {"inputs": inputs, "targets": targets, "protected": protected}
        return {name: value.astype(np.float32) for name, value in batch.items()}

    return {"train": draw(train), "test": draw(test)}


def compas(folder: str | Path, seed: int = 0, *, train: int | None = None) -> Split:
    """ProPublica's COMPAS table with its usual filter, African-American and Caucasian defendants.

    Args:
        folder: Holds ``compas-two-years.csv``.
        seed: Draws the split.
        train: Number of training examples; 80 % by default.

    Returns:
        Inputs float32 [n, 8], standardized by the training part: age, priors, three juvenile counts, charge
        degree, race and sex; targets float32 [n], 1 for recidivism within two years; ``"protected"``
        float32 [n, 2], race (1 is African-American) and sex (1 is male).

    Raises:
        ValueError: If the file is missing, or is not this table; the message names it.
    """
    file = Path(folder) / "compas-two-years.csv"
    counts = ("age", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count")
    races = ("Caucasian", "African-American")
    try:
        with file.open(newline="") as lines:
            rows = [
                row
                for row in csv.DictReader(lines)
                if row["race"] in races
                and row["is_recid"] != "-1"
                and row["c_charge_degree"] != "O"
                and row["score_text"] != "N/A"
                and row["days_b_screening_arrest"] not in ("", "NA")
                and abs(float(row["days_b_screening_arrest"])) <= 30
            ]
        protected = np.array([[row["race"] == races[1], row["sex"] == "Male"] for row in rows], np.float32)
        numbers = np.array([[float(row[name]) for name in counts] for row in rows])
        felony = np.array([row["c_charge_degree"] == "F" for row in rows])
        targets = np.array([float(row["two_year_recid"]) for row in rows], np.float32)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} is not the COMPAS two-year table: {error!r}.") from error
    if not rows:
        raise ValueError(f"{file} is not the COMPAS two-year table: it has no row that passes the filter.")
    inputs = np.column_stack([numbers, felony, protected])
    rng = np.random.default_rng(seed)
    return _standardize(_split(inputs, targets, train, rng, protected=protected), "inputs")


def mnist(folder: str | Path, seed: int = 0) -> Split:
    """MNIST from IDX files, gzipped or not, in ``mnist/`` of a folder.

    Args:
        folder: Its ``mnist/`` holds ``train-*`` and ``t10k-*`` files, or one pair of images and labels.
        seed: Splits a single pair 80/20; unused where the files say which part is the test.

    Returns:
        Inputs float32 [n, 784] in [0, 1] and targets int32 [n].

    Raises:
        ValueError: If a file is missing, damaged, or of another kind; the message names it.
    """
    folder = Path(folder) / "mnist"
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; JAXDIV_DATA must name the folder that holds mnist/.")
    if list(folder.glob("train-*")) or list(folder.glob("t10k-*")):
        parts = {"train": _idx_pair(folder, "train-"), "test": _idx_pair(folder, "t10k-")}
        return {part: {"inputs": x, "targets": y} for part, (x, y) in parts.items()}
    return _split(*_idx_pair(folder, ""), None, np.random.default_rng(seed))


def _split(
    inputs: np.ndarray,
    targets: np.ndarray,
    train: int | None,
    rng: np.random.Generator,
    **others: np.ndarray,
) -> Split:
    n = len(inputs)
    if train is None:
        train = int(0.8 * n)
    if not 0 < train < n:
        raise ValueError(f"train must leave examples on both sides, 1 to {n - 1}; got {train}.")
    order = rng.permutation(n)
    arrays = {"inputs": inputs, "targets": targets, **others}
    parts = {"train": order[:train], "test": order[train:]}
    return {part: {name: value[index] for name, value in arrays.items()} for part, index in parts.items()}


def _standardize(split: Split, *names: str) -> Split:
    for name in names:
        values = split["train"][name]
        mean, deviation = values.mean(0), values.std(0)
        for part in split.values():
            part[name] = ((part[name] - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    return split


def _idx_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    files = []
    for kind in ("images", "labels"):
        # Both t10k-images-idx3-ubyte and t10k-images.idx3-ubyte are common.
        found = sorted(folder.glob(f"{prefix}{kind}*idx*"))
        if not found:
            raise ValueError(f"no file {folder / prefix}{kind}*-ubyte or the same with .gz.")
        files.append(found[0])
    images, labels = map(_read_idx, files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{files[0]} and {files[1]} must hold n images and n labels; got shapes {images.shape} and "
            f"{labels.shape}."
        )
    if labels.max() > 9:
        raise ValueError(f"{files[1]} must hold labels from 0 to 9; got up to {labels.max()}.")
    return (images.reshape(len(images), -1) / np.float32(255)), labels.astype(np.int32)


def _read_idx(file: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes: magic 0, 0, 8, rank, then the sizes, big-endian."""
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {file}: {error}.") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{file} is not an IDX file of unsigned bytes; it starts with {content[:4]!r}.")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    size = math.prod(shape)
    if values.size != size:
        raise ValueError(f"{file} promises {size} values and holds {values.size}; it is damaged.")
    return values.reshape(shape)
