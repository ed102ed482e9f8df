"""The whole path of gradient descent on least squares, in closed form.

For (1/2n) ‖Z w − y‖², Z = U Σ Vᵀ, gradient descent from 0 with learning rate η is after T steps at

    w_T = V diag( (1 − (1 − η σ_k²/n)^T) / σ_k ) Uᵀ y,

and for T = ∞ at the solution of least norm. Directions with a small σ_k are learned late: the test peak of double
descent at p ≈ n, which is theirs, shows only if the optimizer goes on long enough for the condition number,
(σ_1/σ_min)².

References:
    Liu, Flanigan (2023), Understanding the role of optimization in double descent.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


class SpectralPath(NamedTuple):
    """Gradient descent at some numbers of steps.

    Attributes:
        train: Mean squared error on the training data. [k]
        test: On the test data. [k]
        weights: w_T. [k, p]
        learning_rate: η.
    """

    train: Float[Array, " k"]
    test: Float[Array, " k"]
    weights: Float[Array, "k p"]
    learning_rate: Scalar


def gd_spectral_path(
    features: Float[Array, "n p"],
    targets: Float[Array, " n"],
    test_features: Float[Array, "m p"],
    test_targets: Float[Array, " m"],
    steps: Float[Array, " k"],
    *,
    learning_rate: Numeric | None = None,
) -> SpectralPath:
    """Errors of gradient descent from 0 on least squares after each number of steps, without taking any.

    Args:
        features: Z [n, p].
        targets: y [n].
        test_features: [m, p]
        test_targets: [m]
        steps: Numbers of steps T >= 0 [k], whole; infinity is allowed.
        learning_rate: η; n/σ_1² by default, half the largest stable one. Compare models at equal η T.

    Returns:
        A `SpectralPath`, float32 or wider.

    Raises:
        ValueError: If the shapes do not fit or a number of steps is negative.

    Note:
        Take float64 where p ≈ n: there the smallest singular values, which make the peak, are lost in float32. Those
        below max(n, p) ε σ_1 count as zero, as in ``jnp.linalg.pinv``.

    Example:
        >>> path = gd_spectral_path(
        ...     jnp.eye(2), jnp.array([1.0, 2.0]), jnp.ones((1, 2)), jnp.array([3.0]), jnp.array([0.0, jnp.inf]))
        >>> print(path.train, path.test)
        [2.5 0. ] [9. 0.]
    """
    features, targets = checks.floating("features", features), checks.floating("targets", targets)
    test_features = checks.floating("test_features", test_features)
    test_targets = checks.floating("test_targets", test_targets)
    checks.rank("features", features, 2)
    checks.not_empty("features", features)
    n, p = features.shape
    if targets.shape != (n,):
        raise ValueError(
            f"targets must hold one number per row of features, shape ({n},); got {targets.shape}."
        )
    if test_features.ndim != 2 or test_features.shape[1] != p:
        raise ValueError(f"test_features must have {p} columns as features; got shape {test_features.shape}.")
    if test_targets.shape != test_features.shape[:1]:
        raise ValueError(
            f"test_targets must hold one number per row of test_features; got {test_targets.shape}."
        )
    checks.in_range("steps", steps, 0)
    steps = jnp.asarray(steps, features.dtype)
    checks.rank("steps", steps, 1)
    u, s, vt = jnp.linalg.svd(features, full_matrices=False)
    if learning_rate is None:
        learning_rate = n / s[0] ** 2
    rate = jnp.asarray(learning_rate, features.dtype)
    null = s <= jnp.finfo(s.dtype).eps * max(n, p) * s[0]
    safe = jnp.where(null, 1, s)
    learned = jnp.where(null, 0, _learned(rate * safe**2 / n, steps[:, None]))
    weights = jnp.matmul(
        learned * jnp.matmul(targets, u, precision="highest") / safe, vt, precision="highest"
    )

    def error(z: Float[Array, "m p"], y: Float[Array, " m"]) -> Float[Array, " k"]:
        return jnp.mean((jnp.matmul(weights, z.T, precision="highest") - y) ** 2, axis=1)

    return SpectralPath(error(features, targets), error(test_features, test_targets), weights, rate)


def condition_number(features: Float[Array, "n p"]) -> Scalar:
    """The condition number (σ_1/σ_min)² of least squares, over all min(n, p) singular values.

    Args:
        features: Z [n, p].

    Returns:
        The ratio; infinite or very large where Z has not full rank.

    Raises:
        ValueError: If Z is not a floating matrix.

    Example:
        >>> print(condition_number(jnp.diag(jnp.array([1.0, 10.0]))).round(2))
        100.0
    """
    features = checks.floating("features", features)
    checks.rank("features", features, 2)
    s = jnp.linalg.svd(features, compute_uv=False)
    return (s[0] / s[-1]) ** 2


def _learned(x: Float[Array, " r"], steps: Float[Array, "k 1"]) -> Float[Array, "k r"]:
    """1 − (1 − x)^T for x > 0, precise for small x and T = ∞."""
    below = x < 1
    slow = -jnp.expm1(steps * jnp.log1p(-jnp.where(below, x, 0.5)))
    # Beyond 1 it goes to and fro, for whole T.
    fast = 1 - jnp.power(1 - jnp.where(below, 1.5, x), steps)
    return jnp.where(below, slow, fast)
