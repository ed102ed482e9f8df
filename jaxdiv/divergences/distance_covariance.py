r"""Distance covariance and its joint and concatenated forms: dependence between vectors of any dimension.

With `a_kl = |x_k - x_l|` and the double-centered `A_kl = a_kl - ā_k. - ā_.l + ā_..` (`B` likewise for y):

    dCov^2(x, y)  = (1/n^2) Σ_kl A_kl B_kl                       V-statistic, nonnegative
    dCor^2(x, y)  = dCov^2(x, y) / sqrt(dCov^2(x, x) dCov^2(y, y))
    JdCov^2(x_1, …, x_d; c) = (1/n^2) Σ_kl Π_i (c - A^(i)_kl) - c^d
    CCdCov^2(ŷ; s_1, …, s_d) = dCov^2(ŷ, (s_1, …, s_d))

The unbiased form centers with sums over n - 2 and (n - 1)(n - 2), has a diagonal of zeros and averages over
n(n - 3). A sum of pairwise dCov^2(ŷ, s_i) misses dependence on intersections of the s_i (fairness
gerrymandering); the joint and concatenated forms see it. JdCov^2 measures the dependence among all its
arguments: `JdCov^2(ŷ, s_1, …) - c JdCov^2(s_1, …)` is the part that involves ŷ.

References: Székely, Rizzo, Bakirov (2007), Measuring and testing dependence by correlation of distances;
Székely, Rizzo (2014), Partial distance correlation with methods for dissimilarities; Chakraborty, Zhang
(2019), Distance metrics for measuring joint dependence; Lee, Antonio, Avanzi, Marchi, Zhou (2025), Machine
learning with multitype protected attributes: intersectional fairness through regularisation.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.distances import distances
from jaxdiv.core.numerics import safe_sqrt
from jaxdiv.core.types import Numeric
from jaxdiv.divergences import pairwise


def _centered(a: Float[Array, "*b n n"], w: Float[Array, "*b n"]) -> Float[Array, "*b n n"]:
    rows = jnp.einsum("...kl,...l->...k", a, w, precision=jax.lax.Precision.HIGHEST)
    grand = jnp.sum(w * rows, axis=-1)[..., None, None]
    return a - rows[..., :, None] - rows[..., None, :] + grand


def _u_centered(a: Float[Array, "*b n n"], present: Float[Array, "*b n"]) -> Float[Array, "*b n n"]:
    n = jnp.sum(present, axis=-1)[..., None, None]
    rows = jnp.einsum("...kl,...l->...k", a, present, precision=jax.lax.Precision.HIGHEST)
    grand = jnp.sum(present * rows, axis=-1)[..., None, None] / ((n - 1.0) * (n - 2.0))
    centered = a - (rows[..., :, None] + rows[..., None, :]) / (n - 2.0) + grand
    return jnp.where(jnp.eye(a.shape[-1], dtype=bool), 0.0, centered)


def _product(
    x: Float[Array, "*b n p"], y: Float[Array, "*b n q"], w: Float[Array, "*b n"], unbiased: bool
) -> Float[Array, "*b"]:
    a, b = distances(x), distances(y)
    if not unbiased:
        return pairwise.mean_cross(_centered(a, w) * _centered(b, w), w, w)
    present = jnp.where(w > 0, 1.0, 0.0).astype(x.dtype)
    n = jnp.sum(present, axis=-1)
    total = pairwise.mean_cross(_u_centered(a, present) * _u_centered(b, present), present, present)
    return total / (n * (n - 3.0))


def _pair(
    x: Array, y: Array, weights: Array | None, unbiased: bool
) -> tuple[Array, Array, Float[Array, "*b n"]]:
    x, w = pairwise.sample("x", x, weights)
    y, _ = pairwise.sample("y", y, weights)
    pairwise.same_examples("x", x, "y", y)
    if unbiased:
        if x.shape[-2] < 4:
            raise ValueError(f"unbiased=True needs at least 4 examples; got {x.shape[-2]}.")
        if weights is not None and checks.concrete(weights) and not np.isin(weights, (0, 1)).all():
            raise ValueError("weights must be 0 or 1 with unbiased=True, which counts examples; got others.")
    return x, y, w


def dcov2(
    x: Float[Array, "*b n p"],
    y: Float[Array, "*b n q"],
    *,
    unbiased: bool = False,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Squared distance covariance.

    Args:
        x: Points, [*b, n, p].
        y: Points of the same examples, [*b, n, q].
        unbiased: Whether to take the U-centered form, which may be negative; needs four examples. The
            V-statistic is positive even for independent small samples.
        weights: Nonnegative example weights, [*b, n], normalized here; 0 = absent. With `unbiased` they
            must be 0 or 1: a positive weight counts once.

    Returns:
        dCov^2, [*b]. Scales linearly with each argument; unchanged by rotations and translations.

    Raises:
        ValueError: If an argument is not floating or has the wrong rank, the two do not hold the same
            examples, or `unbiased` meets fewer than 4 examples or other weights.

    Note:
        The gradient of the distance between equal points is taken as 0.

    References:
        Székely, Rizzo, Bakirov (2007), Measuring and testing dependence by correlation of distances.

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> float(dcov2(x, x))
        0.25
    """
    x, y, w = _pair(x, y, weights, unbiased)
    return _product(x, y, w, unbiased)


def dcor2(
    x: Float[Array, "*b n p"],
    y: Float[Array, "*b n q"],
    *,
    unbiased: bool = False,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Squared distance correlation.

    Args:
        x: Points, [*b, n, p].
        y: Points of the same examples, [*b, n, q].
        unbiased: Whether to take the bias-corrected form, which may be negative; needs four examples.
        weights: As in `dcov2`.

    Returns:
        dCor^2, [*b], in [0, 1] (bias-corrected: at most 1); 0 if `x` or `y` is constant.

    Raises:
        ValueError: As `dcov2`.

    References:
        Székely, Rizzo, Bakirov (2007), Measuring and testing dependence by correlation of distances;
        Székely, Rizzo (2013), The distance correlation t-test of independence in high dimension.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [5.0]])
        >>> round(float(dcor2(x, -3.0 * x)), 4)
        1.0
    """
    x, y, w = _pair(x, y, weights, unbiased)
    # Root by root: the product of two small variances would underflow.
    scale = safe_sqrt(_product(x, x, w, unbiased)) * safe_sqrt(_product(y, y, w, unbiased))
    positive = scale > 0
    return jnp.where(positive, _product(x, y, w, unbiased) / jnp.where(positive, scale, 1.0), 0.0)


def joint_dcov2(
    arrays: Sequence[Float[Array, "*b n _"]],
    *,
    c: Numeric = 1.0,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Squared joint distance covariance: mutual dependence of two or more vectors.

    Args:
        arrays: At least two arrays [*b, n, p_i] of the same examples.
        c: Nonnegative weight of lower-order dependence: a dependence among k of the d vectors
            enters with c^(d - k).
        weights: Nonnegative example weights, [*b, n], normalized here; 0 = absent.

    Returns:
        JdCov^2, [*b]; with two arrays it is `dcov2` for every `c`.

    Raises:
        ValueError: If there are fewer than two arrays, they do not hold the same examples, one is not
            floating or has the wrong rank, or a concrete `c` is negative.

    Note:
        It includes the dependence among the protected attributes themselves, which is constant in the
        predictions: subtract `c * joint_dcov2(attributes)` to see what involves the predictions.
        `c^d` cancels inside each product, not between two means.

    References:
        Chakraborty, Zhang (2019), Distance metrics for measuring joint dependence with application to
        causal inference.

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> float(joint_dcov2([x, x]))
        0.25
    """
    if len(arrays) < 2:
        raise ValueError(f"arrays must hold at least 2 arrays; got {len(arrays)}.")
    checks.in_range("c", c, 0.0)
    samples = [pairwise.sample(f"arrays[{i}]", x, weights) for i, x in enumerate(arrays)]
    for i, (x, _) in enumerate(samples):
        pairwise.same_examples("arrays[0]", samples[0][0], f"arrays[{i}]", x)
    w = samples[0][1]
    # prod_i (c + U_i) - c^d, built factor by factor.
    excess, power = jnp.zeros((), w.dtype), jnp.ones((), w.dtype)
    for x, _ in samples:
        u = -_centered(distances(x), w)
        excess, power = excess * (u + c) + power * u, power * c
    return pairwise.mean_cross(excess, w, w)


def concat_dcov2(
    y_hat: Float[Array, "*b n q"],
    attributes: Sequence[Float[Array, "*b n _"]],
    *,
    standardize: bool | Sequence[bool] = True,
    unbiased: bool = False,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Concatenated distance covariance between predictions and all protected attributes at once.

    Args:
        y_hat: Predictions, [*b, n, q].
        attributes: One or more arrays [*b, n, p_i]; categories one-hot.
        standardize: Whether to bring each column of an attribute to unit variance: for all, or one
            flag per attribute (False leaves one-hot columns as they are).
        unbiased: As in `dcov2`.
        weights: As in `dcov2`.

    Returns:
        dCov^2 between `y_hat` and the concatenation of the attributes, [*b].

    Raises:
        ValueError: If there is no attribute, the flags do not match, or as `dcov2`.

    Note:
        The scale of each attribute decides its share; a constant column has none.

    References:
        Lee et al. (2025), Machine learning with multitype protected attributes: intersectional
        fairness through regularisation.

    Example:
        >>> a, b = jnp.array([[0.0], [0.0], [1.0], [1.0]]), jnp.array([[0.0], [1.0], [0.0], [1.0]])
        >>> y_hat = (a != b).astype(jnp.float32)
        >>> bool(concat_dcov2(y_hat, [a, b]) > 0.05), abs(float(dcov2(y_hat, a))) < 1e-6
        (True, True)
    """
    flags = [standardize] * len(attributes) if isinstance(standardize, bool) else list(standardize)
    if not attributes or len(flags) != len(attributes):
        raise ValueError(
            "attributes must hold at least one array and standardize one flag per array; "
            f"got {len(attributes)} and {len(flags)}."
        )
    columns: list[Array] = []
    for i, (x, flag) in enumerate(zip(attributes, flags, strict=True)):
        x, w = pairwise.sample(f"attributes[{i}]", x, weights)
        if columns:
            pairwise.same_examples("attributes[0]", columns[0], f"attributes[{i}]", x)
        columns.append(_standardized(x, w) if flag else x)
    return dcov2(y_hat, jnp.concatenate(columns, axis=-1), unbiased=unbiased, weights=weights)


def _standardized(x: Float[Array, "*b n p"], w: Float[Array, "*b n"]) -> Float[Array, "*b n p"]:
    x = x - jnp.sum(w[..., None] * x, axis=-2, keepdims=True)
    variance = jnp.sum(w[..., None] * jnp.square(x), axis=-2, keepdims=True)
    positive = variance > 0
    return jnp.where(positive, x / jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
