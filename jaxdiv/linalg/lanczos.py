"""Lanczos tridiagonalization with full reorthogonalization, and extreme eigenpairs from it.

From q₁ = start/‖start‖,

    β_{j+1} q_{j+1} = A q_j − α_j q_j − β_j q_{j−1},   α_j = ⟨q_j, A q_j⟩,

gives A Q = Q T + β_{k+1} q_{k+1} e_kᵀ with T tridiagonal. Each new vector is orthogonalized twice
against all before it, so that no eigenvalue appears twice by rounding. An eigenpair (θ, s) of T gives
the Ritz pair (θ, Q s) with ‖A Q s − θ Q s‖ = β_{k+1} |s_k|.

References:
    Lanczos (1950), An iteration method for the solution of the eigenvalue problem.
    Parlett (1998), The symmetric eigenvalue problem, chapter 13.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Vector


class Tridiagonal(NamedTuple):
    """A = Q T Qᵀ on a Krylov space.

    Attributes:
        diagonal: α, the diagonal of T. [k]
        off_diagonal: β₂ … β_k. [k - 1]
        basis: Q, each leaf with a leading axis k.
        residual: β_{k+1}, 0 when the space is invariant.
        size: The dimension of the Krylov space, at most k. Beyond it `diagonal` repeats its first
            entry, `off_diagonal` and `basis` are 0.
    """

    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k_1"]
    basis: PyTree
    residual: Float[Array, ""]
    size: Int[Array, ""]

    def matrix(self) -> Float[Array, "k k"]:
        """The matrix T."""
        below = jnp.diag(self.off_diagonal, -1)
        return jnp.diag(self.diagonal) + below + below.T


class Eigenpairs(NamedTuple):
    """Ritz pairs.

    Attributes:
        values: [k]
        vectors: Orthonormal; each leaf has a leading axis k.
        residuals: ‖A v − θ v‖, which bounds the distance of each value to the spectrum. [k]
        converged: Whether the residual is at most `tol` times the largest absolute value. [k]
    """

    values: Float[Array, " k"]
    vectors: PyTree
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]


def lanczos(matvec: Callable[[PyTree], PyTree], start: PyTree, *, num_steps: int) -> Tridiagonal:
    """Tridiagonalizes a symmetric operator on the Krylov space of `start`.

    Args:
        matvec: Symmetric linear map on pytrees like `start`.
        start: The first vector, of any norm but 0.
        num_steps: Products with the operator, at most the dimension; k vectors are kept.

    Returns:
        The tridiagonal matrix and the orthonormal basis, in float32 or wider.

    Raises:
        ValueError: If `matvec` does not match `start` or `num_steps` is out of range.

    Note:
        Costs k² n beside the k products. Eigenvalues of any multiplicity are found once, and only
        those whose eigenvectors `start` is not orthogonal to.

    References:
        Parlett (1998), The symmetric eigenvalue problem, section 13.1.

    Example:
        >>> t = lanczos(lambda v: jnp.array([1.0, 2.0, 3.0]) * v, jnp.ones(3), num_steps=3)
        >>> jnp.linalg.eigvalsh(t.matrix()).round(4)
        Array([1., 2., 3.], dtype=float32)
    """
    start = vectors.widened("start", start)
    checks.in_range("num_steps", num_steps, 1, optax.tree.size(start))
    product = vectors.operator("matvec", matvec, "start", start)
    q = vectors.uniform(start)
    q = optax.tree.scale(1 / optax.tree.norm(q), q)
    eps = vectors.epsilon(q)

    def step(
        carry: tuple[Vector, Vector, Float[Array, ""]], j: Int[Array, ""]
    ) -> tuple[tuple[Vector, Vector, Float[Array, ""]], tuple[Array, Array]]:
        basis, q, scale = carry
        basis = vectors.insert(basis, j, q)
        a_q = product(q)
        alpha = optax.tree.vdot(q, a_q)
        scale = jnp.maximum(scale, optax.tree.norm(a_q))
        rest, _ = vectors.orthogonalize(basis, a_q)
        beta = optax.tree.norm(rest)
        beta = jnp.where(beta > 10 * eps * scale, beta, 0)
        q = optax.tree.scale(jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1), 0), rest)
        return (basis, q, scale), (alpha, beta)

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(q)))
    (basis, _, _), (alpha, beta) = jax.lax.scan(
        step, (vectors.empty_basis(q, num_steps), q, zero), jnp.arange(num_steps)
    )
    inside = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(beta[:-1] > 0).astype(bool)])
    return Tridiagonal(
        jnp.where(inside, alpha, alpha[0]), beta[:-1], basis, beta[-1], jnp.sum(inside, dtype=jnp.int32)
    )


def eigsh(
    matvec: Callable[[PyTree], PyTree],
    start: PyTree,
    *,
    k: int,
    num_steps: int | None = None,
    which: str = "largest",
    tol: float = 1e-4,
) -> Eigenpairs:
    """Returns k extreme eigenpairs of a symmetric operator by one Lanczos run.

    Args:
        matvec: Symmetric linear map on pytrees like `start`.
        start: The first vector, usually random.
        k: Number of pairs.
        num_steps: Products with the operator; default ``min(n, 2 k + 20)``.
        which: ``"largest"``, ``"smallest"``, or ``"magnitude"`` (largest absolute value), in this
            order in the result.
        tol: For `Eigenpairs.converged`.

    Returns:
        The pairs. Where the Krylov space has fewer than k dimensions, the pairs beyond it have value
        NaN, vector 0, residual infinity and are not converged.

    Raises:
        ValueError: If `which` is unknown, ``k > num_steps``, or `matvec` does not match `start`.

    References:
        Parlett (1998), The symmetric eigenvalue problem, section 13.2.

    Example:
        >>> diagonal = jnp.arange(1.0, 6.0)
        >>> eigsh(lambda v: diagonal * v, jnp.ones(5), k=2).values.round(4)
        Array([5., 4.], dtype=float32)
    """
    scores = {"largest": lambda t: t, "smallest": lambda t: -t, "magnitude": jnp.abs}
    score = checks.lookup("which", which, scores)
    if num_steps is None:
        num_steps = min(optax.tree.size(start), 2 * k + 20)
    checks.in_range("k", k, 1, num_steps)
    t = lanczos(matvec, start, num_steps=num_steps)

    # Outside the Krylov space T is padded with a value that is no eigenvalue, to be told apart.
    bound = 1 + jnp.max(jnp.abs(t.diagonal)) + 2 * jnp.sum(t.off_diagonal)
    inside = jnp.arange(num_steps) < t.size
    values, s = jnp.linalg.eigh(t._replace(diagonal=jnp.where(inside, t.diagonal, bound)).matrix())
    real = jnp.arange(num_steps) < t.size  # eigh sorts upward and the padding is the largest
    order = jnp.argsort(jnp.where(real, score(values), -jnp.inf), descending=True)[:k]

    real, values, s = real[order], values[order], s[:, order]
    residuals = jnp.where(real, t.residual * jnp.abs(s[-1]), jnp.inf)
    return Eigenpairs(
        jnp.where(real, values, jnp.nan),
        vectors.combine(t.basis, jnp.where(real, s, 0).T),
        residuals,
        residuals <= tol * jnp.max(jnp.where(real, jnp.abs(values), 0)),
    )
