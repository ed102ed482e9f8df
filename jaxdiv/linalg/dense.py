"""Dense factorizations of a matrix-free operator: LU with partial pivoting, and Cholesky.

The operator is applied to the n unit vectors at once; n² numbers are stored. The factor is computed
once and serves the transposed system too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Inner, Matvec, Vector


def materialize(matvec: Matvec, like: Vector) -> Float[Array, "n n"]:
    """Returns the matrix of a linear map, on pytrees in the order of ``ravel_pytree``.

    Args:
        matvec: Linear map on pytrees like `like`.
        like: A floating pytree of n numbers; half precisions are raised to float32.

    Returns:
        The matrix, from n products computed at once.

    Raises:
        ValueError: If `matvec` does not match `like` or `like` is not floating.

    Example:
        >>> materialize(lambda v: {"a": 2 * v["a"]}, {"a": jnp.ones(2)})
        Array([[2., 0.],
               [0., 2.]], dtype=float32)
    """
    like = vectors.widened("like", like)
    product = vectors.operator("matvec", matvec, "like", like)
    flat, unravel = ravel_pytree(vectors.uniform(like))

    def column(unit: Array) -> Array:
        return ravel_pytree(product(unravel(unit)))[0]

    columns: Callable[[Array], Array] = jax.vmap(column)
    return columns(jnp.eye(flat.size, dtype=flat.dtype)).T


def _direct(solver: Callable[[Array], Array]) -> Inner:
    def inner(matvec: Matvec, r: Vector, tol: Any, max_steps: Any) -> tuple[Vector, Int[Array, ""]]:
        del matvec, tol, max_steps
        flat, unravel = ravel_pytree(r)
        return unravel(solver(flat)), jnp.ones((), jnp.int32)

    return inner


def lu(matrix: Float[Array, "n n"]) -> tuple[Inner, Inner]:
    """Returns the direct solvers of the matrix and of its transpose."""
    factor = jax.scipy.linalg.lu_factor(matrix)
    return (
        _direct(lambda r: jax.scipy.linalg.lu_solve(factor, r)),
        _direct(lambda r: jax.scipy.linalg.lu_solve(factor, r, trans=1)),
    )


def cholesky(matrix: Float[Array, "n n"]) -> tuple[Inner, Inner]:
    """Returns the direct solver of the symmetric positive definite matrix, twice."""
    factor = jax.scipy.linalg.cho_factor(matrix)
    inner = _direct(lambda r: jax.scipy.linalg.cho_solve(factor, r))
    return inner, inner
