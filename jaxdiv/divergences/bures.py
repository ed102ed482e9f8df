r"""Squared Bures–Wasserstein distance: optimal transport between Gaussians.

    W_2^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^½ S_2 S_1^½)^½
          = |m_1 - m_2|^2 + min_Q |L_1 - L_2 Q|^2,   S = L Lᵀ, Q orthogonal

The minimum is attained at the orthogonal polar factor of `L_2ᵀ L_1`, so its derivative is that of the
squared norm with Q held fixed; the derivative of Q divides by sums of singular values, never by differences.

References: Bhatia, Jain, Lim (2019), On the Bures–Wasserstein distance between positive definite matrices,
theorem 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.divergences import covariance

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.custom_jvp
def _polar(a: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    u, _, vt = jnp.linalg.svd(a)
    return jnp.matmul(u, vt, precision=_HIGHEST)


@_polar.defjvp
def _polar_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    u, s, vt = jnp.linalg.svd(primals[0])
    inner = jnp.einsum("...ji,...jk,...lk->...il", u, tangents[0], vt, precision=_HIGHEST)
    skew = (inner - jnp.swapaxes(inner, -1, -2)) / (s[..., :, None] + s[..., None, :])
    turn = jnp.einsum("...ij,...jk,...kl->...il", u, skew, vt, precision=_HIGHEST)
    return jnp.matmul(u, vt, precision=_HIGHEST), turn


def _residual(factor1: Array, factor2: Array) -> tuple[Array, Array]:
    inner = jnp.einsum("...ji,...jk->...ik", factor2, factor1, precision=_HIGHEST)
    q = _polar(inner)
    return factor1 - jnp.matmul(factor2, q, precision=_HIGHEST), q


@jax.custom_jvp
def _procrustes(factor1: Float[Array, "*b d d"], factor2: Float[Array, "*b d d"]) -> Float[Array, "*b"]:
    return jnp.sum(jnp.square(_residual(factor1, factor2)[0]), axis=(-2, -1))


@_procrustes.defjvp
def _procrustes_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    residual, q = _residual(*primals)
    change = tangents[0] - jnp.matmul(tangents[1], q, precision=_HIGHEST)
    value = jnp.sum(jnp.square(residual), axis=(-2, -1))
    return value, 2.0 * jnp.sum(residual * change, axis=(-2, -1))


def gaussian_w2(
    mean1: Float[Array, "*b d"],
    cov1: Float[Array, "*b d d"] | Float[Array, "*b d"],
    mean2: Float[Array, "*b d"],
    cov2: Float[Array, "*b d d"] | Float[Array, "*b d"],
) -> Float[Array, "*b"]:
    """Squared Bures–Wasserstein distance between Gaussians.

    Args:
        mean1: Mean, [*b, d].
        cov1: Covariance [*b, d, d], positive definite, or positive variances [*b, d].
        mean2: Mean, [*b, d].
        cov2: Covariance or variances.

    Returns:
        The squared 2-Wasserstein distance, [*b].

    Raises:
        ValueError: If an argument is not floating or the shapes do not fit together.

    Note:
        A sum of squares: accurate between close Gaussians, with finite first and second derivatives at
        equal covariances and at repeated eigenvalues.

    References:
        Bhatia, Jain, Lim (2019), On the Bures–Wasserstein distance, theorem 1.

    Example:
        >>> zero = jnp.zeros(1)
        >>> float(gaussian_w2(zero, jnp.array([4.0]), zero, jnp.array([1.0])))
        1.0
    """
    delta, cov1, cov2 = covariance.arguments(mean1, cov1, mean2, cov2)
    factor1, factor2 = covariance.factor(cov1, delta), covariance.factor(cov2, delta)
    mean_part = jnp.sum(jnp.square(delta), axis=-1)
    if factor1.ndim == delta.ndim:
        return mean_part + jnp.sum(jnp.square(factor1 - factor2), axis=-1)
    return mean_part + _procrustes(factor1, factor2)
