r"""The entropic transport problem, its optimality conditions and its dual.

    min_P  <C, P> + epsilon KL(P | a b^T) + D_1(P1 | a) + D_2(P^T 1 | b)

with plan P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon) and the dual, concave in (f, g),

    sum_i -D_1*(-f_i) + sum_j -D_2*(-g_j) - epsilon (sum_ij P_ij - sum_i a_i sum_j b_j),

whose derivative in f_i is the mass that f_i asks for minus the row mass of P. Potentials exist at weights of
0 as well, as the values a Sinkhorn half-step gives there, while their rows of P are 0.

References:
    Chizat, Peyré, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport, eq. (3.1).
    Altschuler, Weed, Rigollet (2017), Near-linear time approximation algorithms for optimal transport via
    Sinkhorn iteration, algorithm 2, for the feasible plan behind `primal`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import any_lane, pytree_dataclass, xlogy
from jaxdiv.ot import adjoint
from jaxdiv.ot.geometry import Geometry, Separable, capped_exp
from jaxdiv.ot.marginals import Marginal
from jaxdiv.ot.point_cloud import PointCloud
from jaxdiv.ot.round import reduction


@pytree_dataclass
class Problem:
    """An entropic problem, checked and in one dtype.

    Attributes:
        geometry: The cost.
        a: Weights of the rows [n].
        b: Weights of the columns [m].
        epsilon: Strength of the entropy, a scalar.
        row: Penalty on the row masses.
        column: Penalty on the column masses.
    """

    geometry: Geometry
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    row: Marginal
    column: Marginal

    @property
    def singular(self) -> bool:
        """Whether only the sums f_i + g_j are determined."""
        return self.row.exact and self.column.exact

    def at(self, epsilon: Float[Array, ""]) -> "Problem":
        """The problem at another epsilon."""
        return dataclasses.replace(self, epsilon=epsilon)

    def dense(self) -> "Problem":
        """The problem with its cost matrix in memory, unless it is to be streamed."""
        return dataclasses.replace(self, geometry=self.geometry.dense())

    def transpose(self) -> "Problem":
        """The problem with rows and columns exchanged."""
        return Problem(self.geometry.transpose(), self.b, self.a, self.epsilon, self.column, self.row)

    def row_softmin(self, g: Float[Array, " m"]) -> Float[Array, " n"]:
        """``-epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)``."""
        return self.geometry.softmin(g, self.b, self.epsilon, 1)

    def column_softmin(self, f: Float[Array, " n"]) -> Float[Array, " m"]:
        """``-epsilon log sum_i a_i exp((f_i - C_ij) / epsilon)``."""
        return self.geometry.softmin(f, self.a, self.epsilon, 0)

    def row_update(self, g: Float[Array, " m"]) -> Float[Array, " n"]:
        """The best f for g."""
        return self.row.update(self.row_softmin(g), self.a, self.epsilon)

    def column_update(self, f: Float[Array, " n"]) -> Float[Array, " m"]:
        """The best g for f."""
        return self.column.update(self.column_softmin(f), self.b, self.epsilon)

    def masses(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """Row and column masses of the plan."""
        return (
            self.a * capped_exp((f - self.row_softmin(g)) / self.epsilon),
            self.b * capped_exp((g - self.column_softmin(f)) / self.epsilon),
        )

    def apply(self, f: Array, g: Array, v: Array, axis: int) -> Array:
        """The plan times v [m, ...] (axis=1), or its transpose times v [n, ...] (axis=0)."""
        inner, outer = (self.b, self.a) if axis == 1 else (self.a, self.b)
        inner, outer = (w.reshape(w.shape + (1,) * (v.ndim - 1)) for w in (inner, outer))
        return outer * self.geometry.apply(f, g, self.epsilon, inner * v, axis)

    def plan(self, f: Array, g: Array) -> Float[Array, "n m"]:
        """P, all of it."""
        exponent = (f[:, None] + g - self.geometry.cost_matrix()) / self.epsilon
        return self.a[:, None] * self.b * capped_exp(exponent)

    def value(self, f: Array, g: Array, mass: Float[Array, ""]) -> Float[Array, ""]:
        """The dual value, given the mass of the plan."""
        prices = jnp.sum(self.row.value(f, self.a)) + jnp.sum(self.column.value(g, self.b))
        return prices - self.epsilon * (mass - jnp.sum(self.a) * jnp.sum(self.b))

    def dual(self, f: Array, g: Array) -> Float[Array, ""]:
        """The dual value."""
        mass = jnp.sum(self.a * capped_exp((f - self.row_softmin(g)) / self.epsilon))
        return self.value(f, g, mass)

    def error(self, r: Array, c: Array, f: Array, g: Array) -> Float[Array, ""]:
        """L1 norm of the dual's derivative, given the masses; the marginal error where both are exact."""
        rows = jnp.abs(self.row.residual(r, f, self.a))
        return jnp.sum(rows) + jnp.sum(jnp.abs(self.column.residual(c, g, self.b)))

    def linear_cost(self, f: Array, g: Array) -> Float[Array, ""]:
        """``<C, P>``."""
        if isinstance(self.geometry, Separable):
            return jnp.vdot(self.a, self.geometry.apply_costs(f, g, self.epsilon, self.b, 1))

        def block(cost: Array, f: Array, a: Array) -> Array:
            plan = a[:, None] * self.b * capped_exp((f[:, None] + g - cost) / self.epsilon)
            return jnp.sum(plan * cost, axis=1)

        return jnp.sum(self.geometry.map_rows(block, f, self.a))

    def primal(self, f: Array, g: Array) -> Float[Array, ""]:
        """Value of the plan; where both marginals are exact, of the feasible plan next to it.

        An upper bound of the optimum where both are exact or none is; one that is exact beside one that is not
        counts as met.
        """
        r, c = self.masses(f, g)
        if not self.singular:
            value = (
                jnp.vdot(r, f) + jnp.vdot(c, g) - self.epsilon * (jnp.sum(r) - self.a.sum() * self.b.sum())
            )
            return value + jnp.sum(self.row.penalty(r, self.a)) + jnp.sum(self.column.penalty(c, self.b))
        x = reduction(r, self.a)
        c = self.apply(f, g, x, 0)
        y = reduction(c, self.b)
        missing_rows = self.a - x * self.apply(f, g, y, 1)
        missing_columns = self.b - y * c
        missing = jnp.sum(missing_rows)
        share = jnp.where(missing > 0, missing_columns / jnp.where(missing > 0, missing, 1.0), 0.0)

        # A subnormal entry of the plan may have a ratio that is flushed to 0.
        tiny = jnp.finfo(self.a.dtype).tiny

        def block(cost: Array, f: Array, a: Array, x: Array, left: Array) -> Array:
            product = a[:, None] * self.b
            plan = product * capped_exp((f[:, None] + g - cost) / self.epsilon) * x[:, None] * y
            plan = jnp.maximum(plan + left[:, None] * share, 0.0)
            entropy = (
                xlogy(plan, jnp.maximum(plan / jnp.where(product > 0, product, 1.0), tiny)) - plan + product
            )
            return jnp.sum(plan * cost + self.epsilon * entropy, axis=1)

        return jnp.sum(self.geometry.map_rows(block, f, self.a, x, missing_rows))

    def extended(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The potentials with g at columns of weight 0 as a half-step has it, where Newton's method leaves it."""
        absent = self.b <= 0
        below = jax.lax.cond(any_lane(jnp.any(absent)), self.column_update, lambda f: g, f)
        return f, jnp.where(absent, below, g)

    def centered(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The potentials with the free constant such that f and g have one mean over the weights."""
        return centered(f, g, self.a, self.b) if self.singular else (f, g)

    def differentiable(self, f: Array, g: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The solved potentials with the derivatives of the optimum."""
        return adjoint.potentials(self, f, g)

    def differentiable_value(self, f: Array, g: Array, dual: Array) -> Float[Array, ""]:
        """The dual value with the derivatives of the optimum."""
        return adjoint.value(self, f, g, dual)

    def extended_map(self, g: Array, x: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The mean of y that each new point goes to, under the plan that g extends to it."""
        if not isinstance(self.geometry, PointCloud):
            raise ValueError(
                "transport needs a PointCloud, whose costs extend to new points; got another geometry."
            )
        y = self.geometry.y
        assert y is not None
        cloud = PointCloud(x.astype(self.geometry.dtype), y, self.geometry.cost, self.geometry.block)
        ones = jnp.ones(x.shape[0], self.a.dtype)
        new = Problem(cloud, ones, self.b, self.epsilon, self.row, self.column)
        return new.apply(new.row_softmin(g), g, y, 1)


def centered(f: Array, g: Array, a: Array, b: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The potentials shifted against each other until their means over the weights are one."""
    mean_f = jnp.vdot(a, f) / jnp.sum(a)
    shift = (jnp.vdot(b, g) / jnp.sum(b) - mean_f) / 2
    return f + shift, g - shift
