r"""Closed forms of divergences between Gaussians N(m_1, S_1) and N(m_2, S_2), with δ = m_1 - m_2.

With Cholesky factors `S = L Lᵀ`, `M = L_2⁻¹ L_1` and `E = M Mᵀ - I`:

    KL                1/2 [ Σ_{i>j} M_ij^2 + Σ_i (M_ii^2 - 1 - log M_ii^2) + |L_2⁻¹ δ|^2 ]
    Rényi             α/2 δᵀ S_α⁻¹ δ + 1/(2 s) log|I + s E| - log|M|,  s = 1 - α,  S_α = s S_1 + α S_2
    Cauchy–Schwarz    log|S_1 + S_2| - d log 2 - 1/2 log|S_1| - 1/2 log|S_2| + δᵀ (S_1 + S_2)⁻¹ δ
    sq. Hellinger     1 - exp( 1/4 log|S_1| + 1/4 log|S_2| - 1/2 log|S̄| - 1/8 δᵀ S̄⁻¹ δ ),  S̄ = (S_1 + S_2)/2

A covariance is given as a matrix [*b, d, d] or as a vector of variances [*b, d].

References: Gil, Alajaji, Linder (2013), Rényi divergence measures for commonly used univariate continuous
distributions; Kampa, Hasanbelliu, Príncipe (2011), Closed-form Cauchy–Schwarz PDF divergence for mixture
of Gaussians.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.numerics import safe_sqrt
from jaxdiv.core.types import Numeric
from jaxdiv.divergences import covariance
from jaxdiv.divergences.log_ratio import exp_remainder, log1p_over

_HIGHEST = jax.lax.Precision.HIGHEST


def gaussian_kl(
    mean1: Float[Array, "*b d"],
    cov1: Float[Array, "*b d d"] | Float[Array, "*b d"],
    mean2: Float[Array, "*b d"],
    cov2: Float[Array, "*b d d"] | Float[Array, "*b d"],
) -> Float[Array, "*b"]:
    """Kullback–Leibler divergence KL(N_1‖N_2) between Gaussians.

    Args:
        mean1: Mean, [*b, d].
        cov1: Covariance [*b, d, d], positive definite, or positive variances [*b, d].
        mean2: Mean, [*b, d].
        cov2: Covariance or variances.

    Returns:
        The divergence, [*b]; NaN where a covariance is not positive definite.

    Raises:
        ValueError: If an argument is not floating or the shapes do not fit together.

    Note:
        A sum of nonnegative terms: accurate between close Gaussians.

    Example:
        >>> float(gaussian_kl(jnp.array([0.0]), jnp.array([1.0]), jnp.array([2.0]), jnp.array([1.0])))
        2.0
    """
    delta, cov1, cov2 = covariance.arguments(mean1, cov1, mean2, cov2)
    factor1, factor2 = covariance.factor(cov1, delta), covariance.factor(cov2, delta)
    ratio = covariance.ratio(factor1, factor2, delta)
    mahalanobis = jnp.sum(jnp.square(covariance.solve(factor2, delta)), axis=-1)
    if ratio.ndim == delta.ndim:
        diagonal, rest = ratio, jnp.zeros((), ratio.dtype)
    else:
        diagonal = jnp.diagonal(ratio, axis1=-2, axis2=-1)
        rest = jnp.sum(jnp.square(jnp.tril(ratio, -1)), axis=(-2, -1))
    spread = jnp.sum(exp_remainder(2.0 * jnp.log(diagonal)), axis=-1)
    return 0.5 * (rest + spread + mahalanobis)


def gaussian_renyi(
    mean1: Float[Array, "*b d"],
    cov1: Float[Array, "*b d d"] | Float[Array, "*b d"],
    mean2: Float[Array, "*b d"],
    cov2: Float[Array, "*b d d"] | Float[Array, "*b d"],
    *,
    alpha: Numeric,
) -> Float[Array, "*b"]:
    """Rényi divergence of order alpha between Gaussians.

    Args:
        mean1: Mean, [*b, d].
        cov1: Covariance [*b, d, d], positive definite, or positive variances [*b, d].
        mean2: Mean, [*b, d].
        cov2: Covariance or variances.
        alpha: Order in [0, inf), a number or a traced scalar; 1 is the Kullback–Leibler divergence.

    Returns:
        The divergence, [*b]; +inf where `(1 - alpha) cov1 + alpha cov2` is not positive definite (possible
        for alpha > 1 only); gradients there are 0.

    Raises:
        ValueError: If an argument is not floating, the shapes do not fit together, or a concrete
            `alpha` is negative.

    Note:
        `log|I + s E| / s` is expanded to third order where `|s E|` is below the cube root of the machine
        epsilon, so that value and derivative in alpha pass through 1.

    References:
        Gil, Alajaji, Linder (2013), Rényi divergence measures for commonly used univariate
        continuous distributions.

    Example:
        >>> zero, one = jnp.array([0.0]), jnp.array([1.0])
        >>> float(gaussian_renyi(zero, one, 2.0 * one, one, alpha=0.5))
        1.0
    """
    delta, cov1, cov2 = covariance.arguments(mean1, cov1, mean2, cov2)
    checks.in_range("alpha", alpha, 0.0, jnp.inf, open_high=True)
    alpha = jnp.asarray(alpha, delta.dtype)
    s = 1.0 - alpha
    factor1, factor2 = covariance.factor(cov1, delta), covariance.factor(cov2, delta)
    ratio = covariance.ratio(factor1, factor2, delta)
    whitened = covariance.solve(factor2, delta)
    if ratio.ndim == delta.ndim:
        gap = (ratio - 1.0) * (ratio + 1.0)
        mixed = 1.0 + s * gap
        valid = jnp.all(mixed > 0, axis=-1)
        inside = jnp.where(valid[..., None], gap, 0.0)
        factor = jnp.sqrt(1.0 + s * inside)
        log_det = jnp.sum(inside * log1p_over(s * inside), axis=-1)
    else:
        eye = jnp.eye(delta.shape[-1], dtype=delta.dtype)
        gap = jnp.einsum("...ij,...kj->...ik", ratio, ratio, precision=_HIGHEST) - eye
        mixed = eye + s * gap
        valid = ~jnp.any(jnp.isnan(jnp.linalg.cholesky(jax.lax.stop_gradient(mixed))), axis=(-2, -1))
        factor = jnp.linalg.cholesky(jnp.where(valid[..., None, None], mixed, eye))
        log_det = _scaled_log_det(gap, factor, s)
    mahalanobis = jnp.sum(jnp.square(covariance.solve(factor, whitened)), axis=-1)
    value = 0.5 * (alpha * mahalanobis + log_det - covariance.log_det(ratio, delta))
    defined = ~jnp.isnan(covariance.log_det(factor1, delta) + covariance.log_det(factor2, delta))
    return jnp.where(valid | ~defined, value, jnp.inf)


def _scaled_log_det(
    gap: Float[Array, "*b d d"], factor: Float[Array, "*b d d"], s: Float[Array, ""]
) -> Float[Array, "*b"]:
    """Returns `log|I + s E| / s` for E = `gap`, `factor` being the Cholesky factor of `I + s E`."""
    square = jnp.matmul(gap, gap, precision=_HIGHEST)
    first, second = (jnp.trace(m, axis1=-2, axis2=-1) for m in (gap, square))
    third = jnp.sum(square * gap, axis=(-2, -1))
    series = first - s * second / 2.0 + jnp.square(s) * third / 3.0
    small = jnp.abs(s) * safe_sqrt(second) < float(np.finfo(gap.dtype).eps) ** (1 / 3)
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    exact = 2.0 * jnp.sum(jnp.log(diagonal), axis=-1) / jnp.where(s == 0, 1.0, s)
    return jnp.where(small, series, exact)


def gaussian_cs(
    mean1: Float[Array, "*b d"],
    cov1: Float[Array, "*b d d"] | Float[Array, "*b d"],
    mean2: Float[Array, "*b d"],
    cov2: Float[Array, "*b d d"] | Float[Array, "*b d"],
) -> Float[Array, "*b"]:
    """Cauchy–Schwarz divergence between Gaussians.

    Args:
        mean1: Mean, [*b, d].
        cov1: Covariance [*b, d, d], positive definite, or positive variances [*b, d].
        mean2: Mean, [*b, d].
        cov2: Covariance or variances.

    Returns:
        The divergence, [*b]; symmetric.

    Raises:
        ValueError: If an argument is not floating or the shapes do not fit together.

    References:
        Kampa, Hasanbelliu, Príncipe (2011), Closed-form Cauchy–Schwarz PDF divergence.

    Example:
        >>> float(gaussian_cs(jnp.array([0.0]), jnp.array([1.0]), jnp.array([2.0]), jnp.array([1.0])))
        2.0
    """
    delta, cov1, cov2 = covariance.arguments(mean1, cov1, mean2, cov2)
    log_overlap, mahalanobis = _overlap(delta, cov1, cov2)
    # The covariance of the product integral is the sum, twice the average.
    return 0.5 * mahalanobis - 2.0 * log_overlap


def gaussian_sq_hellinger(
    mean1: Float[Array, "*b d"],
    cov1: Float[Array, "*b d d"] | Float[Array, "*b d"],
    mean2: Float[Array, "*b d"],
    cov2: Float[Array, "*b d d"] | Float[Array, "*b d"],
) -> Float[Array, "*b"]:
    """Squared Hellinger distance `1 - ∫ sqrt(p q)` between Gaussians.

    Args:
        mean1: Mean, [*b, d].
        cov1: Covariance [*b, d, d], positive definite, or positive variances [*b, d].
        mean2: Mean, [*b, d].
        cov2: Covariance or variances.

    Returns:
        The squared distance, [*b], in [0, 1].

    Raises:
        ValueError: If an argument is not floating or the shapes do not fit together.

    Example:
        >>> zero, one = jnp.array([0.0]), jnp.array([1.0])
        >>> round(float(gaussian_sq_hellinger(zero, one, 2.0 * one, one)), 4)
        0.3935
    """
    delta, cov1, cov2 = covariance.arguments(mean1, cov1, mean2, cov2)
    log_overlap, mahalanobis = _overlap(delta, cov1, cov2)
    return -jnp.expm1(log_overlap - mahalanobis / 8.0)


def _overlap(delta: Array, cov1: Array, cov2: Array) -> tuple[Array, Array]:
    """Returns `1/4 log|S_1| + 1/4 log|S_2| - 1/2 log|S̄|` and `δᵀ S̄⁻¹ δ`."""
    factor = covariance.factor(0.5 * (cov1 + cov2), delta)
    log_dets = [covariance.log_det(covariance.factor(cov, delta), delta) for cov in (cov1, cov2)]
    mahalanobis = jnp.sum(jnp.square(covariance.solve(factor, delta)), axis=-1)
    return 0.25 * (log_dets[0] + log_dets[1]) - 0.5 * covariance.log_det(factor, delta), mahalanobis
