"""Learned step size quantization: a uniform quantizer whose step is trained by gradient descent.

    q(v) = s · round(clip(v/s, −Q_N, Q_P)),        signed: Q_N = 2^{b−1}, Q_P = 2^{b−1} − 1,
                                                   unsigned: Q_N = 0,     Q_P = 2^b − 1.

The rounding counts as the identity in derivatives:

    ∂q/∂v = 1 for −Q_N < v/s < Q_P, else 0,
    ∂q/∂s = round(v/s) − v/s for −Q_N < v/s < Q_P, else −Q_N or Q_P.

The gradient of s is multiplied by 1/√(N Q_P), with N the number of weights that share s, so that s moves, relative to
its size, about as much as the weights do.

References:
    Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned step size quantization, eqs. (1)-(5).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks


def _levels(bits: int, signed: bool) -> tuple[int, int]:
    least = 2 if signed else 1
    if bits < least:
        raise ValueError(f"bits must be at least {least}{' where signed' if signed else ''}; got {bits}.")
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def lsq_scale(v: Float[Array, "..."], bits: int, *, signed: bool = True) -> Float[Array, ""]:
    """The first step s = 2 mean|v| / √Q_P.

    Args:
        v: What will be quantized, not all zero.
        bits: b.
        signed: Whether the levels go both ways.

    Returns:
        s, float32 or wider.

    Raises:
        ValueError: If `v` is not floating, or there are too few bits.

    Example:
        >>> round(float(lsq_scale(jnp.array([1.5, -1.5]), 3)), 4)
        1.7321
    """
    return 2 * jnp.mean(jnp.abs(checks.floating("v", v))) / math.sqrt(_levels(bits, signed)[1])


def lsq_quantize(
    v: Float[Array, "..."], s: Float[Array, "..."], bits: int, *, signed: bool = True, grad_scale: bool = True
) -> Float[Array, "..."]:
    """Quantizes with a trained step.

    Args:
        v: Weights or activations.
        s: Step, positive: a scalar, or an array that broadcasts to `v` (one per channel, say).
        bits: b.
        signed: Whether the levels go both ways, as for weights; unsigned for activations after a ReLU.
        grad_scale: Whether the gradient of s is multiplied by 1/√(N Q_P).

    Returns:
        q(v), in the dtype of `v`. It is NaN where s is not positive.

    Raises:
        ValueError: If something is not floating, a concrete `s` is not positive or does not broadcast to the shape of
            `v`, or there are too few bits.

    Note:
        Nothing keeps s positive but its learning rate. A perturbation of the weights, as in sharpness-aware training,
        should leave s alone.

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), eqs. (1)-(5).

    Example:
        >>> lsq_quantize(jnp.array([-9.0, -0.6, 0.6, 1.2, 9.0]), 0.5, 3)
        Array([-2. , -0.5,  0.5,  1. ,  1.5], dtype=float32)
    """
    low, high = _levels(bits, signed)
    dtype = jnp.asarray(v).dtype
    v, s = checks.floating("v", v), checks.floating("s", s)
    checks.in_range("s", s, 0.0, open_low=True)
    if s.ndim > v.ndim or jnp.broadcast_shapes(v.shape, s.shape) != v.shape:
        raise ValueError(f"s must broadcast to the shape {v.shape} of v; got shape {s.shape}.")
    if grad_scale:
        factor = 1 / math.sqrt(max(v.size // max(s.size, 1), 1) * high)
        # The value s with `factor` times its derivative.
        s = s + (factor - 1) * (s - jax.lax.stop_gradient(s))
    s = jnp.where(s > 0, s, jnp.nan)
    ratio = v / s
    inside = (ratio > -low) & (ratio < high)
    level = jnp.where(inside, ratio, jax.lax.stop_gradient(jnp.clip(ratio, -low, high)))
    return (s * (level + jax.lax.stop_gradient(jnp.round(level) - level))).astype(dtype)
