"""Jensen-Shannon divergences between the prediction distributions of groups.

With h_g the histogram of the predictions of group g,

    JS(g, g') = (1/2) KL(h_g || m) + (1/2) KL(h_g' || m),     m = (h_g + h_g') / 2

the largest and the average over pairs of groups measure the violation of demographic parity. Groups of
several attributes are numbered by their intersections, so that a disparity between subgroups shows.

References:
    Machine learning with multitype protected attributes: intersectional fairness through
    regularisation (2025), arXiv 2509.08163, on choosing the regularization strength.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv import divergences
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.diagnostics import arguments


class GroupJSD(NamedTuple):
    """Divergences between groups in nats; at most log 2.

    Attributes:
        largest: Over all pairs of groups.
        average: Over all pairs of groups.
        pairwise: All pairs [G, G]; NaN for a group without examples.
    """

    largest: Scalar
    average: Scalar
    pairwise: Float[Array, "G G"]


def group_jsd(
    predictions: Float[Array, " N"],
    groups: Int[Array, " N"],
    *,
    num_groups: int,
    bins: int = 20,
    limits: tuple[Numeric, Numeric] | None = None,
    weights: Float[Array, " N"] | None = None,
) -> GroupJSD:
    """Largest and average Jensen-Shannon divergence between the groups' histograms.

    Args:
        predictions: One prediction per example [N], such as a probability or a price.
        groups: The group of each example [N], in [0, num_groups).
        num_groups: Number of groups G >= 2.
        bins: Number of equal-width bins.
        limits: Ends of the histogram, in increasing order; values beyond them fall into the outer
            bins. Default: the smallest and the largest prediction, which must be finite.
        weights: Weight of each example [N]; 0 is padding.

    Returns:
        A `GroupJSD`. Groups without examples take no part; NaN if fewer than two groups do, or if a
        prediction is NaN or a group out of range.

    Raises:
        ValueError: If shapes or dtypes do not fit, or there are fewer than two groups or no bin.

    Note:
        A histogram of few examples is rough: the value is biased upwards by about
        ``bins / (8 n)`` for each group of n examples, so compare it at equal group sizes.

    Example:
        >>> result = group_jsd(jnp.array([0.1, 0.1, 0.9, 0.9]), jnp.array([0, 0, 1, 1]), num_groups=2)
        >>> print(result.largest.round(4))
        0.6931
    """
    predictions = checks.floating("predictions", predictions)
    checks.rank("predictions", predictions, 1)
    checks.not_empty("predictions", predictions)
    groups = checks.integers("groups", groups)
    checks.same_shape(predictions=predictions, groups=groups)
    if num_groups < 2:
        raise ValueError(f"num_groups must be at least 2; got {num_groups}.")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    weights = arguments.example_weights(weights, predictions)
    present = weights > 0
    invalid = present & (jnp.isnan(predictions) | (groups < 0) | (groups >= num_groups))
    if limits is not None and all(map(checks.concrete, limits)) and not limits[0] < limits[1]:
        raise ValueError(f"limits must increase; got {limits[0]} and {limits[1]}.")
    if limits is None:
        invalid |= present & jnp.isinf(predictions)
        low = jnp.min(predictions, where=present, initial=jnp.inf)
        high = jnp.max(predictions, where=present, initial=-jnp.inf)
    else:
        low, high = (jnp.asarray(limit, predictions.dtype) for limit in limits)
    width = jnp.where(high > low, high - low, 1.0)
    index = jnp.clip((predictions - low) / width * bins, 0, bins - 1).astype(jnp.int32)
    counts = jnp.zeros((num_groups, bins), predictions.dtype).at[groups, index].add(weights)
    total = jnp.sum(counts, axis=1, keepdims=True)
    histograms = jnp.log(counts / jnp.where(total > 0, total, 1.0))

    shape = (num_groups, num_groups, bins)
    pairwise = divergences.get("js").on_logits(
        jnp.broadcast_to(histograms[:, None], shape), jnp.broadcast_to(histograms[None], shape)
    )
    occupied = total[:, 0] > 0
    pair = occupied[:, None] & occupied[None]
    pairwise = jnp.where(pair & ~jnp.any(invalid), pairwise, jnp.nan)
    pair &= ~jnp.eye(num_groups, dtype=bool)
    largest = jnp.max(pairwise, where=pair, initial=0.0)
    average = jnp.mean(pairwise, where=pair)
    return GroupJSD(jnp.where(jnp.isnan(average), jnp.nan, largest), average, pairwise)
