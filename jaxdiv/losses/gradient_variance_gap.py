"""How far the variances of per-example gradients lie apart between two sets of examples, as UDIM and Fishr have it.

With gradients a_i, b_i in R^d of the source and of the other set, ā the mean of the source's, and squares taken
componentwise,

    v_a = mean_i (a_i - ā)²,    v_b = mean_i (b_i - m)²,    gap = ¼ mean_j (v_aj - v_bj)²

where m is ā (``center="source"``) or the mean of the b_i (``center="own"``). The latter is Fishr's penalty for two
domains, the mean over both of the mean squared distance of their variance from the average one.

References:
    Shin, Bae, Na, Kim, Moon (2024), Unknown Domain Inconsistency Minimization for Domain Generalization, section 4.2.
    Rame, Dancette, Cord (2022), Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization, eq. (4).
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Scalar
from jaxdiv.losses import arguments

Center = Literal["source", "own"]


def gradient_variance_gap(
    gradients: Float[Array, "B d"],
    others: Float[Array, "B d"],
    *,
    center: Center = "source",
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Batch loss: a quarter of the mean squared difference of two gradient variances.

    Args:
        gradients: Per-example gradients [B, d] of the source.
        others: Per-example gradients [B, d] of the other set, such as the same examples perturbed.
        center: Around which mean the variance of `others` is taken.
        weights: Nonnegative weights [B] of the examples in both sets; 1 by default. 0 is absence.

    Returns:
        The gap, a scalar; 0 where both sets are the same.

    Raises:
        ValueError: If the gradients are not floating [B, d] of one shape, the weights are not [B], or the center is
            unknown.

    Note:
        It is of degree four in the gradients: below 1e-10 in float32 it is zero.

    Example:
        >>> a = jnp.array([[1.0], [-1.0]])
        >>> float(gradient_variance_gap(a, 3.0 * a))
        16.0
    """
    checks.one_of("center", center, get_args(Center))
    a, b = arguments.class_pair(gradients=gradients, others=others)
    batch = a.shape[0]
    if weights is None:
        weights = jnp.ones(batch, a.dtype)
    weights = checks.floating("weights", weights).astype(a.dtype)
    if weights.shape != (batch,):
        raise ValueError(f"weights must hold one weight per row, shape {(batch,)}; got {weights.shape}.")
    # An absent row may hold anything.
    a, b = (jnp.where(weights[:, None] > 0, x, 0.0) for x in (a, b))
    shares = weights / jnp.sum(weights)
    mean = shares @ a
    variance = shares @ (a - mean) ** 2
    other_variance = shares @ (b - (mean if center == "source" else shares @ b)) ** 2
    return jnp.mean((variance - other_variance) ** 2) / 4
