r"""Newton's method with an approximate Hessian, regularized by the gradient-normalized smoothness.

In the norms ‖h‖² = hᵀB h and ‖g‖*² = gᵀB⁻¹g, with any H(y) ⪰ 0 near ∇²f(y), the radius of good linearization is

    γ(y) = sup {γ > 0 : ‖∇f(y + h) - ∇f(y) - H h‖* <= (‖∇f(y)‖* / γ) ‖h‖ for all ‖h‖ <= γ}

and for every γ <= γ(y) the step

    y⁺ = y - (H + λ B)⁻¹ ∇f(y),    λ = ‖∇f(y)‖* / γ

has ‖y⁺ - y‖ <= γ and f(y) - f(y⁺) >= ‖∇f(y⁺)‖*² / (8 λ), since with h = y⁺ - y

    f(y⁺) - f(y) <= -λ ‖h‖² - ½ hᵀH h + ½ λ ‖h‖² <= -½ λ ‖h‖²    and    ‖∇f(y⁺)‖* <= 2 λ ‖h‖.

γ(y) is not known: a trial that misses this decrease, or whose matrix is not positive definite, halves γ, and an
accepted one doubles it for the next step. Nothing else is tuned; H = 0 gives the normalized gradient step of
length γ.

References:
    Semenov, Jaggi, Doikov (2025), Gradient-normalized smoothness for optimization with approximate Hessians, alg. 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv import linalg
from jaxdiv.core import Status, checks, pytree_dataclass, safe_norm, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping
from jaxdiv.solvers.gradient import value_and_grad

SLACK = 10  # units of rounding of f, of which its differences are made
ACCURACY = 1e-2  # of the iterative solves, which sharpen as the gradient falls
_HIGHEST = jax.lax.Precision.HIGHEST


class GNSNewtonState(NamedTuple):
    """State of `GNSNewton`.

    Attributes:
        value: The point y.
        error: ‖∇f(y)‖ / (1 + ‖∇f(y0)‖), in Euclidean norms.
        status: A status code.
        objective: f(y).
        gradient: ∇f(y).
        radius: The γ that the next step tries first; the last step was accepted with half of it.
        solves: Linear systems solved so far.
        scale: 1 + ‖∇f(y0)‖.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    objective: Float[Array, ""]
    gradient: PyTree
    radius: Float[Array, ""]
    solves: Int[Array, ""]
    scale: Float[Array, ""]
    watch: stopping.Watch


class _Trial(NamedTuple):
    tries: Array
    radius: Array
    y: Array
    objective: Array
    gradient: Array
    accepted: Array


@pytree_dataclass
class GNSNewton:
    """Minimizes ``fun(y, *args)``, convex or not, by regularized Newton steps; a `core.Solver`.

    Args:
        fun: ``fun(y, *args) -> scalar``. Static.
        curvature: ``curvature(y, *args) -> (v -> H v)``, a positive semidefinite stand-in for the Hessian: for example
            ``linalg.gauss_newton_operator``, ``linalg.fisher_operator`` or ``linalg.empirical_fisher_operator`` at y.
            None is the Hessian itself, whose indefinite trials are refused. Static.
        tol: Converged when ``‖∇f(y)‖ <= tol (1 + ‖∇f(y0)‖)``, with y0 where the run began.
        radius: The first γ to try, positive.
        metric: B, symmetric positive definite [n, n] on the entries of y in the order of ``ravel_pytree``; None is the
            identity.
        linear: ``"cholesky"`` forms and factorizes the matrix, ``"cg"`` only multiplies with it. Static.
        max_trials: Trials of γ in one step at most; when all fail the point stays and the run is STALLED. Static.

    Raises:
        ValueError: If an option is out of its range, `fun` does not return a floating scalar, or `metric` has another
            shape.

    Note:
        A decrease of less than ten units of rounding of f is read from the gradients at both ends instead, so that
        float32 runs do not shrink γ near a minimum. A trial costs one linear solve and one gradient.

    References:
        Semenov, Jaggi, Doikov (2025), Gradient-normalized smoothness for optimization with approximate Hessians.

    Example:
        >>> from jaxdiv import core, solvers
        >>> rosenbrock = lambda y: (1 - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2
        >>> solution = core.run(solvers.GNSNewton(rosenbrock), jnp.array([-1.2, 1.0]), max_steps=100)
        >>> solution.raise_if_failed().value.round(3).tolist()
        [1.0, 1.0]
    """

    fun: Callable[..., Any] = static_field()
    curvature: Callable[..., Any] | None = static_field(default=None)
    tol: Numeric = 1e-5
    radius: Numeric = 1.0
    metric: Float[Array, "n n"] | None = None
    linear: str = static_field(default="cholesky")
    max_trials: int = static_field(default=40)

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        if self.curvature is not None:
            stopping.check_functions(curvature=self.curvature)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("radius", self.radius, 0.0, open_low=True)
        checks.one_of("linear", self.linear, ("cholesky", "cg"))
        checks.in_range("max_trials", self.max_trials, 1)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """The gradient of `fun`, zero exactly at a stationary point."""
        return value_and_grad(self.fun, value, args)[1]

    def init(self, y0: PyTree, *args: Any) -> GNSNewtonState:
        """The first state, with the gradient at `y0`."""
        value = stopping.start("y0", y0)
        objective, gradient = value_and_grad(self.fun, value, args)
        size = stopping.norm(gradient)
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        flat, _ = ravel_pytree(value)
        self._metric(flat)
        radius, none = jnp.asarray(self.radius, flat.dtype), jnp.zeros((), jnp.int32)
        return GNSNewtonState(value, error, status, objective, gradient, radius, none, 1 + size, watch)

    def step(self, state: GNSNewtonState, *args: Any) -> GNSNewtonState:
        """One accepted step, after as many trials as it takes."""
        y, unravel = ravel_pytree(state.value)
        g, _ = ravel_pytree(state.gradient)
        metric = self._metric(y)
        direction = self._solver(state, g, metric, args)
        length = safe_norm(g) if metric is None else _dual(metric, g)
        rounding = SLACK * jnp.finfo(y.dtype).eps

        def attempt(count: Array, radius: Array) -> _Trial:
            regularization = length / radius
            trial = y + direction(regularization)
            objective, gradient = value_and_grad(self.fun, unravel(trial), args)
            flat, _ = ravel_pytree(gradient)
            left = safe_norm(flat) if metric is None else _dual(metric, flat)
            # Near a minimum the difference of objectives is rounding; the gradients still tell, by the trapezoid rule.
            decrease = state.objective - objective
            lost = jnp.abs(decrease) <= rounding * jnp.abs(state.objective)
            decrease = jnp.where(lost, -jnp.vdot(g + flat, trial - y) / 2, decrease)
            # Not a number, as from a matrix that is not positive definite, is no decrease.
            accepted = 8 * regularization * decrease >= left**2
            return _Trial(count + 1, radius, trial, objective, flat, accepted)

        first = attempt(jnp.zeros((), jnp.int32), state.radius)
        last = jax.lax.while_loop(
            lambda t: ~t.accepted & (t.tries < self.max_trials),
            lambda t: attempt(t.tries, t.radius / 2),
            first,
        )

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(last.accepted, new, old)

        value, gradient = unravel(kept(last.y, y)), unravel(kept(last.gradient, g))
        error = kept(safe_norm(last.gradient) / state.scale, state.error)
        largest = float(np.finfo(y.dtype).max) / 4
        radius = jnp.where(last.accepted, jnp.minimum(2 * last.radius, largest), last.radius / 2)
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        status = jnp.where(last.accepted, status, Status.STALLED).astype(jnp.int32)
        objective = kept(last.objective, state.objective)
        return GNSNewtonState(
            value, error, status, objective, gradient, radius, state.solves + last.tries, state.scale, watch
        )

    def _metric(self, y: Array) -> Array | None:
        if self.metric is None:
            return None
        metric = jnp.asarray(self.metric, y.dtype)
        if metric.shape != (y.size, y.size):
            raise ValueError(f"metric must have shape {(y.size, y.size)}; got {metric.shape}.")
        return metric

    def _solver(
        self, state: GNSNewtonState, g: Array, metric: Array | None, args: tuple[Any, ...]
    ) -> Callable[[Array], Array]:
        """``λ -> -(H + λ B)⁻¹ g`` on flat vectors; NaN where a factorization fails."""
        y, unravel = ravel_pytree(state.value)
        if self.curvature is None:
            product = linalg.hessian_operator(lambda y: self.fun(y, *args), state.value)
        else:
            product = self.curvature(state.value, *args)
        if self.linear == "cholesky":
            dense = linalg.materialize(product, state.value).astype(y.dtype)
            bent = (dense + dense.T) / 2
            unit = jnp.eye(y.size, dtype=y.dtype) if metric is None else metric

            def factorized(regularization: Array) -> Array:
                factor = jnp.linalg.cholesky(bent + regularization * unit)
                return -jax.scipy.linalg.cho_solve((factor, True), g)

            return factorized

        def iterated(regularization: Array) -> Array:
            def matvec(v: Array) -> Array:
                scaled = v if metric is None else jnp.matmul(metric, v, precision=_HIGHEST)
                return ravel_pytree(product(unravel(v)))[0].astype(v.dtype) + regularization * scaled

            accuracy = jnp.minimum(ACCURACY, state.error)
            return -linalg.solve(matvec, g, method="cg", rtol=accuracy)[0]

        return iterated


def _dual(metric: Array, g: Array) -> Array:
    """√(gᵀB⁻¹g)."""
    lower = jnp.linalg.cholesky(metric)
    return safe_norm(jax.scipy.linalg.solve_triangular(lower, g, lower=True))
