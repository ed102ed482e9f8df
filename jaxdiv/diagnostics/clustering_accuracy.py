"""Accuracy of a clustering: that of the best one-to-one naming of its clusters.

    max over matchings pi of (1/N) sum_i 1[pi(c_i) = y_i]

where pi gives each cluster at most one class and each class to at most one cluster. The matching is found by
the Hungarian algorithm on the table of counts n_ck = #{i: c_i = c, y_i = k}.

References:
    Yang, Xu, Nie, Yan, Zhuang (2010), Image clustering using local discriminant models and global
    integration.
    `optax.assignment.hungarian_algorithm`, which finds the matching.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Scalar
from jaxdiv.diagnostics import arguments


def clustering_accuracy(
    clusters: Int[Array, " N"],
    labels: Int[Array, " N"],
    *,
    num_clusters: int,
    num_classes: int | None = None,
    weights: Float[Array, " N"] | None = None,
) -> Scalar:
    """Share of examples whose cluster, under the best matching, is named as their label.

    Args:
        clusters: The cluster of each example [N], in [0, num_clusters).
        labels: The class of each example [N], in [0, num_classes).
        num_clusters: Number of clusters.
        num_classes: Number of classes; that of the clusters by default. Of several clusters of one class
            only one counts.
        weights: Weight of each example [N]; 0 is padding.

    Returns:
        A scalar in [0, 1]; NaN if a cluster or a label is out of range or no weight is positive.

    Raises:
        ValueError: If clusters or labels are not integers of one shape [N], or a number is below 1.

    Example:
        >>> print(clustering_accuracy(jnp.array([1, 1, 0, 0]), jnp.array([0, 0, 1, 0]), num_clusters=2))
        0.75
    """
    num_classes = num_clusters if num_classes is None else num_classes
    for name, value in (("num_clusters", num_clusters), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    clusters, labels = checks.integers("clusters", clusters), checks.integers("labels", labels)
    checks.rank("clusters", clusters, 1)
    checks.not_empty("clusters", clusters)
    checks.same_shape(clusters=clusters, labels=labels)
    valid = (clusters >= 0) & (clusters < num_clusters) & (labels >= 0) & (labels < num_classes)
    weights = arguments.example_weights(weights, jnp.ones(labels.shape))
    # Whole numbers while weights are whole, so that counts and the algorithm's potentials are exact.
    counts = jnp.where(valid & (weights > 0), weights, 0.0)
    table = jnp.zeros((num_clusters, num_classes), counts.dtype).at[clusters, labels].add(counts, mode="drop")
    matched = optax.assignment.hungarian_algorithm(-table)
    share = jnp.sum(table[matched]) / jnp.sum(counts)
    return jnp.where(jnp.any(~valid & (weights > 0)), jnp.nan, share)
