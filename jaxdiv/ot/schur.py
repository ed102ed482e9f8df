r"""The Schur complement of the entropic dual's negative Hessian, and its Cholesky factor.

    1/epsilon [ D_r   P   ] (df)   (u)        D_r = diag(r + epsilon k_r)
              [ P^T   D_c ] (dg) = (v),       D_c = diag(c + epsilon k_c)

with the masses r, c of P and the stiffness k of the penalties, by ``S = D_c - P^T D_r^{-1} P`` on dg. Rows and
columns without mass, or that cannot move (infinite stiffness), take no part. Where both marginals are exact, S
has the null vector 1, and ``c c^T / sum(c)`` is added.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, Int

from jaxdiv.linalg.cg import cg


def participates(diagonal: Array) -> Array:
    """Whether a row or column has mass and can move."""
    return (diagonal > 0) & jnp.isfinite(diagonal)


def complement(
    plan: Float[Array, "n m"], row: Float[Array, " n"], column: Float[Array, " m"], singular: bool
) -> Float[Array, "m m"]:
    """S, with ones on the diagonal of columns that take no part.

    Args:
        plan: P.
        row: Diagonal of D_r; inf where f cannot move, 0 without mass.
        column: Diagonal of D_c, alike.
        singular: Whether both marginals are exact, so that S needs a gauge.
    """
    rows, part = participates(row), participates(column)
    scaled = plan * jnp.where(rows, jax.lax.rsqrt(jnp.where(rows, row, 1.0)), 0.0)[:, None]
    scaled = jnp.where(part, scaled, 0.0)
    gram = jnp.matmul(scaled.T, scaled, precision=jax.lax.Precision.HIGHEST)
    matrix = jnp.diag(jnp.where(part, column, 1.0)) - gram
    if singular:
        gauge = jnp.where(part, column, 0.0)
        matrix = matrix + gauge[:, None] * gauge / jnp.sum(gauge)
    return matrix


def factor(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Cholesky factor of the matrix scaled to a unit diagonal, and the scale.

    A ridge of the size of its rounding keeps a nearly singular matrix positive definite.
    """
    diagonal = jnp.diagonal(matrix)
    scale = jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    scaled = matrix * scale[:, None] * scale
    ridge = 4 * jnp.finfo(matrix.dtype).eps * jnp.sqrt(matrix.shape[0])
    return jnp.linalg.cholesky(scaled + ridge * jnp.eye(matrix.shape[0], dtype=matrix.dtype)), scale


def solve(factored: tuple[Array, Array], rhs: Float[Array, " m"]) -> Float[Array, " m"]:
    """Solves with a factored complement."""
    chol, scale = factored
    return scale * jsl.cho_solve((chol, True), scale * rhs)


class Products(NamedTuple):
    """Products with P, or with its largest entries, for conjugate gradients.

    Attributes:
        forth: v [m] to P v.
        back: u [n] to P^T u.
        squares: ``sum_i P_ij^2 / D_r,i`` [m], what P takes from the diagonal of S.
    """

    forth: Callable[[Array], Array]
    back: Callable[[Array], Array]
    squares: Float[Array, " m"]


def whole(plan: Float[Array, "n m"], row: Float[Array, " n"], column: Float[Array, " m"]) -> Products:
    """Products with all of P."""
    plan = jnp.where(participates(column), plan, 0.0)
    times = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    squares = times(_inverse(row), plan**2)
    return Products(lambda v: times(plan, v), lambda u: times(u, plan), squares)


def largest(
    plan: Float[Array, "n m"], row: Float[Array, " n"], column: Float[Array, " m"], nonzeros: int
) -> Products:
    """Products with the largest entries of each row of P."""
    plan = jnp.where(participates(column), plan, 0.0)
    # Only float32 has a quick selection of the largest on CPU; ties cost nothing here.
    _, index = jax.lax.top_k(plan.astype(jnp.float32), nonzeros)
    entries = jnp.take_along_axis(plan, index, axis=1)

    def back(values: Float[Array, "n k"]) -> Float[Array, " m"]:
        return jnp.zeros(plan.shape[1], plan.dtype).at[index].add(values)

    return Products(
        lambda v: jnp.sum(entries * v[index], axis=1),
        lambda u: back(entries * u[:, None]),
        back(_inverse(row)[:, None] * entries**2),
    )


def _inverse(row: Array) -> Array:
    rows = participates(row)
    return jnp.where(rows, 1.0 / jnp.where(rows, row, 1.0), 0.0)


def iterate(
    products: Products,
    judge: Products,
    row: Float[Array, " n"],
    column: Float[Array, " m"],
    rhs: Float[Array, " m"],
    singular: bool,
    tol: Float[Array, ""],
    max_steps: Int[Array, ""],
) -> tuple[Float[Array, " m"], Float[Array, ""], Int[Array, ""]]:
    """Solves ``S x = rhs`` by conjugate gradients with the diagonal of S as preconditioner.

    Args:
        products: Products with P, or with its largest entries.
        judge: Products with P.
        row: Diagonal of D_r, as in `complement`.
        column: Diagonal of D_c, alike.
        rhs: Right-hand side [m].
        singular: Whether S needs a gauge.
        tol: Residual at which to stop, relative to the right-hand side.
        max_steps: Most iterations.

    Returns:
        The solution, its residual by `judge` relative to the right-hand side, and the iterations.
    """
    part, weight = participates(column), _inverse(row)
    column = jnp.where(part, column, 1.0)
    gauge = jnp.where(part, column, 0.0)
    least = jnp.finfo(rhs.dtype).eps * column
    diagonal = jnp.where(part, jnp.maximum(column - products.squares, least), 1.0)

    def matvec(by: Products, v: Array) -> Array:
        out = column * v - by.back(weight * by.forth(v))
        return out + gauge * jnp.vdot(gauge, v) / jnp.sum(gauge) if singular else out

    size = jnp.linalg.norm(rhs)
    safe = jnp.where(size > 0, size, 1.0)
    x, steps = cg(
        partial(matvec, products), rhs / safe, tol, max_steps, preconditioner=lambda v: v / diagonal
    )
    return safe * x, jnp.linalg.norm(rhs / safe - matvec(judge, x)), steps
