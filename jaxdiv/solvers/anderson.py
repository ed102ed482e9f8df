r"""Anderson acceleration of a fixed-point iteration, type II.

With r_k = T(y_k) - y_k and the differences Δy_i, Δr_i of the last m steps as columns of Y and R,

    c = argmin_c ‖r_k - R D c‖² + ridge ‖c‖²,    y_{k+1} = y_k + damping r_k - (Y + damping R) D c,

where D scales the columns of R to norm 1, so that the ridge has no unit and old, large differences do not outweigh
new ones. The least squares go through a QR factorization: normal equations would lose half of the digits.

A point whose residual is more than `GROWTH` times the last one is not taken; the memory is emptied instead, and a
plain step follows.

References:
    Anderson (1965), Iterative procedures for nonlinear integral equations.
    Walker, Ni (2011), Anderson acceleration for fixed-point iterations, sec. 2.
    Zhang, O'Donoghue, Boyd (2020), Globally convergent type-I Anderson acceleration for nonsmooth fixed-point
    iterations (why restarts and a safeguard are needed).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping
from jaxdiv.solvers.fixed_point import relative, residual

GROWTH = 2.0
_HIGHEST = jax.lax.Precision.HIGHEST


class AndersonState(NamedTuple):
    """State of `Anderson`.

    Attributes:
        value: The point y.
        error: ‖T(y) - y‖ / (1 + ‖y‖).
        status: A status code.
        residual: T(y) - y.
        steps_of_value: The last differences of points, newest first, 0 where there are none.
        steps_of_residual: The differences of their residuals.
        filled: How many there are.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    residual: PyTree
    steps_of_value: Float[Array, "memory n"]
    steps_of_residual: Float[Array, "memory n"]
    filled: Int[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class Anderson:
    """Finds ``y = fun(y, *args)`` by Anderson acceleration; a `core.Solver`.

    Args:
        fun: ``fun(y, *args)``, of the structure and shapes of y. Static.
        tol: Converged when ``‖fun(y) - y‖ <= tol (1 + ‖y‖)``.
        memory: Number of past steps that are combined, at least 1. Static.
        damping: Length of the part along the residual, positive.
        ridge: Weight of the regularization, without unit. None is the rounding unit of the dtype.

    Raises:
        ValueError: If an option is out of its range, or `fun` leaves the space of y.

    Note:
        The memory holds 2 · `memory` vectors of the size of y in one common dtype.

    Example:
        >>> from jaxdiv import core, solvers
        >>> solution = core.run(solvers.Anderson(jnp.cos), jnp.array(1.0), max_steps=100)
        >>> print(f"{solution.raise_if_failed().value:.4f}", int(solution.steps) < 10)
        0.7391 True
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    memory: int = static_field(default=5)
    damping: Numeric = 1.0
    ridge: Numeric | None = None

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("memory", self.memory, 1)
        checks.in_range("damping", self.damping, 0.0, open_low=True)
        if self.ridge is not None:
            checks.in_range("ridge", self.ridge, 0.0)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``fun(y) - y``, zero exactly at a fixed point."""
        return residual(self.fun, value, args)

    def init(self, y0: PyTree, *args: Any) -> AndersonState:
        """The first state, with the error of `y0`."""
        value = stopping.start("y0", y0)
        change = self.optimality(value, *args)
        error = relative(change, value)
        flat, _ = ravel_pytree(value)
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        status, watch = stopping.first(error, self.tol)
        return AndersonState(value, error, status, change, empty, empty, jnp.zeros((), jnp.int32), watch)

    def step(self, state: AndersonState, *args: Any) -> AndersonState:
        """One evaluation of `fun`."""
        y, unravel = ravel_pytree(state.value)
        r, _ = ravel_pytree(state.residual)
        trial = self._next(y, r, state.steps_of_value, state.steps_of_residual)
        value = unravel(trial)
        change = self.optimality(value, *args)
        image, _ = ravel_pytree(change)

        # Not a number counts as growth; the plain step, which has no memory, is always taken.
        taken = (state.filled == 0) | (stopping.norm(change) <= GROWTH * stopping.norm(state.residual))
        steps_of_value = jnp.roll(state.steps_of_value, 1, axis=0).at[0].set(trial - y)
        steps_of_residual = jnp.roll(state.steps_of_residual, 1, axis=0).at[0].set(image - r)
        filled = jnp.where(taken, jnp.minimum(state.filled + 1, self.memory), 0).astype(jnp.int32)
        steps_of_value, steps_of_residual = (
            jnp.where(taken, steps, 0.0) for steps in (steps_of_value, steps_of_residual)
        )
        value, change = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old), (value, change), (state.value, state.residual)
        )
        error = relative(change, value)
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return AndersonState(value, error, status, change, steps_of_value, steps_of_residual, filled, watch)

    def _next(self, y: Array, r: Array, steps_of_value: Array, steps_of_residual: Array) -> Array:
        """The point that combines the memory; of rows of zeros nothing comes."""
        size = jnp.linalg.norm(steps_of_residual, axis=1)
        scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1.0), 0.0)
        ridge = jnp.finfo(y.dtype).eps if self.ridge is None else self.ridge
        # A ridge below the square of the rounding unit would leave the rows of zeros singular.
        ridge = jnp.maximum(jnp.sqrt(jnp.asarray(ridge, y.dtype)), jnp.finfo(y.dtype).eps)
        rows = jnp.concatenate([(scale[:, None] * steps_of_residual).T, ridge * jnp.eye(self.memory)])
        q, upper = jnp.linalg.qr(rows.astype(y.dtype))
        target = jnp.concatenate([r, jnp.zeros(self.memory, y.dtype)])
        weights = scale * jax.scipy.linalg.solve_triangular(
            upper, jnp.matmul(q.T, target, precision=_HIGHEST)
        )
        steps = steps_of_value + self.damping * steps_of_residual
        return (y + self.damping * r - jnp.matmul(weights, steps, precision=_HIGHEST)).astype(y.dtype)
