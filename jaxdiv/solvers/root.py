r"""Roots by Newton's method or the chord method, through optimistix.

    y <- y - J(y)⁻¹ F(y)        (Newton),        y <- y - J(y0)⁻¹ F(y)        (chord)

Newton converges quadratically from near a root at which J is regular; far from one it may diverge (`Broyden` has a
line search).

References:
    Rader, Lyons, Kidger (2024), Optimistix: modular optimisation in JAX and Equinox.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import lineax  # type: ignore[import-untyped]
import optimistix
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stepping, stopping

_METHODS = {"newton": optimistix.Newton, "chord": optimistix.Chord}


class RootState(NamedTuple):
    """State of `Root`.

    Attributes:
        value: The point y.
        error: ‖F(y)‖ / (1 + ‖F(y0)‖).
        status: A status code.
        inner: The arrays of optimistix's state.
        scale: 1 + ‖F(y0)‖.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    inner: stepping.Inner
    scale: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class Root:
    """Finds ``fun(y, *args) = 0``; a `core.Solver`.

    Args:
        fun: ``fun(y, *args)``, of the structure and shapes of y. Static.
        tol: Converged when ``‖F(y)‖ <= tol (1 + ‖F(y0)‖)``, with y0 where the run began.
        method: ``"newton"``, or ``"chord"``, which keeps the first Jacobian. Static.
        linear_solver: A lineax solver of the Newton systems. The default holds the Jacobian, n x n for y of n
            elements; ``lineax.GMRES(rtol, atol)`` never does. Static.

    Raises:
        ValueError: If an option is out of its range, or `fun` leaves the space of y.

    Note:
        A singular Jacobian ends NONFINITE at the last point before it, or STALLED for a y of one element. A step
        evaluates `fun` twice: at the point before, for the Jacobian, and at the one after, so that the error
        belongs to the value.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import core, solvers
        >>> solver = solvers.Root(lambda y, a: y**2 - a, tol=1e-6)
        >>> solution = core.run(solver, jnp.array(1.0), 2.0, max_steps=10).raise_if_failed()
        >>> f"{solution.value:.5f}"
        '1.41421'
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    method: str = static_field(default="newton")
    linear_solver: lineax.AbstractLinearSolver = static_field(
        default=lineax.AutoLinearSolver(well_posed=None)
    )

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.one_of("method", self.method, tuple(_METHODS))

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``fun(y)``, zero exactly at a root."""
        return stopping.same_space("the output of fun", self.fun(value, *args), value)

    def init(self, y0: PyTree, *args: Any) -> RootState:
        """The first state, with the error of `y0`."""
        value = stopping.start("y0", y0)
        size = stopping.norm(self.optimality(value, *args))
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        inner = stepping.begin(self._method(), lambda y: self.optimality(y, *args), value)
        return RootState(value, error, status, inner, 1 + size, watch)

    def step(self, state: RootState, *args: Any) -> RootState:
        """One Newton step."""
        value, inner = stepping.advance(
            self._method(), lambda y: self.optimality(y, *args), state.value, state.inner
        )
        error = stopping.norm(self.optimality(value, *args)) / state.scale
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return RootState(value, error, status, inner, state.scale, watch)

    def _method(self) -> Any:
        # The tolerances are those of a stopping rule that is not asked.
        return _METHODS[self.method](rtol=1.0, atol=1.0, linear_solver=self.linear_solver)
