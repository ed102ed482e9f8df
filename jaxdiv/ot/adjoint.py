r"""Derivatives of the solved potentials and of the value: those of the optimum, not of the iterations.

At the optimum ``g = T(g, theta)`` with T one Sinkhorn step, and theta everything the problem holds. With
``w = d_theta T`` (at fixed g) and kappa the derivative of the column update,

    (D_c / kappa - P^T U D_r^{-1} P) dg = (D_c / kappa) w,        D_r = diag(P1), D_c = diag(P^T 1),

U the derivative of the row update: the symmetric Schur complement of the Hessian of the dual, solved by
conjugate gradients, for a cost matrix in memory with its Cholesky factor as preconditioner. Columns without
mass follow the others, and those whose potential is held (kappa = 0) move by w alone. Where both
marginals are exact, only f_i + g_j is determined and ``c c^T / sum c`` fixes the constant; changes of the
weights then count as far as they leave the total masses equal.

The value is ``D(f, g, theta)`` at the maximum of the dual D, so that its derivative is the partial one in
theta: for the costs, the plan. Potentials at a bound that theta moves, as that of TV, move with it. Its own
derivative in turn sees f and g move, which makes Hessians right.

Of potentials that have not converged these are the derivatives of the linearization at hand; the value's is
exactly that of the dual bound ``D(f, g, theta)`` at fixed f and g.

References:
    Luise, Rudi, Pontil, Ciliberto (2018), Differential properties of Sinkhorn approximation.
    Cuturi, Teboul, Niles-Weed (2020), Supervised quantile normalization for low rank matrix factorization.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv import linalg
from jaxdiv.core import any_lane
from jaxdiv.ot import schur
from jaxdiv.ot.geometry import CostMatrix, capped_exp
from jaxdiv.ot.partial import Partial

if TYPE_CHECKING:
    from jaxdiv.ot.problem import Problem


@jax.custom_jvp
def potentials(problem: "Problem", f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The solved potentials as functions of the problem."""
    return f, g


@potentials.defjvp
def _potentials_jvp(primals: Any, tangents: Any) -> Any:
    problem, f, g = primals
    f, g = potentials(problem, f, g)
    if isinstance(problem.column, Partial):
        # Its update couples the columns; seen from the other side that is no matter.
        flipped, moved = problem.transpose(), tangents[0].transpose()
        dg, df = jax.jvp(lambda problem: potentials(problem, g, f), (flipped,), (moved,))[1]
        return (f, g), (df, dg)

    def rows(problem: "Problem", g: Array) -> Array:
        return problem.row_update(g)

    def step(problem: "Problem") -> Array:
        return problem.column_update(problem.row_update(g))

    dg = _solve(problem, f, g, jax.jvp(step, (problem,), (tangents[0],))[1])
    df = jax.jvp(rows, (problem, g), (tangents[0], dg))[1]
    return (f, g), (df, dg)


def _solve(problem: "Problem", f: Array, g: Array, w: Array) -> Array:
    """The dg with ``dg - T'(g) dg = w``."""
    s = problem.column_softmin(f)
    kappa = jax.jvp(
        lambda s: problem.column.update(s, problem.b, problem.epsilon), (s,), (jnp.ones_like(s),)
    )[1]
    c = problem.b * capped_exp((g - s) / problem.epsilon)
    part = (c > 0) & (kappa > 0)
    diagonal = jnp.where(part, c / jnp.where(part, kappa, 1.0), 1.0)
    gauge = jnp.where(part, c, 0.0) if problem.singular else None

    def below(dg: Array) -> Array:
        """How the column softmin moves with g."""
        return jax.jvp(lambda g: problem.column_softmin(problem.row_update(g)), (g,), (dg,))[1]

    def matvec(dg: Array) -> Array:
        dg = jnp.where(part, dg, 0.0)
        out = diagonal * dg - jnp.where(part, c * below(dg), 0.0)
        if gauge is not None:
            out = out + gauge * jnp.vdot(gauge, dg) / jnp.sum(gauge)
        return out

    held = jnp.where(part, 0.0, w)
    rhs = jnp.where(part, diagonal * w + c * below(held), 0.0)
    # Columns that take no part have ones on the diagonal of the preconditioner and zeros everywhere else.
    precondition = _preconditioner(problem, f, g, diagonal, part)
    rtol = 10 * float(jnp.finfo(w.dtype).eps)
    dg, _ = linalg.solve(matvec, rhs, method="cg", rtol=rtol, preconditioner=precondition)
    dg = jnp.where(part, dg, held)
    # Columns without mass follow the others, which do not see them.
    free = ~(c > 0) & (kappa > 0)
    seen = jnp.where(free, 0.0, dg)
    moved = jax.lax.cond(any_lane(jnp.any(free)), lambda dg: kappa * below(dg), jnp.zeros_like, seen)
    return jnp.where(free, w + moved, dg)


def _preconditioner(problem: "Problem", f: Array, g: Array, diagonal: Array, part: Array) -> Any:
    stop = jax.lax.stop_gradient
    problem, f, g, diagonal = stop((problem, f, g, diagonal))
    if not isinstance(problem.geometry.dense(), CostMatrix):
        return lambda v: v / diagonal
    plan = problem.plan(f, g)
    row = jnp.sum(plan, axis=1) + problem.epsilon * problem.row.stiffness(f, problem.a)
    column = jnp.where(part, diagonal, 0.0)
    factored = schur.factor(schur.complement(plan, row, column, problem.singular))
    return lambda v: schur.solve(factored, v)


@jax.custom_jvp
def value(problem: "Problem", f: Array, g: Array, dual: Float[Array, ""]) -> Float[Array, ""]:
    """The dual value at the solved potentials, already computed, as a function of the problem."""
    return dual


@value.defjvp
def _value_jvp(primals: Any, tangents: Any) -> Any:
    problem, f, g, dual = primals
    f, g = potentials(problem, f, g)

    def held(problem: "Problem") -> Array:
        return problem.dual(problem.row.held(f), problem.column.held(g))

    tangent = jax.jvp(held, (problem,), (tangents[0],))[1]
    return value(problem, f, g, dual), tangent
