r"""Transport regularized column by column, its dual and the derivatives of its solutions.

    min_P  <C, P> + sum_j Omega(t_j)      P1 = a, P^T 1 = b, P >= 0,  t_j the columns of P
    max_{f, g}  D = <f, a> + <g, b> - sum_j Omega*(f + g_j - C_j)

with P's columns the maximizers of Omega*, so that grad D = (a - P1, b - P^T 1). Given f, the best g_j is
known for some regularizers, which leaves the semi-dual ``<f, a> - sum_j Omega*_{b_j}(f - C_j)``.

With theta all that the problem holds, the solved potentials obey

    -grad^2 D (df, dg) = d_theta grad D dtheta,

a symmetric positive semidefinite system, singular along the constants of every connected part of the plan's
support. Its least-squares solution, by minimal residuals, gives dP where the plan is differentiable; changes
of a and b count as far as they leave the masses of the parts equal. The value is ``D(f, g, theta)``; its
first derivative is the partial one, by the envelope theorem, and its second one sees f and g move.

Rows and columns of weight 0 get no mass. Their potential ``f_i = min_j C_ij - g_j`` leaves the dual as it
is, and so is a subgradient of the value by that weight; for `Quadratic` it is the derivative from above.

References:
    Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport.
    Liu, Puigcerver, Blondel (2023), Sparsity-constrained optimal transport.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv import linalg
from jaxdiv.core import any_lane, pytree_dataclass
from jaxdiv.ot.geometry import Geometry, product
from jaxdiv.ot.problem import centered
from jaxdiv.ot.regularizers import maximizer


@pytree_dataclass
class SmoothProblem:
    """A problem with exact marginals, checked and in one dtype.

    Attributes:
        geometry: The cost.
        a: Weights of the rows [n].
        b: Weights of the columns [m].
        regularizer: `Quadratic`, `TopK` or `GroupLasso`.
    """

    geometry: Geometry
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    regularizer: Any

    def dense(self) -> "SmoothProblem":
        """The problem with its cost matrix in memory, unless it is to be streamed."""
        return SmoothProblem(self.geometry.dense(), self.a, self.b, self.regularizer)

    def evaluate(self, f: Array, g: Array) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """The dual value, and the row and column masses of the plan."""

        def total(f: Array, g: Array) -> Array:
            return jnp.sum(self._columns(lambda _, s: self.regularizer.conjugate(s), f, g))

        total_value, masses = jax.value_and_grad(total, (0, 1))(f, g)
        return jnp.vdot(f, self.a) + jnp.vdot(g, self.b) - total_value, masses

    def evaluate_semi(self, f: Array) -> tuple[Float[Array, ""], Array, tuple[Array, Array]]:
        """The semi-dual value, the best g, and the row and column masses of the plan."""

        def total(f: Array, shift: Array) -> tuple[Array, Array]:
            def block(cost: Array, b: Array, shift: Array) -> tuple[Array, Array]:
                s = jnp.where(self.a > 0, f - cost, -jnp.inf)
                out: tuple[Array, Array] = self.regularizer.scaled_conjugate(s + shift[:, None], b)
                return out

            values, g = self.geometry.transpose().map_rows(block, self.b, shift)
            return jnp.sum(values), g

        # The derivative by a shift of a column is its mass.
        (value, g), masses = jax.value_and_grad(total, (0, 1), has_aux=True)(f, jnp.zeros_like(self.b))
        return jnp.vdot(f, self.a) - value, g, masses

    def masses(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """Row and column masses of the plan."""
        return self.evaluate(f, g)[1]

    def dual(self, f: Array, g: Array) -> Float[Array, ""]:
        """The dual value."""
        return self.evaluate(f, g)[0]

    def gap(self, masses: tuple[Array, Array]) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """``(a - P1, b - P^T 1)``, the gradient of the dual, given the masses."""
        return self.a - masses[0], self.b - masses[1]

    def rounding(self, f: Array, g: Array) -> Float[Array, ""]:
        """Size of the rounding error of the dual value."""
        size = jnp.vdot(jnp.abs(f), self.a) + jnp.vdot(jnp.abs(g), self.b)
        return jnp.finfo(f.dtype).eps * size

    def plan(self, f: Array, g: Array) -> Float[Array, "n m"]:
        """P, all of it."""
        return self._plan(lambda _, t: t, f, g).T

    def apply(self, f: Array, g: Array, v: Array, axis: int) -> Array:
        """The plan times v [m, ...] (axis=1), or its transpose times v [n, ...] (axis=0)."""

        def transposed(v: Array) -> Array:
            return self._plan(lambda _, t: product(t, v), f, g)

        if axis == 0:
            return transposed(v)
        # The transpose of a product by columns; it sums over blocks without holding them.
        (out,) = jax.vjp(transposed, jnp.zeros(f.shape + v.shape[1:], f.dtype))[1](v.astype(f.dtype))
        return out

    def linear_cost(self, f: Array, g: Array) -> Float[Array, ""]:
        """``<C, P>``."""
        return jnp.sum(self._plan(lambda cost, t: jnp.sum(cost * t, axis=1), f, g))

    def primal(self, f: Array, g: Array) -> Float[Array, ""]:
        """``<C, P> + R(P)`` of the plan as it stands: no bound where its masses are not a and b."""

        def block(cost: Array, t: Array) -> Array:
            return jnp.sum(cost * t, axis=1) + self.regularizer.value(t)

        return jnp.sum(self._plan(block, f, g))

    def centered(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The potentials with the free constant such that f and g have one mean over the weights."""
        return centered(f, g, self.a, self.b)

    def differentiable(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The solved potentials, complete where a or b is 0, with the derivatives of the optimum."""
        f, g = _potentials(self, f, g)
        return self._completed(f, g)

    def differentiable_value(self, f: Array, g: Array, dual: Array) -> Float[Array, ""]:
        """The dual value, already computed, with the derivatives of the optimum."""
        return _value(self, f, g, dual)

    def _columns(self, fn: Any, f: Array, g: Array) -> Any:
        """``fn(costs, f + g_j - C_j)`` of blocks of columns, as rows."""

        def block(cost: Array, g: Array, b: Array) -> Any:
            part = (self.a > 0) & (b > 0)[:, None]
            return fn(cost, jnp.where(part, (f - cost) + g[:, None], -jnp.inf))

        return self.geometry.transpose().map_rows(block, g, self.b)

    def _plan(self, fn: Any, f: Array, g: Array) -> Any:
        """``fn(costs, t_j)`` of blocks of columns, as rows."""
        return self._columns(lambda cost, s: fn(cost, maximizer(self.regularizer, s)), f, g)

    def _completed(self, f: Array, g: Array) -> tuple[Array, Array]:
        """The potentials with those at weights of 0 as large as gives no mass."""

        def complete(f: Array, g: Array) -> tuple[Array, Array]:
            shown = jnp.where(self.b > 0, g, -jnp.inf)
            best = self.geometry.map_rows(lambda cost: jnp.min(cost - shown, axis=1))
            f = jnp.where(self.a > 0, f, best)
            shown = jnp.where(self.a > 0, f, -jnp.inf)
            best = self.geometry.transpose().map_rows(lambda cost: jnp.min(cost - shown, axis=1))
            return f, jnp.where(self.b > 0, g, best)

        empty = jnp.any(self.a == 0) | jnp.any(self.b == 0)
        return jax.lax.cond(any_lane(empty), complete, lambda f, g: (f, g), f, g)


def l1(x: Any) -> Float[Array, ""]:
    """The sum of absolute values of all entries."""
    return sum(
        (jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(x)),
        start=jnp.zeros((), jax.tree.leaves(x)[0].dtype),
    )


@jax.custom_jvp
def _potentials(problem: SmoothProblem, f: Array, g: Array) -> tuple[Array, Array]:
    return f, g


@_potentials.defjvp
def _potentials_jvp(primals: Any, tangents: Any) -> Any:
    problem, f, g = primals
    f, g = _potentials(problem, f, g)

    def gradient(problem: SmoothProblem, potentials: tuple[Array, Array]) -> tuple[Array, Array]:
        return problem.gap(problem.masses(*potentials))

    def matvec(v: tuple[Array, Array]) -> Any:
        return jax.jvp(lambda y: problem.masses(*y), ((f, g),), (v,))[1]

    moved = jax.jvp(lambda problem: gradient(problem, (f, g)), (problem,), (tangents[0],))[1]
    # Entries of the Hessian of -D are nonnegative and each is seen from a row and a column: half its row sums
    # are its diagonal.
    sums = jax.lax.stop_gradient(matvec((jnp.ones_like(f), jnp.ones_like(g))))
    inverse = jax.tree.map(lambda d: jnp.where(d > 0, 2.0 / jnp.where(d > 0, d, 1.0), 1.0), sums)
    solved, _ = linalg.solve(
        matvec,
        moved,
        method="minres",
        rtol=float(10 * jnp.finfo(f.dtype).eps),
        preconditioner=lambda v: jax.tree.map(jnp.multiply, inverse, v),
    )
    return (f, g), solved


@jax.custom_jvp
def _value(problem: SmoothProblem, f: Array, g: Array, dual: Float[Array, ""]) -> Float[Array, ""]:
    return dual


@_value.defjvp
def _value_jvp(primals: Any, tangents: Any) -> Any:
    problem, f, g, dual = primals
    # Centered, so that the derivatives by a and b are the potentials that a solution shows.
    f, g = problem.centered(*problem.differentiable(f, g))
    tangent = jax.jvp(lambda problem: problem.dual(f, g), (problem,), (tangents[0],))[1]
    return _value(problem, f, g, dual), tangent
