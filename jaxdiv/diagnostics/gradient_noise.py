"""Gradient noise: how far the gradients of single examples lie from their mean.

For the gradients g_1 … g_b of a batch, their mean ḡ, and variances over the batch with divisor b − 1,

    V   = Σ_coordinates Var(g_i),                    V_ip = Var(⟨g_i, ḡ⟩),
    V_o = Σ_coordinates Var(g_i − ⟨g_i, ḡ⟩/‖ḡ‖² ḡ),  V = V_ip/‖ḡ‖² + V_o,

and coordinate by coordinate Var(∂_j)/ḡ_j². Over the batch size b, V/b estimates the squared error of ḡ: the batch is
large enough where V/b ≤ η²‖ḡ‖², and that or its parts decide how many examples the next batches need.

References:
    Byrd, Chin, Nocedal, Wu (2012), Sample size selection in optimization methods for machine learning (norm test).
    Bollapragada, Byrd, Nocedal (2018), Adaptive sampling strategies for stochastic optimization (inner products).
    Lau, Liu, Kolar (2024), AdAdaGrad: Adaptive batch size schemes for adaptive gradient methods, section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.linalg import vectors


class GradientNoise(NamedTuple):
    """Moments of the gradients of a batch.

    Attributes:
        mean_square: ‖ḡ‖².
        variance: V, that of all coordinates together.
        inner_variance: V_ip, that of the inner products with ḡ.
        orthogonal_variance: V_o, that of the parts orthogonal to ḡ.
        coordinate_ratio: The chosen quantile of Var(∂_j)/ḡ_j² over the coordinates j; where ḡ_j is 0 the ratio is
            0 if nothing varies there, else infinite.
    """

    mean_square: Scalar
    variance: Scalar
    inner_variance: Scalar
    orthogonal_variance: Scalar
    coordinate_ratio: Scalar


def gradient_noise(per_example_grads: PyTree, *, quantile: Numeric = 1.0) -> GradientNoise:
    """Mean and variances of the gradients of a batch, in one pass over them.

    Args:
        per_example_grads: A pytree of leaves [b, ...], as ``jax.vmap(jax.grad(loss), (None, 0))`` gives them. Means of
            W micro-batches of s examples serve as well: multiply the variances by s then.
        quantile: Which of the coordinates' ratios to report, in [0, 1]; the largest by default, as the theory has it.
            In networks single coordinates have ḡ_j near 0: take 0.9, say.

    Returns:
        The moments, float32 or wider.

    Raises:
        ValueError: If there are fewer than two gradients, or their number differs between leaves.

    Note:
        The deviations are taken from the mean before they are squared, so identical gradients give 0 up to the
        rounding of their mean.

    References:
        Lau, Liu, Kolar (2024), section 3.

    Example:
        >>> noise = gradient_noise(jnp.array([[1.0, 1.0], [1.0, -1.0], [4.0, 0.0]]))
        >>> float(noise.mean_square), float(noise.variance), float(noise.coordinate_ratio)
        (4.0, 4.0, inf)
    """
    checks.in_range("quantile", quantile, 0.0, 1.0)
    grads = vectors.uniform(vectors.widened("per_example_grads", per_example_grads))
    leaves = jax.tree.leaves(grads)
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) > 1 or () in sizes or leaves[0].shape[0] < 2:
        raise ValueError(
            "per_example_grads must hold at least 2 gradients along the first axis of every leaf; "
            f"got shapes {[leaf.shape for leaf in leaves]}."
        )
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), grads)
    deviations = jax.tree.map(jnp.subtract, grads, mean)
    divisor = leaves[0].shape[0] - 1
    variances = jax.tree.map(lambda leaf: jnp.sum(leaf**2, 0) / divisor, deviations)

    def total(tree: PyTree) -> Scalar:
        return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, tree))

    mean_square = total(jax.tree.map(jnp.square, mean))
    inner = vectors.coefficients(deviations, mean)
    along = inner / jnp.where(mean_square > 0, mean_square, 1)
    # Subtracted example by example: as V − V_ip/‖ḡ‖² it would cancel where most of the noise is along the mean.
    orthogonal = jax.tree.map(lambda d, m: d - jnp.multiply.outer(along, m), deviations, mean)
    ratios = jax.tree.map(
        lambda v, m: jnp.where(v > 0, v / m**2, jnp.where(jnp.isnan(v), v, 0)).ravel(), variances, mean
    )
    return GradientNoise(
        mean_square=mean_square,
        variance=total(variances),
        inner_variance=jnp.sum(inner**2) / divisor,
        orthogonal_variance=total(jax.tree.map(jnp.square, orthogonal)) / divisor,
        coordinate_ratio=_quantile(jnp.concatenate(jax.tree.leaves(ratios)), quantile),
    )


def _quantile(values: jax.Array, quantile: Numeric) -> Scalar:
    # The higher of two neighbors: interpolation between a number and infinity would be infinite or NaN.
    return jnp.quantile(values, quantile, method="higher")
