r"""Accelerated proximal gradient descent (FISTA) with backtracking and adaptive restarts.

For ``min f(y) + g(y)`` with f smooth and g given by its proximal operator:

    y⁺ = prox(z - s ∇f(z), s),    z⁺ = y⁺ + β (y⁺ - y),    β = (t - 1) / t⁺,    t⁺ = (1 + √(1 + 4 t²)) / 2

A known strong convexity μ of f makes ``β = (1 - √(μ s)) / (1 + √(μ s))``. Where the momentum points uphill,
``⟨z - y⁺, y⁺ - y⟩ > 0``, it is dropped (t = 1, β = 0), which regains the linear rate of strongly convex problems
without knowing μ. Without acceleration β is 0: proximal, or projected, gradient descent.

The step s satisfies ``f(y⁺) <= f(z) + ⟨∇f(z), y⁺ - z⟩ + ‖y⁺ - z‖² / (2 s)`` up to rounding. The error is
‖y⁺ - z‖: for convex f and s <= 2 / L the map z -> y⁺ does not expand, so that its residual at y⁺ is no larger; the
value is certified without another gradient.

References:
    Beck, Teboulle (2009), A fast iterative shrinkage-thresholding algorithm for linear inverse problems.
    O'Donoghue, Candès (2015), Adaptive restart for accelerated gradient schemes, sec. 3.2 (gradient scheme).
    Nesterov (2004), Introductory lectures on convex optimization, sec. 2.2 (strong convexity).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping
from jaxdiv.solvers.gradient import value_and_grad

HALVINGS = 40
SLACK = 10  # units of rounding of f, of which its differences are made


class FistaState(NamedTuple):
    """State of `Fista`.

    Attributes:
        value: The point y.
        error: ‖y - z‖ / (1 + ‖y‖), with z from which y came; inf at first.
        status: A status code.
        ahead: The extrapolated point z.
        momentum: t.
        size: The step s.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    ahead: PyTree
    momentum: Float[Array, ""]
    size: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class Fista:
    """Minimizes ``fun(y, *args) + g(y, *args)``; a `core.Solver`.

    Args:
        fun: ``fun(y, *args) -> scalar``, smooth and, for the guarantees, convex. Static.
        prox: ``prox(y, step, *args)``, the minimizer of ``step g(x) + ½ ‖x - y‖²``; a projection serves where g is
            the indicator of a set. Static.
        tol: Converged when a step changes its point by at most ``tol (1 + ‖y‖)``.
        step_size: Length of the steps, at most 1 / L for a gradient with Lipschitz constant L. None searches: from the
            inverse of the curvature along the first gradient down.
        strong_convexity: A known modulus μ of f, or 0.
        restart: Whether momentum that points uphill is dropped. Static.
        accelerate: Whether there is momentum at all. Static.

    Raises:
        ValueError: If an option is out of its range, `fun` does not return a floating scalar, or `prox` leaves the
            space of y.

    Note:
        `optimality` takes the proximal step at `step_size`, or at length 1 where that is None: both vanish at the same
        points. The search for a step differentiates `fun` twice, once.

    Example:
        >>> from jaxdiv import core, solvers
        >>> soft = lambda y, step, b: jnp.sign(y) * jnp.maximum(jnp.abs(y) - step, 0.0)
        >>> solver = solvers.Fista(lambda y, b: jnp.sum((y - b) ** 2) / 2, soft)
        >>> solution = core.run(solver, jnp.zeros(2), jnp.array([3.0, 0.5]), max_steps=50).raise_if_failed()
        >>> solution.value.round(3).tolist()
        [2.0, 0.0]
    """

    fun: Callable[..., Any] = static_field()
    prox: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    step_size: Numeric | None = None
    strong_convexity: Numeric = 0.0
    restart: bool = static_field(default=True)
    accelerate: bool = static_field(default=True)

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun, prox=self.prox)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("strong_convexity", self.strong_convexity, 0.0)
        if self.step_size is not None:
            checks.in_range("step_size", self.step_size, 0.0, open_low=True)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``y - prox(y - s ∇f(y), s)``, zero exactly at a solution."""
        size = 1.0 if self.step_size is None else self.step_size
        gradient = value_and_grad(self.fun, value, args)[1]
        return optax.tree.sub(value, self._proximal(value, gradient, size, args))

    def init(self, y0: PyTree, *args: Any) -> FistaState:
        """The first state."""
        value = stopping.start("y0", y0)
        dtype = jnp.result_type(*jax.tree.leaves(value))
        inf = jnp.full((), jnp.inf, dtype)
        size = self._first_size(value, args) if self.step_size is None else self.step_size
        status, watch = stopping.first(inf, 0.0)
        return FistaState(value, inf, status, value, jnp.ones((), dtype), jnp.asarray(size, dtype), watch)

    def step(self, state: FistaState, *args: Any) -> FistaState:
        """One proximal gradient step from the extrapolated point."""
        z = state.ahead
        objective, gradient = value_and_grad(self.fun, z, args)
        value, size = self._search(z, objective, gradient, state.size, args)
        back, move = optax.tree.sub(z, value), optax.tree.sub(value, state.value)

        momentum = (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2
        beta = (state.momentum - 1) / momentum
        root = jnp.sqrt(jnp.asarray(self.strong_convexity, size.dtype) * size)
        beta = jnp.where(root > 0, (1 - root) / (1 + root), beta)
        if self.restart:
            uphill = optax.tree.vdot(back, move) > 0
            momentum, beta = jnp.where(uphill, 1.0, momentum), jnp.where(uphill, 0.0, beta)
        if not self.accelerate:
            beta = jnp.zeros_like(beta)
        ahead = jax.tree.map(lambda y, d: (y + beta * d).astype(y.dtype), value, move)

        error = stopping.norm(back) / (1 + stopping.norm(value))
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return FistaState(value, error, status, ahead, momentum, size, watch)

    def _proximal(self, z: PyTree, gradient: PyTree, size: Any, args: tuple[Any, ...]) -> PyTree:
        point = jax.tree.map(lambda y, g: (y - size * g).astype(y.dtype), z, gradient)
        return stopping.same_space("the output of prox", self.prox(point, size, *args), z)

    def _search(
        self, z: PyTree, objective: Array, gradient: PyTree, size: Array, args: tuple[Any, ...]
    ) -> tuple[PyTree, Array]:
        """The proximal point at the first acceptable step, and that step."""
        if self.step_size is not None:
            return self._proximal(z, gradient, size, args), size
        rounding = SLACK * jnp.finfo(size.dtype).eps

        def excess(point: PyTree, size: Array) -> Array:
            d = optax.tree.sub(point, z)
            model = objective + optax.tree.vdot(gradient, d) + optax.tree.norm(d, squared=True) / (2 * size)
            # Near a minimum the difference of objectives is rounding, which must not shrink the step.
            return self.fun(point, *args) - model - rounding * jnp.abs(objective)

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            count, size, _, _ = carry
            return _at(count + 1, size / 2)

        def _at(count: Array, size: Array) -> tuple[Any, ...]:
            point = self._proximal(z, gradient, size, args)
            # Not a number is not acceptable.
            return count, size, point, excess(point, size) <= 0

        first = _at(jnp.zeros((), jnp.int32), size)
        _, size, point, _ = jax.lax.while_loop(lambda carry: ~carry[3] & (carry[0] < HALVINGS), body, first)
        return point, size

    def _first_size(self, value: PyTree, args: tuple[Any, ...]) -> Array:
        """The inverse curvature along the gradient: not below 1 / L for a quadratic, whatever the units."""
        gradient = value_and_grad(self.fun, value, args)[1]
        length = stopping.norm(gradient)
        unit = jax.tree.map(lambda g: (g / jnp.where(length > 0, length, 1.0)).astype(g.dtype), gradient)
        bent = jax.jvp(lambda y: value_and_grad(self.fun, y, args)[1], (value,), (unit,))[1]
        curvature = stopping.norm(bent)
        return jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 1.0)
