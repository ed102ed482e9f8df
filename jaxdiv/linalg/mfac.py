"""Inverse of a damped empirical Fisher matrix from m gradients: the static algorithm of M-FAC.

For gradients g_1 … g_m, the rows of G, and a damping λ,

    F = λ I + (1/m) Σ_i g_i g_iᵀ,        F_i = F_{i−1} + g_i g_iᵀ / m,    F_0 = λ I.

The Sherman-Morrison recursion with v_i = F_{i−1}⁻¹ g_i and q_i = m + g_iᵀ v_i,

    v_i = g_i/λ − Σ_{j<i} (v_jᵀ g_i / q_j) v_j,        F⁻¹ = I/λ − Σ_i v_i v_iᵀ / q_i,

is an elimination of the m×m matrix K = mλ I + G Gᵀ: with K = C Cᵀ (Cholesky) q_i = C_ii²/λ, and the rows of

    W = C⁻¹ G,        w_i = √(λ/q_i) v_i,        F⁻¹ = (I − Wᵀ W)/λ,

cost O(dm²) once, as one triangular solve; then a product costs O(dm), an element O(m).

References:
    Frantar, Kurtic and Alistarh (2021), M-FAC: Efficient matrix-free approximations of second-order information,
    section 3.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Numeric

_HIGHEST = jax.lax.Precision.HIGHEST


def factored_gram(
    gram: Float[Array, "m m"], damping: Numeric
) -> tuple[Float[Array, "m m"], Float[Array, ""]]:
    """Returns the lower Cholesky factor of mλ I + G Gᵀ and λ, raised to where rounding lets it exist.

    Rounding moves the eigenvalues of G Gᵀ by some eps times its trace, the sum of the squared norms.
    """
    m = gram.shape[0]
    floor = 4 * float(np.finfo(gram.dtype).eps) * jnp.trace(gram) / m
    damping = jnp.maximum(jnp.asarray(damping, gram.dtype), floor)
    return jnp.linalg.cholesky(gram + m * damping * jnp.eye(m, dtype=gram.dtype)), damping


@pytree_dataclass
class MFAC:
    """(I − Wᵀ W)/λ, the inverse of a damped empirical Fisher matrix.

    Attributes:
        factors: W. [m, d]
        damping: λ.
    """

    factors: Float[Array, "m d"]
    damping: Float[Array, ""]

    def inverse(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns F⁻¹ x, for one vector or several, in O(dm) each."""
        x = jnp.asarray(x)
        d = self.factors.shape[1]
        if x.shape[-1:] != (d,):
            raise ValueError(f"x must have {d} entries on the last axis; got shape {x.shape}.")
        wide = checks.floating("x", x)
        parts = jnp.matmul(wide, self.factors.T, precision=_HIGHEST)
        inverse = (wide - jnp.matmul(parts, self.factors, precision=_HIGHEST)) / self.damping
        return inverse.astype(x.dtype)

    def diagonal(self) -> Float[Array, " d"]:
        """Returns the diagonal of F⁻¹."""
        return (1 - jnp.sum(self.factors**2, axis=0)) / self.damping

    def element(self, i: Int[Array, "*b"] | int, j: Int[Array, "*b"] | int) -> Float[Array, "*b"]:
        """Returns the elements (i, j) of F⁻¹ in O(m) each."""
        product = jnp.sum(self.factors[:, i] * self.factors[:, j], axis=0)
        return ((jnp.asarray(i) == jnp.asarray(j)) - product) / self.damping


def mfac(grads: Float[Array, "m d"], damping: Numeric = 1e-5) -> MFAC:
    """Prepares products with, and elements of, the inverse of F = λ I + Gᵀ G / m.

    For a fixed set of gradients, as in pruning. For a window that moves use `mfac_window`.

    Args:
        grads: G, one gradient per row; half precisions are raised to float32.
        damping: λ > 0; the paper's value.

    Returns:
        The inverse, with the methods `inverse`, `diagonal` and `element`.

    Raises:
        ValueError: If the gradients are not a floating matrix, or a concrete `damping` is not positive.

    Note:
        λ is at least 4 eps times the mean squared norm of the gradients (5e-7 times it in float32). A product that
        is small against ‖x‖/λ is a difference of large numbers: its relative error is about eps (λ + λmax)/λ.

    References:
        Frantar, Kurtic and Alistarh (2021), section 3.1.

    Example:
        >>> fisher = mfac(jnp.array([[2.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), damping=1.0)
        >>> [round(float(x), 4) for x in (*fisher.inverse(jnp.ones(3)), fisher.element(1, 1))]
        [0.3333, 0.1111, 1.0, 0.1111]
    """
    grads = checks.floating("grads", grads)
    checks.rank("grads", grads, 2)
    checks.not_empty("grads", grads)
    checks.in_range("damping", damping, 0.0, open_low=True)
    gram = jnp.matmul(grads, grads.T, precision=_HIGHEST)
    cholesky, damping = factored_gram(gram, damping)
    return MFAC(jax.scipy.linalg.solve_triangular(cholesky, grads, lower=True), damping)
