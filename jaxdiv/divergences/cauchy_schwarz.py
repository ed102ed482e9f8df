r"""Cauchy–Schwarz divergence and quadratic mutual information from samples.

    D_CS(p; q) = -log [ (∫ p q)^2 / (∫ p^2 ∫ q^2) ] = log ∫ p^2 + log ∫ q^2 - 2 log ∫ p q  >= 0

with kernel density estimates of bandwidth `sigma / √2`, for which `∫ p q` is the mean of
`G(u, v) = exp(-|u - v|^2 / (2 sigma^2))` up to a constant that cancels. With weights `w` that sum to 1
and Gram matrices `K` on x, `Q` on t, `L1` on y, `L2` on ŷ, `L21_ji = G(ŷ_j, y_i)`:

- two samples: the means of `G` within x, within y and across;
- mutual information, the divergence of the joint from the product density:
  `log Σ_ij w_i w_j K_ij Q_ij + log Σ_i w_i k_i + log Σ_i w_i q_i - 2 log Σ_i w_i k_i q_i`
  with `k_i = Σ_j w_j K_ij` and `q_i = Σ_j w_j Q_ij`;
- conditional: `S(L1) + S(L2) - 2 S(L21)`, `S(L) = log Σ_j w_j [Σ_i w_i K_ji L_ji / (Σ_i w_i K_ji)^2]`.

References: Yu, Yu, Løkse, Jenssen, Príncipe (2024), Cauchy–Schwarz divergence information bottleneck
for regression.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.numerics import logsumexp
from jaxdiv.core.types import Numeric
from jaxdiv.divergences import pairwise


def cs_divergence(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b m d"],
    *,
    sigma: Numeric | None = None,
    x_weights: Float[Array, "*b n"] | None = None,
    y_weights: Float[Array, "*b m"] | None = None,
) -> Float[Array, "*b"]:
    """Cauchy–Schwarz divergence between two samples.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        sigma: Width of the Gaussian kernel, a scalar or [*b]; by default the median distance of the
            pooled sample.
        x_weights: Nonnegative weights, [*b, n], normalized here; 0 = absent.
        y_weights: Weights of `y`, [*b, m].

    Returns:
        The divergence, [*b]; nonnegative, finite however far apart the samples are.

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, the two do not fit together, or a
            concrete `sigma` is not positive.

    Note:
        All three terms are log-sum-exps, so the gradient survives where every kernel value underflows.
        For Gaussian samples the limit is `gaussian_cs` with `sigma^2 / 2` added to each covariance.

    References:
        Yu et al. (2024), Cauchy–Schwarz divergence information bottleneck for regression.

    Example:
        >>> round(float(cs_divergence(jnp.array([[0.0]]), jnp.array([[3.0]]), sigma=1.0)), 4)
        9.0
    """
    x, u = pairwise.sample("x", x, x_weights)
    y, v = pairwise.sample("y", y, y_weights)
    pairwise.same_space("x", x, "y", y)
    if sigma is None:
        sigma = pairwise.median_distance(x, y, x_weights=u, y_weights=v)
    within_x = pairwise.log_mean(pairwise.log_gaussian_gram(x, sigma=sigma), u, u)
    within_y = pairwise.log_mean(pairwise.log_gaussian_gram(y, sigma=sigma), v, v)
    across = pairwise.log_mean(pairwise.log_gaussian_gram(x, y, sigma=sigma), u, v)
    return within_x + within_y - 2.0 * across


def cs_qmi(
    x: Float[Array, "*b n p"],
    t: Float[Array, "*b n q"],
    *,
    sigma_x: Numeric | None = None,
    sigma_t: Numeric | None = None,
    normalized: bool = False,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Cauchy–Schwarz quadratic mutual information between paired samples.

    Args:
        x: Points, [*b, n, p].
        t: Points of the same examples, [*b, n, q].
        sigma_x: Width of the Gaussian kernel on `x`, a scalar or [*b]; by default its median distance.
        sigma_t: Width of the Gaussian kernel on `t`.
        normalized: Whether to divide by `sqrt(I(x; x) I(t; t))`; 0 where that is 0.
        weights: Nonnegative example weights, [*b, n], normalized here; 0 = absent.

    Returns:
        The mutual information in nats, [*b]; nonnegative, 0 if `x` or `t` is constant.

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, the two do not hold the same
            examples, or a concrete width is not positive.

    Note:
        Without a width the released code takes ten times the median *squared* distance, which is not a
        length; the median distance taken here moves with the unit of the data.

    References:
        Yu et al. (2024), Cauchy–Schwarz divergence information bottleneck for regression.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [2.0]])
        >>> round(float(cs_qmi(x, x, normalized=True)), 4)
        1.0
    """
    x, w = pairwise.sample("x", x, weights)
    t, _ = pairwise.sample("t", t, weights)
    pairwise.same_examples("x", x, "t", t)
    sigma_x = pairwise.median_distance(x, x_weights=w) if sigma_x is None else sigma_x
    sigma_t = pairwise.median_distance(t, x_weights=w) if sigma_t is None else sigma_t
    log_k = pairwise.log_gaussian_gram(x, sigma=sigma_x)
    log_q = pairwise.log_gaussian_gram(t, sigma=sigma_t)
    value = _information(log_k, log_q, w)
    if not normalized:
        return value
    square = _information(log_k, log_k, w) * _information(log_q, log_q, w)
    positive = square > 0
    return jnp.where(positive, value / jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _information(
    log_k: Float[Array, "*b n n"], log_q: Float[Array, "*b n n"], w: Float[Array, "*b n"]
) -> Float[Array, "*b"]:
    density_x = logsumexp(log_k, -1, weights=w[..., None, :])
    density_t = logsumexp(log_q, -1, weights=w[..., None, :])
    joint = pairwise.log_mean(log_k + log_q, w, w)
    product = logsumexp(density_x, -1, weights=w) + logsumexp(density_t, -1, weights=w)
    return joint + product - 2.0 * logsumexp(density_x + density_t, -1, weights=w)


def conditional_cs(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b n q"],
    y_hat: Float[Array, "*b n q"],
    *,
    sigma_x: Numeric | None = None,
    sigma_y: Numeric | None = None,
    denominator: str = "paper",
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Estimate of the Cauchy–Schwarz divergence between p(y | x) and q(ŷ | x).

    Args:
        x: Inputs, [*b, n, d].
        y: Targets of the same examples, [*b, n, q].
        y_hat: Predictions for them, [*b, n, q].
        sigma_x: Width of the Gaussian kernel on `x`, a scalar or [*b]; by default its median distance.
        sigma_y: Width of the Gaussian kernel on `y` and `y_hat`; by default the median distance of `y`.
        denominator: `"paper"` divides by `(Σ_i K_ji)^2`, as the density estimate asks; `"code"` by
            `Σ_i K_ji^2`, as the paper's released code does.
        weights: Nonnegative example weights, [*b, n], normalized here; 0 = absent.

    Returns:
        The estimate, [*b]; 0, up to rounding, where `y_hat` equals `y`.

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, they do not hold the same examples,
            `denominator` is unknown, or a concrete width is not positive.

    Note:
        An estimate, not a divergence: it may be negative, and `y_hat = y` is not its minimizer. Its
        gradient decreases where predictions are many widths away from all targets: normalize the data
        and start from small outputs.

    References:
        Yu et al. (2024), Cauchy–Schwarz divergence information bottleneck for regression, eq. (18).

    Example:
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [2.0]])
        >>> float(conditional_cs(x, y, y, sigma_x=1.0, sigma_y=1.0))
        0.0
    """
    checks.one_of("denominator", denominator, ("paper", "code"))
    x, w = pairwise.sample("x", x, weights)
    y, _ = pairwise.sample("y", y, weights)
    y_hat, _ = pairwise.sample("y_hat", y_hat, weights)
    pairwise.same_examples("x", x, "y", y)
    checks.same_shape(y=y, y_hat=y_hat)
    sigma_x = pairwise.median_distance(x, x_weights=w) if sigma_x is None else sigma_x
    sigma_y = pairwise.median_distance(y, x_weights=w) if sigma_y is None else sigma_y
    neighbors = w[..., None, :]
    log_k = pairwise.log_gaussian_gram(x, sigma=sigma_x)
    if denominator == "paper":
        log_denominator = 2.0 * logsumexp(log_k, -1, weights=neighbors)
    else:
        log_denominator = logsumexp(2.0 * log_k, -1, weights=neighbors)

    def log_ratio(a: Array, b: Array) -> Array:
        log_gram = pairwise.log_gaussian_gram(a, b, sigma=sigma_y)
        log_joint = logsumexp(log_k + log_gram, -1, weights=neighbors)
        return logsumexp(log_joint - log_denominator, -1, weights=w)

    return log_ratio(y, y) + log_ratio(y_hat, y_hat) - 2.0 * log_ratio(y_hat, y)
