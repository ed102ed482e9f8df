"""What `solve` returns: potentials, how they were found, and everything that follows from them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import pytree_dataclass, raise_if_failed, static_field, xlogy
from jaxdiv.ot.point_cloud import PointCloud
from jaxdiv.ot.problem import Problem
from jaxdiv.ot.round import round_plan

T = TypeVar("T")


def _per_lane(method: Callable[..., T]) -> Callable[..., T]:
    """Maps a method over the lanes that vmap or scan gave the result."""

    @functools.wraps(method)
    def mapped(self: "Transport", *args: Any, **kwargs: Any) -> T:
        fn = functools.partial(method, **kwargs)
        for _ in range(jnp.ndim(self.error)):
            fn = jax.vmap(fn)
        return fn(self, *args)

    return mapped


@pytree_dataclass
class Transport:
    """A solved transport problem; a pytree, with leading axes under `jax.vmap` and `jax.lax.scan`.

    Attributes:
        problem: What was solved.
        raw: The potentials (f, g) without derivatives.
        dual: Value of the dual at them, a lower bound of the optimum; without derivatives, see `cost`.
        status: How the solver ended, a `core.Status` code.
        iterations: Steps of the solver.
        error: ``|P1 - a|_1 + |P^T 1 - b|_1`` for exact marginals, else the L1 norm of the dual's derivative.
        history: The error after each of the last steps, as many as were asked for, the newest last; inf
            where there was none.
        implicit: Whether derivatives are those of the optimum; else those of the iterations.
    """

    problem: Any
    raw: tuple[Float[Array, "*lanes n"], Float[Array, "*lanes m"]]
    dual: Float[Array, "*lanes"]
    status: Int[Array, "*lanes"]
    iterations: Int[Array, "*lanes"]
    error: Float[Array, "*lanes"]
    history: Float[Array, "*lanes steps"]
    implicit: bool = static_field(default=True)

    @property
    def f(self) -> Float[Array, "*lanes n"]:
        """Potential of the rows."""
        return self._potentials()[0]

    @property
    def g(self) -> Float[Array, "*lanes m"]:
        """Potential of the columns."""
        return self._potentials()[1]

    @property
    @_per_lane
    def cost(self) -> Float[Array, "*lanes"]:
        """The regularized value; its derivative by the costs is the plan, its Hessian that of the optimum."""
        f, g = self.raw
        if not self.implicit:
            return self.problem.dual(f, g)
        return self.problem.differentiable_value(f, g, self.dual)

    @property
    @_per_lane
    def entropy_cost(self) -> Float[Array, "*lanes"]:
        """The value in the entropy form ``<C, P> + epsilon sum P (log P - 1)``, for exact marginals of mass 1.

        Raises:
            ValueError: If the regularizer is not the entropy, or a marginal is not exact.
        """
        problem = self.problem
        if not (isinstance(problem, Problem) and problem.singular):
            raise ValueError("entropy_cost needs the entropic regularizer and exact marginals.")
        entropies = jnp.sum(xlogy(problem.a, problem.a)) + jnp.sum(xlogy(problem.b, problem.b))
        return self.cost + problem.epsilon * (entropies - jnp.sum(problem.a) * jnp.sum(problem.b))

    @property
    @_per_lane
    def linear_cost(self) -> Float[Array, "*lanes"]:
        """``<C, P>``."""
        return self.problem.linear_cost(*self._potentials())

    @property
    @_per_lane
    def primal(self) -> Float[Array, "*lanes"]:
        """The regularized value of the plan, made feasible where both marginals are exact: an upper bound."""
        return self.problem.primal(*self._potentials())

    @property
    def gap(self) -> Float[Array, "*lanes"]:
        """``primal - dual``, which bounds how far either is from the optimum."""
        return self.primal - self.dual

    @_per_lane
    def plan(self) -> Float[Array, "*lanes n m"]:
        """The plan P, all of it."""
        return self.problem.plan(*self._potentials())

    @_per_lane
    def marginals(self) -> tuple[Float[Array, "*lanes n"], Float[Array, "*lanes m"]]:
        """Row and column masses of the plan."""
        return self.problem.masses(*self._potentials())

    def apply(self, v: Float[Array, "..."], axis: int = 1) -> Float[Array, "..."]:
        """P v for v [m, ...] (axis=1), or Pᵀ v for v [n, ...] (axis=0), without forming P of a point cloud.

        Raises:
            ValueError: If `axis` is neither 0 nor 1, or v has another length.
        """
        if axis not in (0, 1):
            raise ValueError(f"axis must be 1 (P v) or 0 (its transpose); got {axis}.")
        return self._apply(v, axis=axis)

    @_per_lane
    def barycentric(self) -> Float[Array, "*lanes n d"]:
        """The barycentric map of a point cloud: the mean of y that each x goes to; x itself without mass.

        Raises:
            ValueError: If the geometry is not a `PointCloud`.
        """
        geometry = self.problem.geometry
        if not isinstance(geometry, PointCloud):
            raise ValueError(
                "barycentric needs a PointCloud, whose points it averages; got another geometry."
            )
        f, g = self._potentials()
        rows = self.problem.masses(f, g)[0][:, None]
        moved = self.problem.apply(f, g, geometry.y, 1)
        return jnp.where(rows > 0, moved / jnp.where(rows > 0, rows, 1.0), geometry.x)

    @_per_lane
    def transport(self, x: Float[Array, "*lanes k d"]) -> Float[Array, "*lanes k d"]:
        """The entropic map of new points: the mean of y under the plan that g extends to them.

        Args:
            x: Points [k, d].

        Raises:
            ValueError: If the geometry is not a `PointCloud`, or the regularizer not the entropy.

        References:
            Pooladian, Niles-Weed (2021), Entropic estimation of optimal transport maps.
        """
        if not isinstance(self.problem, Problem):
            raise ValueError(
                "transport needs the entropic regularizer, whose potentials extend to new points."
            )
        return self.problem.extended_map(self._potentials()[1], x)

    @_per_lane
    def round(self) -> Float[Array, "*lanes n m"]:
        """A plan with exactly the given marginals, within twice `error` of P in L1.

        Raises:
            ValueError: If a marginal is not exact.
        """
        problem = self.problem
        if isinstance(problem, Problem) and not problem.singular:
            raise ValueError("round needs exact marginals; these leave the masses of the plan open.")
        return round_plan(problem.plan(*self._potentials()), problem.a, problem.b)

    def raise_if_failed(self) -> "Transport":
        """Returns itself if every lane converged.

        Raises:
            RuntimeError: If a lane did not; the message names lanes and statuses.
            ValueError: If the status is traced.
        """
        raise_if_failed(self.status, steps=self.iterations, error=self.error)
        return self

    @_per_lane
    def _potentials(self) -> tuple[Array, Array]:
        f, g = self.raw
        if self.implicit:
            f, g = self.problem.differentiable(f, g)
        return self.problem.centered(f, g)

    @_per_lane
    def _apply(self, v: Array, *, axis: int) -> Array:
        size = self.problem.geometry.shape[axis]
        if v.ndim < 1 or v.shape[0] != size:
            raise ValueError(f"v must have {size} rows for axis={axis}; got shape {v.shape}.")
        return self.problem.apply(*self._potentials(), v, axis)
