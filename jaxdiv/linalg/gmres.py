"""One cycle of GMRES, right preconditioned; the caller restarts it from the true residual.

Arnoldi builds an orthonormal basis V of the Krylov space of A M and the Hessenberg matrix
A M V_j = V_{j+1} H_j. With the QR factorization of H_j, updated by one Givens rotation a step, the
residual ‖r − A M V_j y‖ of the minimizing y is the last entry of Qᵀ e₁: it is known before y is.

References:
    Saad and Schultz (1986), GMRES, sections 3.1-3.2.
    Saad (2003), Iterative methods for sparse linear systems, algorithm 9.5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec, Vector


class _State(NamedTuple):
    basis: Vector  # m + 1 vectors
    upper: Float[Array, "m m"]  # R, the identity where no step has been taken
    rotation: Float[Array, "n n"]  # Qᵀ, m + 1 rows
    last: Float[Array, ""]
    steps: Int[Array, ""]
    kept: Int[Array, ""]  # columns of R in use
    sound: Bool[Array, ""]


def gmres(
    matvec: Matvec,
    r: Vector,
    tol: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    preconditioner: Matvec,
    restart: int,
) -> tuple[Vector, Int[Array, ""]]:
    """Returns an approximate solution of ``A x = r`` from zero, and the steps taken.

    Args:
        matvec: The operator A.
        r: Right-hand side of norm 1.
        tol: The norm of the residual at which to stop.
        max_steps: Most products with A.
        preconditioner: The operator M.
        restart: The length m of the cycle; static.
    """
    m = restart
    dtype = jnp.result_type(*jax.tree.leaves(r))
    eps = vectors.epsilon(r)

    def running(s: _State) -> Bool[Array, ""]:
        return s.sound & (s.last > tol) & (s.steps < jnp.minimum(max_steps, m))

    def step(s: _State) -> _State:
        j = s.steps
        v = matvec(preconditioner(jax.tree.map(lambda rows: rows[j], s.basis)))
        size = optax.tree.norm(v)
        v, h = vectors.orthogonalize(s.basis, v)
        below = optax.tree.norm(v)
        # Below rounding the direction is noise: the Krylov space is invariant.
        fresh = below > 4 * eps * size
        below = jnp.where(fresh, below, 0)
        v = optax.tree.scale(jnp.where(fresh, 1 / jnp.where(fresh, below, 1), 0), v)

        column = s.rotation @ h.at[j + 1].set(below)
        radius = jnp.hypot(column[j], column[j + 1])
        sound = jnp.isfinite(radius) & (radius > 4 * eps * size)
        safe = jnp.where(sound, radius, 1)
        c, t = column[j] / safe, column[j + 1] / safe
        q, q_next = s.rotation[j], s.rotation[j + 1]
        rotation = s.rotation.at[j].set(c * q + t * q_next).at[j + 1].set(c * q_next - t * q)
        column = jnp.where(jnp.arange(m) < j, column[:m], 0).at[j].set(radius)
        return _State(
            vectors.insert(s.basis, j + 1, v),
            jnp.where(sound, s.upper.at[:, j].set(column), s.upper),
            jnp.where(sound, rotation, s.rotation),
            jnp.where(sound, jnp.abs(rotation[j + 1, 0]), s.last),
            j + 1,
            jnp.where(sound, j + 1, s.kept),
            sound,
        )

    zero = jnp.zeros((), jnp.int32)
    start = _State(
        vectors.insert(vectors.empty_basis(r, m + 1), 0, r),
        jnp.eye(m, dtype=dtype),
        jnp.eye(m + 1, dtype=dtype),
        optax.tree.norm(r),
        zero,
        zero,
        jnp.ones((), bool),
    )
    end = jax.lax.while_loop(running, step, start)
    rhs = jnp.where(jnp.arange(m) < end.kept, end.rotation[:m, 0], 0)
    y = jax.scipy.linalg.solve_triangular(end.upper, rhs)
    x = preconditioner(vectors.combine(jax.tree.map(lambda rows: rows[:m], end.basis), y))
    return x, end.steps
