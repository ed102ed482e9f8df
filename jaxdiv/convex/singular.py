r"""Functions of the singular values of a matrix, with derivatives that survive ties and zeros.

    F(A) = U diag(f(s)) Vᵀ,   A = U diag(s) Vᵀ

For M = Uᵀ dA V with symmetric part M⁺ and skew part M⁻,

    dF = U (Θ ∘ M⁺ + Ω ∘ M⁻) Vᵀ + (I - U Uᵀ) dA V diag(f/s) Vᵀ,
    Θ_ij = (f_i - f_j)/(s_i - s_j),  Ω_ij = (f_i + f_j)/(s_i + s_j),

where a quotient 0/0 is f'(s_i). Differentiating through the decomposition itself divides by s_i - s_j.

References:
    Noferini (2017), A formula for the Fréchet derivative of a generalized matrix function.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
Spectrum = Callable[[Float[Array, "*b k"], Float[Array, "..."]], Float[Array, "*b k"]]


def polar(a: Float[Array, "*b m n"]) -> Float[Array, "*b m n"]:
    """The factor U Vᵀ over the singular values that are not 0 to rounding: a subgradient of ‖A‖_nuclear."""
    rounding = max(a.shape[-2:]) * float(np.finfo(a.dtype).eps)
    return _map(_nonzero, a, jnp.asarray(rounding, a.dtype))


def leading(a: Float[Array, "*b m n"]) -> Float[Array, "*b m n"]:
    """The u vᵀ of the first singular value, 0 for a zero matrix: a subgradient of the spectral norm."""
    return _map(_first, a, jnp.zeros((), a.dtype))


def clip(a: Float[Array, "*b m n"], level: Float[Array, "..."]) -> Float[Array, "*b m n"]:
    """The matrix with its singular values cut at `level`, which broadcasts with them."""
    return _map(jnp.minimum, a, level)


def values(a: Float[Array, "*b m n"]) -> Float[Array, "*b k"]:
    """The singular values in descending order; their first derivative is finite at ties."""
    return jnp.linalg.svd(a, compute_uv=False)


@jax.custom_jvp
def nuclear_norm(a: Float[Array, "*b m n"]) -> Float[Array, "*b"]:
    """The sum of the singular values; its gradient is `polar`."""
    return jnp.sum(values(a), -1)


@nuclear_norm.defjvp
def _nuclear_norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return nuclear_norm(*primals), jnp.sum(polar(*primals) * tangents[0], (-2, -1))


@jax.custom_jvp
def spectral_norm(a: Float[Array, "*b m n"]) -> Float[Array, "*b"]:
    """The largest singular value; its gradient is `leading`."""
    return values(a)[..., 0]


@spectral_norm.defjvp
def _spectral_norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return spectral_norm(*primals), jnp.sum(leading(*primals) * tangents[0], (-2, -1))


def _nonzero(s: Array, rounding: Array) -> Array:
    return (s > rounding * s[..., :1]).astype(s.dtype)


def _first(s: Array, level: Array) -> Array:
    return ((jnp.arange(s.shape[-1]) == 0) & (s > level)).astype(s.dtype)


def _map(f: Spectrum, a: Array, level: Array) -> Array:
    if a.shape[-2] < a.shape[-1]:
        return jnp.swapaxes(_tall(f, jnp.swapaxes(a, -1, -2), level), -1, -2)
    return _tall(f, a, level)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tall(f: Spectrum, a: Array, level: Array) -> Array:
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return _matmul(u * f(s, level)[..., None, :], vt)


@_tall.defjvp
def _tall_jvp(
    f: Spectrum, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    a, level = primals
    da, dlevel = tangents
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    ut, v = jnp.swapaxes(u, -1, -2), jnp.swapaxes(vt, -1, -2)
    da_v = _matmul(da, v)
    m = _matmul(ut, da_v)
    mt = jnp.swapaxes(m, -1, -2)
    fs, diagonal = jax.jvp(f, (s, level), (jnp.diagonal(m, axis1=-2, axis2=-1), dlevel))
    slope = jax.jvp(f, (s, level), (jnp.ones_like(s), jnp.zeros_like(level)))[1][..., :, None]
    theta = _quotient(fs[..., :, None] - fs[..., None, :], s[..., :, None] - s[..., None, :], slope)
    omega = _quotient(fs[..., :, None] + fs[..., None, :], s[..., :, None] + s[..., None, :], slope)
    eye = jnp.eye(s.shape[-1], dtype=bool)
    inner = jnp.where(eye, diagonal[..., None, :], (theta * (m + mt) + omega * (m - mt)) / 2)
    ratio = jnp.diagonal(omega, axis1=-2, axis2=-1)[..., None, :]
    outer = (da_v - _matmul(u, m)) * ratio
    return _matmul(u * fs[..., None, :], vt), _matmul(_matmul(u, inner) + outer, vt)


def _quotient(numerator: Array, denominator: Array, at_zero: Array) -> Array:
    zero = denominator == 0
    return jnp.where(zero, at_zero, numerator / jnp.where(zero, 1.0, denominator))
