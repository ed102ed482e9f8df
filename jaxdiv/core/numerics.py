"""Numerics in the log domain and near zero: what jax.numpy, jax.nn, jax.scipy and optax lack.

Every function here has finite derivatives where its value is defined, at the boundary too; NaN in the
data stays NaN. What those libraries do well is taken from them: ``jax.nn.log1mexp``,
``jax.nn.softplus``, ``jax.nn.log_sigmoid``, ``jax.scipy.special.entr``, ``optax.tree.norm``. What is
different here:

* `logsumexp`: jax gives NaN derivatives for a row of ``-inf``, and for zero weights the derivative
  with respect to the weights is NaN or 0 instead of ``exp(x_i - logsumexp)``.
* `logmeanexp`: jax has no weights and returns NaN for a row without elements; here it is ``-inf``.
* `xlogy`: jax differentiates 0·log 0 to ``-inf`` and NaN.
* `safe_norm`: ``optax.safe_norm`` takes at most two axes and under- and overflows in the squares.
* `compensated_sum`: no library has it.

References: Neumaier (1974), Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen;
Ogita, Rump, Oishi (2005), Accurate sum and dot product, alg. 3.1 (TwoSum).
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxdiv.core import checks

Axis: TypeAlias = int | Sequence[int] | None


def logsumexp(
    x: Float[Array, "..."],
    axis: Axis = None,
    *,
    weights: Float[Array, "..."] | None = None,
    where: Bool[Array, "..."] | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """``log sum_i w_i exp(x_i)``, ``-inf`` with zero gradient where the sum is empty or zero.

    Args:
        x: Exponents; ``-inf`` is allowed.
        axis: Axis or axes to reduce; all by default.
        weights: Nonnegative weights that broadcast with `x`. Where one is 0, `x` may hold anything.
        where: Elements to include; the others may hold anything.
        keepdims: Whether reduced axes stay with size one.

    Returns:
        The reduced array in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` or `weights` is not floating point, or `axis` names no axis or one twice.

    Example:
        >>> bool(jnp.isneginf(logsumexp(jnp.full(3, -jnp.inf))))
        True
        >>> jax.grad(logsumexp)(jnp.full(3, -jnp.inf)).tolist()
        [0.0, 0.0, 0.0]
    """
    x = checks.floating("x", x)
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    if weights is None:
        axes = checks.axes("x", x, axis)
        shift = _shift(x, axes)
        terms = jnp.exp(x - shift)
    else:
        weights = checks.floating("weights", weights)
        x, weights = jnp.broadcast_arrays(x, weights)
        axes = checks.axes("x", x, axis)
        zero = weights == 0
        x = jnp.where(zero & ~jnp.isfinite(x), -jnp.inf, x)
        shift = _shift(jnp.where(zero, -jnp.inf, x), axes)
        # Elements of weight 0 may stand far above the shift; capped, they give no inf * 0.
        cap = jnp.where(zero, np.log(np.finfo(x.dtype).max) / 2, jnp.inf)
        terms = weights * jnp.exp(jnp.minimum(x - shift, cap))
    total = jnp.sum(terms, axes, keepdims=True)
    empty = total == 0
    out = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + shift)
    return out if keepdims else jnp.squeeze(out, axes)


def _shift(x: Array, axes: tuple[int, ...]) -> Array:
    top = jax.lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf))
    return jnp.where(jnp.isfinite(top), top, 0.0)


def logmeanexp(
    x: Float[Array, "..."],
    axis: Axis = None,
    *,
    weights: Float[Array, "..."] | None = None,
    where: Bool[Array, "..."] | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """``log (sum_i w_i exp(x_i) / sum_i w_i)``, ``-inf`` with zero gradient where nothing counts.

    Args:
        x: Exponents; ``-inf`` is allowed.
        axis: Axis or axes to reduce; all by default.
        weights: Nonnegative weights that broadcast with `x`; 1 by default.
        where: Elements to include.
        keepdims: Whether reduced axes stay with size one.

    Returns:
        The reduced array in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` or `weights` is not floating point.

    Example:
        >>> float(logmeanexp(jnp.zeros(5)))
        0.0
    """
    x = checks.floating("x", x)
    weights = jnp.ones_like(x) if weights is None else checks.floating("weights", weights)
    shape = jnp.broadcast_shapes(x.shape, weights.shape)
    mass = jnp.sum(jnp.broadcast_to(weights, shape), axis, keepdims=keepdims, where=where)
    total = logsumexp(x, axis, weights=weights, where=where, keepdims=keepdims)
    return total - jnp.log(jnp.where(mass == 0, 1.0, mass))


def xlogy(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x log y``, 0 with finite derivatives where ``x = 0`` and ``y`` is 0 or infinite.

    Args:
        x: Factors.
        y: Nonnegative arguments of the logarithm; broadcasts with `x`.

    Returns:
        The products in float32, or float64 where an input is float64. At ``x = 0`` the derivative
        in `x` is ``log y`` where that is finite and 0 elsewhere.

    Raises:
        ValueError: If `x` or `y` is not floating point.

    Example:
        >>> jax.grad(xlogy, (0, 1))(0.0, 0.0)
        (Array(0., dtype=float32, ...), Array(0., dtype=float32, ...))
    """
    x, y = checks.floating("x", x), checks.floating("y", y)
    return x * jnp.log(jnp.where((x == 0) & ((y == 0) | jnp.isinf(y)), 1.0, y))


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root, 0 with zero derivative at 0 and below (where rounding may have put a square).

    Args:
        x: Any shape.

    Returns:
        The roots in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` is not floating point.

    Example:
        >>> float(jax.grad(safe_sqrt)(0.0))
        0.0
    """
    x = checks.floating("x", x)
    return jnp.where(x <= 0, 0.0, jnp.sqrt(jnp.where(x <= 0, 1.0, x)))


def safe_norm(x: Float[Array, "..."], axis: Axis = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean norm over any axes, with zero derivative at 0.

    Args:
        x: Any shape.
        axis: Axis or axes to reduce; all by default.
        keepdims: Whether reduced axes stay with size one.

    Returns:
        The norms in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` is not floating point.

    Note:
        Scaled by the largest entry, so that squares neither overflow nor underflow.

    Example:
        >>> safe_norm(jnp.array([3e30, 4e30]))
        Array(5.e+30, dtype=float32)
    """
    x = checks.floating("x", x)
    axes = checks.axes("x", x, axis)
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0.0))
    # The reciprocal of a larger scale would be subnormal, and flushed to zero.
    scale = jnp.minimum(top, np.finfo(x.dtype).max / 8)
    scale = jnp.where((top > 0) & jnp.isfinite(top), scale, 1.0)
    out = scale * safe_sqrt(jnp.sum((x / scale) ** 2, axes, keepdims=True))
    return out if keepdims else jnp.squeeze(out, axes)


def two_sum(a: Float[Array, "*n"], b: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """``(s, e)`` with ``s = fl(a + b)`` and ``s + e = a + b`` exactly.

    Args:
        a: Any shape.
        b: Broadcasts with `a`; the same dtype.

    Returns:
        The rounded sum and its error.

    Example:
        >>> s, e = two_sum(jnp.float32(1e8), jnp.float32(1.0))
        >>> float(s), float(e)
        (100000000.0, 1.0)
    """
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jax.custom_jvp
def _sum_last(x: Float[Array, "*n m"]) -> Float[Array, "*n"]:
    high, low = x, jnp.zeros_like(x)
    while (m := high.shape[-1]) > 1:
        half = m // 2
        s, e = two_sum(high[..., :half], high[..., half : 2 * half])
        e = e + low[..., :half] + low[..., half : 2 * half]
        high = jnp.concatenate([s, high[..., 2 * half :]], -1)
        low = jnp.concatenate([e, low[..., 2 * half :]], -1)
    # The error of an infinite sum is NaN.
    return jnp.where(jnp.isfinite(high), high + low, high)[..., 0]


@_sum_last.defjvp
def _sum_last_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    # The sum is linear; the derivatives of the errors are exactly zero.
    return _sum_last(*primals), jnp.sum(tangents[0], -1)


def compensated_sum(
    x: Float[Array, "..."], axis: Axis = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """Sum as if accumulated in twice the precision and rounded once.

    Pairs are added by `two_sum` in a tree of ``log2 n`` vectorized levels and their errors are
    carried along, so that the error is ``eps |sum| + O(eps^2) sum |x|`` whatever cancels.

    Args:
        x: Any shape.
        axis: Axis or axes to reduce; all by default.
        keepdims: Whether reduced axes stay with size one.

    Returns:
        The sums in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` is not floating point.

    Note:
        XLA does not reassociate floating-point additions, so the compensation survives compilation
        (unless fast-math flags are set). Costs about eight additions per element.

    Example:
        >>> x = jnp.array([1e8, 1.0, -1e8, 1.0])
        >>> float(jnp.sum(x)), float(compensated_sum(x))
        (1.0, 2.0)
    """
    x = checks.floating("x", x)
    axes = checks.axes("x", x, axis)
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = jnp.transpose(x, [*kept, *axes]).reshape([x.shape[i] for i in kept] + [-1])
    out = _sum_last(flat) if x.size else jnp.zeros(flat.shape[:-1], x.dtype)
    return jnp.expand_dims(out, axes) if keepdims else out


def widen(x: ArrayLike) -> Array:
    """The array in float32, or in its own dtype where that is wider.

    Example:
        >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
        dtype('float32')
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
