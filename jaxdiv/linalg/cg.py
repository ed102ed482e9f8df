"""Preconditioned conjugate gradients for symmetric positive definite operators.

With z = M r, M ≈ A⁻¹ symmetric positive definite:

    α = ⟨r, z⟩ / ⟨p, A p⟩,  x ← x + α p,  r ← r − α A p,  β = ⟨r₊, z₊⟩ / ⟨r, z⟩,  p ← z₊ + β p.

The 1/α are the pivots of a matrix whose eigenvalues lie within those of M A. A curvature ⟨p, A p⟩ that
is not positive, or pivots further apart than the dtype resolves (a singular system with a right-hand side
outside the range), end the run at the last iterate.

References:
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec, Vector


class _State(NamedTuple):
    x: Vector
    r: Vector
    p: Vector
    rz: Float[Array, ""]
    norm: Float[Array, ""]
    shortest: Float[Array, ""]  # the smallest α so far
    steps: Int[Array, ""]
    sound: Bool[Array, ""]


def cg(
    matvec: Matvec,
    r: Vector,
    tol: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    preconditioner: Matvec,
) -> tuple[Vector, Int[Array, ""]]:
    """Returns an approximate solution of ``A x = r`` from zero, and the steps taken.

    Args:
        matvec: The operator A.
        r: Right-hand side of norm 1.
        tol: The norm of the updated residual at which to stop.
        max_steps: Most products with A.
        preconditioner: The operator M.
    """
    eps = vectors.epsilon(r)

    def running(s: _State) -> Bool[Array, ""]:
        return s.sound & (s.norm > tol) & (s.steps < max_steps)

    def step(s: _State) -> _State:
        a_p = matvec(s.p)
        curvature = optax.tree.vdot(s.p, a_p)
        positive = (curvature > 0) & jnp.isfinite(curvature)
        alpha = s.rz / jnp.where(positive, curvature, 1)
        shortest = jnp.minimum(s.shortest, alpha)
        sound = positive & (eps * alpha < shortest)
        x = optax.tree.where(sound, optax.tree.add_scale(s.x, alpha, s.p), s.x)
        r = optax.tree.add_scale(s.r, -alpha, a_p)
        z = preconditioner(r)
        rz = optax.tree.vdot(r, z)
        p = optax.tree.add_scale(z, rz / s.rz, s.p)
        norm = optax.tree.norm(r)
        return _State(x, r, p, rz, norm, shortest, s.steps + 1, sound & (rz > 0))

    z = preconditioner(r)
    rz = optax.tree.vdot(r, z)
    zero = optax.tree.zeros_like(r)
    steps = jnp.zeros((), jnp.int32)
    start = _State(zero, r, z, rz, optax.tree.norm(r), jnp.full_like(rz, jnp.inf), steps, rz > 0)
    end = jax.lax.while_loop(running, step, start)
    return end.x, end.steps
