"""Stabilized bi-conjugate gradients for general operators, right preconditioned.

With the shadow residual r̂ = r₀ and M ≈ A⁻¹:

    ρ = ⟨r̂, r⟩,  p ← r + (ρ/ρ₋)(α/ω)(p − ω v),  v = A M p,  α = ρ / ⟨r̂, v⟩,
    s = r − α v,  t = A M s,  ω = ⟨t, s⟩ / ⟨t, t⟩,  x ← x + α M p + ω M s,  r ← s − ω t.

A vanishing ρ, ⟨r̂, v⟩ or ω ends the run at the last iterate; the caller starts again with a new shadow
residual. Signs are free: a breakdown is a small cosine, never a small or negative number.

References:
    van der Vorst (1992), Bi-CGSTAB, section 3.
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
    rho: Float[Array, ""]
    norm: Float[Array, ""]
    steps: Int[Array, ""]
    sound: Bool[Array, ""]


def bicgstab(
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
        max_steps: Most steps, of two products with A each.
        preconditioner: The operator M.
    """
    eps = vectors.epsilon(r)
    shadow = r

    def running(state: _State) -> Bool[Array, ""]:
        return state.sound & (state.norm > tol) & (state.steps < max_steps)

    def step(state: _State) -> _State:
        m_p = preconditioner(state.p)
        v = matvec(m_p)
        against = optax.tree.vdot(shadow, v)
        sound = jnp.isfinite(against) & (jnp.abs(against) > eps * optax.tree.norm(v))
        alpha = jnp.where(sound, state.rho / jnp.where(sound, against, 1), 0)
        s = optax.tree.add_scale(state.r, -alpha, v)
        m_s = preconditioner(s)
        t = matvec(m_s)
        tt, ts = optax.tree.vdot(t, t), optax.tree.vdot(t, s)
        norm_s = optax.tree.norm(s)
        # When s is already zero to rounding, the half step is the solution.
        half = (norm_s <= tol) | ~(jnp.isfinite(tt) & (tt > 0))
        omega = jnp.where(half, 0, ts / jnp.where(half, 1, tt))
        full = jax.tree.map(lambda i, j, k: i + alpha * j + omega * k, state.x, m_p, m_s)
        x = optax.tree.where(half, optax.tree.add_scale(state.x, alpha, m_p), full)
        r = optax.tree.where(half, s, optax.tree.add_scale(s, -omega, t))
        norm = optax.tree.norm(r)
        rho = optax.tree.vdot(shadow, r)
        usable = ~half & (jnp.abs(ts) > eps * jnp.sqrt(tt) * norm_s) & (jnp.abs(rho) > eps * norm)
        beta = rho / state.rho * alpha / jnp.where(usable, omega, 1)
        p = jax.tree.map(lambda i, j, k: i + beta * (j - omega * k), r, state.p, v)
        return _State(optax.tree.where(sound, x, state.x), r, p, rho, norm, state.steps + 1, sound & usable)

    norm = optax.tree.norm(r)
    zero = optax.tree.zeros_like(r)
    start = _State(zero, r, r, norm**2, norm, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    end = jax.lax.while_loop(running, step, start)
    return end.x, end.steps
