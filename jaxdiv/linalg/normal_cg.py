"""Conjugate gradients on the normal equations: for any operator, definite or not, singular or not.

With B = A M, M ≈ A⁻¹, and x = M y, the iterate y minimizes ‖r₀ − B y‖ over the Krylov space of BᵀB:

    s = Bᵀ r,  q = B p,  α = ⟨s, s⟩ / ⟨q, q⟩,  y ← y + α p,  r ← r − α q,  s₊ = Bᵀ r,
    p ← s₊ + (⟨s₊, s₊⟩ / ⟨s, s⟩) p.

BᵀB itself is never applied: this form, which carries r, loses κ(A) digits where conjugate gradients on
BᵀB would lose κ(A)². The steps still grow like κ(A). On a singular system y stays in the range of Bᵀ: a
consistent one ends at the solution of least norm, an inconsistent one, told by ‖s‖ at rounding level while
‖r‖ is not, at the least-squares solution.

References:
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems, section 10.
    Björck (1996), Numerical methods for least squares problems, algorithm 7.4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec, Vector


class _State(NamedTuple):
    y: Vector
    r: Vector
    p: Vector
    ss: Float[Array, ""]
    norm: Float[Array, ""]
    largest: Float[Array, ""]  # the largest ‖B p‖² / ‖p‖² so far, at most ‖B‖²
    steps: Int[Array, ""]
    sound: Bool[Array, ""]


def normal_cg(
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
        max_steps: Most steps, of one product with A and one with its transpose each.
        preconditioner: The operator M.
    """
    eps = vectors.epsilon(r)
    transpose = jax.linear_transpose(lambda v: matvec(preconditioner(v)), r)
    image = transpose(r)[0]
    # Two products square the scale of A; in these units neither overflows.
    largest = optax.tree.norm(image, ord="inf")
    usable = (largest > 0) & jnp.isfinite(largest)
    unit = 1 / jnp.where(usable, largest, 1)

    def running(s: _State) -> Bool[Array, ""]:
        return s.sound & (s.norm > tol) & (s.steps < max_steps)

    def step(s: _State) -> _State:
        q = optax.tree.scale(unit, matvec(preconditioner(s.p)))
        qq = optax.tree.vdot(q, q)
        sound = (qq > 0) & jnp.isfinite(qq)
        alpha = jnp.where(sound, s.ss / jnp.where(sound, qq, 1), 0)
        y = optax.tree.add_scale(s.y, alpha, s.p)
        r = optax.tree.add_scale(s.r, -alpha, q)
        gradient = optax.tree.scale(unit, transpose(r)[0])
        ss = optax.tree.vdot(gradient, gradient)
        norm = optax.tree.norm(r)
        largest = jnp.maximum(s.largest, qq / optax.tree.vdot(s.p, s.p))
        # Below rounding the gradient is noise: r is orthogonal to the range.
        downhill = jnp.sqrt(ss) > 4 * eps * jnp.sqrt(largest) * norm
        p = optax.tree.add_scale(gradient, ss / s.ss, s.p)
        return _State(y, r, p, ss, norm, largest, s.steps + 1, sound & downhill)

    s = optax.tree.scale(unit, image)
    ss = optax.tree.vdot(s, s)
    zero = optax.tree.zeros_like(r)
    start = _State(
        zero, r, s, ss, optax.tree.norm(r), jnp.zeros_like(ss), jnp.zeros((), jnp.int32), usable
    )  # fmt: skip
    end = jax.lax.while_loop(running, step, start)
    return preconditioner(optax.tree.scale(unit, end.y)), end.steps
