"""Minimal residuals for symmetric operators, definite or not, singular or not.

The preconditioned Lanczos recurrence, in vectors u (dual) and z = M u with ⟨u_i, z_j⟩ = δ_ij,

    γ_{j+1} u_{j+1} = A z_j − δ_j u_j − γ_j u_{j−1},   δ_j = ⟨z_j, A z_j⟩,

gives a tridiagonal matrix whose QR factorization is updated by one Givens rotation (c, s) a step.
The M-norm of the residual is |η_j|, η_{j+1} = −s_{j+1} η_j: it never grows. On a singular and
inconsistent system ‖A r_j‖ = |η_j| ‖(ρ̂, c γ_{j+1})‖ falls to rounding level while |η_j| does not; the
run then ends at the least-squares solution. That γ_{j+1} ⟨u_{j−1}, z_{j+1}⟩ = ⟨z_{j−1}, (A − Aᵀ) z_j⟩ is 0
tells, without a product, whether A is symmetric where the run has been.

References:
    Paige and Saunders (1975), Solution of sparse indefinite systems of linear equations, sections 5-6.
    Elman, Silvester and Wathen (2014), Finite elements and fast iterative solvers, section 2.4.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec, Vector


class _State(NamedTuple):
    x: Vector
    u: tuple[Vector, Vector]  # u_{j-1}, u_j
    z: Vector
    w: tuple[Vector, Vector]  # search directions w_{j-1}, w_j
    gamma: Float[Array, ""]
    eta: Float[Array, ""]
    c: tuple[Float[Array, ""], Float[Array, ""]]
    s: tuple[Float[Array, ""], Float[Array, ""]]
    norm_a: Float[Array, ""]  # the largest column of the tridiagonal matrix
    image: Float[Array, ""]  # the largest ‖A z‖ / ‖z‖
    steps: Int[Array, ""]
    symmetric: Bool[Array, ""]
    sound: Bool[Array, ""]


def _recurrence(v: Vector, a: Float[Array, ""], u: Vector, b: Float[Array, ""], w: Vector) -> Vector:
    return jax.tree.map(lambda i, j, k: i - a * j - b * k, v, u, w)


def minres(
    matvec: Matvec,
    r: Vector,
    tol: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    preconditioner: Matvec,
    asymmetry: float = math.inf,
) -> tuple[Vector, Int[Array, ""]]:
    """Returns an approximate solution of ``A x = r`` from zero, and the steps taken.

    Args:
        matvec: The symmetric operator A.
        r: Right-hand side of norm 1.
        tol: The relative residual, in the norm of M, at which to stop.
        max_steps: Most products with A.
        preconditioner: The symmetric positive definite operator M.
        asymmetry: An operator seen to be further from its transpose than this fraction of its norm
            ends the run, with the solution 0.
    """
    eps = vectors.epsilon(r)

    def normalized(u: Vector) -> tuple[Vector, Vector, Float[Array, ""]]:
        z = preconditioner(u)
        gamma = jnp.sqrt(jnp.maximum(optax.tree.vdot(u, z), 0))
        inverse = jnp.where(gamma > 0, 1 / jnp.where(gamma > 0, gamma, 1), 0)
        return optax.tree.scale(inverse, u), optax.tree.scale(inverse, z), gamma

    u, z, gamma_1 = normalized(r)
    goal = tol * gamma_1

    def running(state: _State) -> Bool[Array, ""]:
        return state.sound & (jnp.abs(state.eta) > goal) & (state.steps < max_steps)

    def step(state: _State) -> _State:
        (c_old, c), (s_old, s) = state.c, state.s
        a_z = matvec(state.z)
        delta = optax.tree.vdot(state.z, a_z)
        u = _recurrence(a_z, delta, state.u[1], state.gamma, state.u[0])
        u, z, gamma = normalized(u)
        rho_hat = c * delta - c_old * s * state.gamma
        rho = jnp.hypot(rho_hat, gamma)
        epsilon, upper = s_old * state.gamma, s * delta + c_old * c * state.gamma
        norm_a = jnp.maximum(state.norm_a, jnp.sqrt(state.gamma**2 * (state.steps > 0) + delta**2 + gamma**2))
        # Otherwise the residual is orthogonal to the range of A as far as the dtype can tell.
        sound = jnp.isfinite(rho) & (jnp.hypot(rho_hat, c * gamma) > 50 * eps * norm_a)
        inverse = 1 / jnp.where(sound, rho, 1)
        c_new, s_new = rho_hat * inverse, gamma * inverse
        w = optax.tree.scale(inverse, _recurrence(state.z, epsilon, state.w[0], upper, state.w[1]))
        x = optax.tree.add_scale(state.x, c_new * state.eta, w)
        # A step along a null vector that passed: rounding of A x would exceed the residual.
        image = jnp.maximum(state.image, optax.tree.norm(a_z) / optax.tree.norm(state.z))
        rounding = eps * image * optax.tree.norm(x)
        twist = jnp.abs(gamma * optax.tree.vdot(state.u[0], z))
        # Where γ_j was small, u_j is rounding in part, and so is its twist.
        symmetric = ~(twist * state.gamma > asymmetry * norm_a**2)
        sound = sound & symmetric & (rounding < 0.1 * jnp.abs(state.eta) / gamma_1)
        return _State(
            optax.tree.where(sound, x, state.x),
            (state.u[1], u),
            z,
            (state.w[1], w),
            gamma,
            -s_new * state.eta,
            (c, c_new),
            (s, s_new),
            norm_a,
            image,
            state.steps + 1,
            symmetric,
            sound,
        )

    zero = optax.tree.zeros_like(r)
    one, none = jnp.ones_like(gamma_1), jnp.zeros_like(gamma_1)
    sound = (gamma_1 > 0) & jnp.isfinite(gamma_1)
    start = _State(
        zero, (zero, u), z, (zero, zero), gamma_1, gamma_1, (one, one), (none, none), none, none,
        jnp.zeros((), jnp.int32), jnp.array(True), sound,
    )  # fmt: skip
    end = jax.lax.while_loop(running, step, start)
    return optax.tree.where(end.symmetric, end.x, zero), end.steps
