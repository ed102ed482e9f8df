"""USEFUL: examples whose features are not yet learned are repeated, so that features are learned more evenly.

Early in training an example that contains a fast-learned feature is told from the others by the network's output.
For every class c the outputs z_i of its examples are split by 2-means into two clusters; the one of higher mean loss
holds the examples that lack the feature, and the repeats are

    r_i = factor for i in the cluster of higher loss of its class,    1 else.

Then training starts afresh on the data with repeats, by any method. The paper has factor 2 and finds the clusters
after some 5 to 10 % of the epochs, when the training error has begun to fall more slowly.

2-means starts from the two halves of a class along its outputs' first principal axis, so that the result depends
neither on a draw nor on the order of the examples.

References:
    Nguyen, Haddad, Gan, Mirzasoleiman (2024), Changing the training data distribution to reduce simplicity bias
    improves in-distribution generalization, algorithm 1.
"""

import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks

# Lloyd's iterations end by themselves; a class of a million examples takes some tens.
_MAX_STEPS = 300


def _two_means(points: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Which of two clusters each point is in, False for all where the points are one."""
    centered = points - points.mean(0)
    axis = np.linalg.eigh(centered.T @ centered)[1][:, -1]
    along = centered @ axis
    second = along > (along.min() + along.max()) / 2
    for _ in range(_MAX_STEPS):
        if second.all() or not second.any():
            return np.zeros(len(points), bool)
        centers = points[~second].mean(0), points[second].mean(0)
        distances = [np.sum((points - center) ** 2, 1) for center in centers]
        moved = distances[1] < distances[0]
        if np.array_equal(moved, second):
            break
        second = moved
    return second


def useful_repeats(
    outputs: Float[Array, "n *C"], labels: Int[Array, " n"], losses: Float[Array, " n"], *, factor: int = 2
) -> Int[np.ndarray, " n"]:
    """How often each example shall stand in the data; runs on the host.

    Args:
        outputs: Logits or probabilities early in training.
        labels: Classes. Each is clustered on its own.
        losses: What each example cost then.
        factor: Repeats of the examples in the cluster of higher loss; the paper's value.

    Returns:
        int32 numbers: the new data are the rows ``np.repeat(np.arange(n), repeats)``. In a class whose outputs
        are all the same, or whose clusters have the same loss, nothing is repeated.

    Raises:
        ValueError: If the three differ in length, the outputs or losses are not finite, or `factor` is below 1.

    Note:
        Do it early: late outputs are saturated. The new data are larger, so fix the number of steps, not of epochs,
        where runs are compared. Examples with wrong labels end up among those repeated.

    References:
        Nguyen, Haddad, Gan, Mirzasoleiman (2024), algorithm 1.

    Example:
        >>> outputs = np.array([[2.0], [0.1], [1.9], [2.1], [-2.0], [-0.2]])
        >>> losses = np.log1p(np.exp(-np.abs(outputs[:, 0])))
        >>> useful_repeats(outputs, np.array([1, 1, 1, 1, 0, 0]), losses)
        array([1, 2, 1, 1, 1, 2], dtype=int32)
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1; got {factor}.")
    classes = np.asarray(checks.integers("labels", labels))
    points, costs = np.asarray(outputs, np.float64), np.asarray(losses, np.float64)
    n = len(classes)
    if classes.shape != (n,) or costs.shape != (n,) or points.shape[:1] != (n,):
        raise ValueError(
            "outputs, labels and losses must have one row, label and number per example; "
            f"got shapes {points.shape}, {classes.shape} and {costs.shape}."
        )
    if not (np.isfinite(points).all() and np.isfinite(costs).all()):
        raise ValueError("outputs and losses must be finite; train for fewer steps, or find what diverged.")
    points = points.reshape(n, -1)
    repeats = np.ones(n, np.int32)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        second = _two_means(points[members])
        if not second.any():
            continue
        means = costs[members[~second]].mean(), costs[members[second]].mean()
        if means[0] != means[1]:
            repeats[members[second == (means[1] > means[0])]] = factor
    return repeats
