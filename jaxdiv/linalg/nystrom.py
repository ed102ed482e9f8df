"""Randomized Nyström approximation of a positive semidefinite operator: preconditioner and inverse.

With Ω an orthonormal Gaussian sketch of ℓ columns, Y = A Ω and a shift ν at rounding level,

    Â = Y_ν (Ωᵀ Y_ν)⁻¹ Y_νᵀ = U Λ Uᵀ,   Y_ν = Y + ν Ω   (ν is taken off Λ again).

For the system (A + μ I) x = b it gives

    P⁻¹ = (λ_ℓ + μ) U (Λ + μ I)⁻¹ Uᵀ + (I − U Uᵀ),      preconditioner: κ(P^{-1/2} (A + μ I) P^{-1/2}) is a
                                                          small constant once ℓ exceeds twice the
                                                          effective dimension tr A (A + μ I)⁻¹,
    (Â + μ I)⁻¹ = U (Λ + μ I)⁻¹ Uᵀ + (I − U Uᵀ) / μ,     inverse: exact where rank A ≤ ℓ.

References:
    Frangella, Tropp and Udell (2023), Randomized Nyström preconditioning, algorithm 2.1, eq. (1.3).
    Hataya and Yamada (2023), Nyström method for accurate and scalable implicit differentiation, eq. (6).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Key, Numeric
from jaxdiv.linalg import vectors

_HIGHEST = jax.lax.Precision.HIGHEST


@pytree_dataclass
class Nystrom:
    """U Λ Uᵀ + μ I as a preconditioner: ``preconditioner=`` of `linalg.solve` with ``ridge`` μ.

    Attributes:
        basis: U, orthonormal where `eigenvalues` is positive. [n, l]
        eigenvalues: Λ, downward, at least 0. [l]
        ridge: μ.
    """

    basis: Float[Array, "n l"]
    eigenvalues: Float[Array, " l"]
    ridge: Float[Array, ""]

    def __call__(self, v: PyTree) -> PyTree:
        """Returns P⁻¹ v, for a pytree of n numbers."""
        return self._apply(v, (self.eigenvalues[-1] + self.ridge) / (self.eigenvalues + self.ridge), 1.0)

    def inverse(self, v: PyTree) -> PyTree:
        """Returns (U Λ Uᵀ + μ I)⁻¹ v, for a pytree of n numbers."""
        return self._apply(v, 1 / (self.eigenvalues + self.ridge), 1 / self.ridge)

    def _apply(self, v: PyTree, inside: Float[Array, " l"], outside: Numeric) -> PyTree:
        v = vectors.widened("v", v)
        flat, unravel = ravel_pytree(vectors.uniform(v))
        if flat.size != self.basis.shape[0]:
            raise ValueError(f"v must hold {self.basis.shape[0]} numbers; got {flat.size}.")
        basis = self.basis.astype(flat.dtype)
        parts = jnp.dot(basis.T, flat, precision=_HIGHEST)
        flat = outside * flat + jnp.dot(basis, (inside - outside) * parts, precision=_HIGHEST)
        return vectors.cast_like(unravel(flat.astype(basis.dtype)), v)


def nystrom(
    matvec: Callable[[PyTree], PyTree], like: PyTree, key: Key, *, rank: int, ridge: Numeric
) -> Nystrom:
    """Sketches a symmetric positive semidefinite operator.

    Args:
        matvec: A, on pytrees like `like`.
        like: A floating pytree of n numbers; half precisions are raised to float32.
        key: Random key.
        rank: ℓ, at most n: as many products with A, computed at once, and ℓ vectors kept.
        ridge: μ > 0, that of the system to be solved.

    Returns:
        A linear map for ``preconditioner=`` with its `inverse`. It has no derivative.

    Raises:
        ValueError: If `matvec` does not match `like`, `rank` is not in 1 … n, or a concrete `ridge` is
            not positive.

    Note:
        Eigenvalues below ``sqrt(n) eps ‖A‖`` are not seen. Negative ones are taken for 0: then it is no
        longer close to the inverse.

    References:
        Frangella, Tropp and Udell (2023), Randomized Nyström preconditioning, algorithm 2.1.

    Example:
        >>> from jaxdiv.linalg.solve import solve
        >>> scales = jnp.array([1e4, 1e3, 1.0, 1.0, 1.0, 1.0])
        >>> matvec = lambda v: scales * v
        >>> sketch = nystrom(matvec, scales, jax.random.key(0), rank=3, ridge=1.0)
        >>> x, info = solve(matvec, jnp.ones(6), ridge=1.0, preconditioner=sketch)
        >>> int(info.status), (x * (scales + 1)).round(3)
        (0, Array([1., 1., 1., 1., 1., 1.], dtype=float32))
    """
    like = vectors.widened("like", like)
    product = vectors.operator("matvec", matvec, "like", like)
    flat, unravel = ravel_pytree(vectors.uniform(like))
    checks.in_range("rank", rank, 1, flat.size)
    checks.in_range("ridge", ridge, 0.0, open_low=True)

    def column(v: Array) -> Array:
        return ravel_pytree(product(unravel(v)))[0]

    columns: Callable[[Array], Array] = jax.vmap(column, in_axes=1, out_axes=1)
    omega = jnp.linalg.qr(jax.random.normal(key, (flat.size, rank), flat.dtype))[0]
    y = jax.lax.stop_gradient(columns(omega))
    eps = float(np.finfo(flat.dtype).eps)
    nu = np.sqrt(flat.size) * eps * jnp.linalg.norm(y)
    y = y + nu * omega
    core = jnp.dot(omega.T, y, precision=_HIGHEST)
    # A square root of the core by its eigenvalues: what rounding made negative is left out, where a
    # Cholesky factorization would fail.
    w, q = jnp.linalg.eigh((core + core.T) / 2)
    kept = w > eps * jnp.max(jnp.abs(w))
    root = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, w, 1)), 0)
    u, s, _ = jnp.linalg.svd(jnp.dot(y, q * root, precision=_HIGHEST), full_matrices=False)
    eigenvalues = jnp.maximum(s**2 - nu, 0)
    return Nystrom(u, eigenvalues, jax.lax.stop_gradient(jnp.asarray(ridge, flat.dtype)))
