"""DEPICT's cluster targets: soft assignments reweighted so that no cluster runs empty.

With P the soft assignments p_ik = softmax_k(z_i), f_k = (1/N) sum_i q_ik the frequencies that targets Q would
give and u the uniform distribution, Q approximately minimizes

    (1/N) sum_i KL(q_i || p_i) + w KL(f || u)

over Q with unit row sums. At the minimum q_ik is proportional to p_ik (u_k / f_k)^w; the paper takes w = 1
and one step towards it,

    q_ik = p_ik m_k^{-a} / sum_k' p_ik' m_k'^{-a},     m_k = sum_i p_ik,     a = w / (1 + w) = 1/2.

This is the first scaling iteration of the transport problem min KL(Q || P) with exact row sums and a KL
penalty on the column sums of w times the entropic strength: b = (u / P^T 1)^a, then Q = diag(r) P diag(b)
with unit row sums. Iterated, r entering P^T r, it converges to the minimum.

References:
    Dizaji, Herandi, Deng, Cai, Huang (2017), Deep clustering via joint convolutional autoencoder embedding
    and relative entropy minimization, section 3.1.
    Chizat, Peyré, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport problems,
    for the exponent.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses import arguments


def depict_targets(
    logits: Float[Array, "N K"],
    *,
    prior_weight: Numeric = 1.0,
    log_frequency: Float[Array, " K"] | None = None,
    weights: Float[Array, " N"] | None = None,
) -> Float[Array, "N K"]:
    """Targets of a clustering from its own soft assignments.

    Args:
        logits: Scores of the clusters [N, K]; log-probabilities are such scores.
        prior_weight: Weight w >= 0 of the uniform prior; 1 is the paper's, 0 returns the assignments.
        log_frequency: Logarithms of m [K], up to a constant, where rows are a batch and m is of the data
            set; by default m is that of these rows.
        weights: Weight of each row in m [N]; 0 is padding.

    Returns:
        The targets [N, K] in float32, or float64 for float64 logits; rows sum to 1.

    Raises:
        ValueError: If logits are integers or empty, shapes do not fit, `log_frequency` and `weights` are
            both given, or the prior weight is negative or infinite.

    Note:
        All in logarithms: a cluster whose every p_ik underflows still has its m_k. A cluster of frequency
        exactly zero counts as one of uniform frequency. A NaN row spoils m and with it all rows, unless its
        weight is 0 or `log_frequency` is given.

    Example:
        >>> q = depict_targets(jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]])))
        >>> [[round(float(x), 3) for x in row] for row in q]
        [[0.667, 0.333], [0.667, 0.333]]
    """
    logits = arguments.class_logits("logits", logits)
    checks.in_range("prior_weight", prior_weight, 0.0, open_high=True)
    rows, clusters = logits.shape
    log_p = jax.nn.log_softmax(logits, axis=-1)
    if log_frequency is None:
        if weights is not None:
            weights = checks.floating("weights", weights)
            if weights.shape != (rows,):
                raise ValueError(
                    f"weights must hold one number per row, shape {(rows,)}; got {weights.shape}."
                )
            weights = weights[:, None]
        log_frequency = core.logsumexp(log_p, 0, weights=weights)
    elif weights is not None:
        raise ValueError("weights must be None where log_frequency is given; they do not enter it.")
    else:
        log_frequency = checks.floating("log_frequency", log_frequency)
        if log_frequency.shape != (clusters,):
            raise ValueError(
                f"log_frequency must hold one number per cluster, shape {(clusters,)}; "
                f"got {log_frequency.shape}."
            )
    empty = jnp.isneginf(log_frequency)
    # Relative to the uniform prior, so that a cluster left out stands at f = u whatever the scale of m.
    log_ratio = log_frequency - core.logsumexp(log_frequency) + math.log(clusters)
    log_ratio = jnp.where(empty, 0.0, log_ratio)
    exponent = prior_weight / (1.0 + prior_weight)
    return jax.nn.softmax(log_p - (exponent * log_ratio).astype(log_p.dtype), axis=-1)
