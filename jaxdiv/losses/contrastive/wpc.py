r"""Contrastive predictive coding from a matrix of scores, the part of WPC that has a value per example.

With the scores `f_ij = f(x_i, y_j)` of N pairs, the positives on the diagonal,

    l_i = log (1/N) Σ_j exp(f_ij) - f_ii,      j over the whole batch, the positive included

It is InfoNCE, the cross-entropy of the positive, less log N: `-mean_i l_i` is CPC's lower bound on the
mutual information of x and y, and no critic brings it above log N. Wasserstein predictive coding (WPC)
minimizes `mean_i l_i` over critics with a Lipschitz constant of about 1: it adds lambda times the mean
`jaxdiv.losses.gradient_penalty` of f at `jaxdiv.losses.random_interpolates` of true and broken pairs.

References:
    Ozair, Lynch, Bengio, van den Oord, Levine, Sermanet (2019), Wasserstein Dependency Measure for
    Representation Learning; van den Oord, Li, Vinyals (2018), Representation Learning with Contrastive
    Predictive Coding, eq. (4).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.numerics import logmeanexp
from jaxdiv.losses import arguments


def wpc(scores: Float[Array, "B B"], *, weights: Float[Array, " B"] | None = None) -> Float[Array, " B"]:
    """Per-example contrastive loss whose negative mean is at most log B.

    Args:
        scores: Scores [B, B] of x_i (rows) with y_j (columns). Off the diagonal, ``-inf`` leaves a pair out
            of the sum, not out of B.
        weights: Nonnegative weights [B] of the pairs as negatives; 1 by default. 0 is an absent pair, whose
            row and column may hold anything; 2 counts as a pair given twice.

    Returns:
        The losses [B]; 0 for an absent pair. They are not multiplied by the weights: a weighted mean of
        them is the loss of a batch with repeated and absent pairs.

    Raises:
        ValueError: If the scores are integers, empty or not square, or the weights are not [B].

    Note:
        Scores are compared with the positive before the exponential, so that a large common offset costs
        no digits.

    Example:
        >>> wpc(jnp.zeros((3, 3)))
        Array([0., 0., 0.], dtype=float32)
        >>> round(float(-wpc(100 * jnp.eye(4)).mean()), 4), round(float(jnp.log(4)), 4)
        (1.3863, 1.3863)
    """
    scores = arguments.class_logits("scores", scores)
    batch = scores.shape[0]
    if scores.shape[1] != batch:
        raise ValueError(f"scores must be square, one row and one column per pair; got shape {scores.shape}.")
    present = jnp.ones(batch, bool)
    if weights is not None:
        weights = checks.floating("weights", weights).astype(scores.dtype)
        if weights.shape != (batch,):
            raise ValueError(f"weights must hold one weight per pair, shape {(batch,)}; got {weights.shape}.")
        present = weights > 0
        scores = jnp.where(present[:, None], scores, 0.0)
    gaps = scores - jnp.diagonal(scores)[:, None]
    return jnp.where(present, logmeanexp(gaps, -1, weights=weights), 0.0)
