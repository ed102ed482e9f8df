r"""Nonlinear least squares, ``min ½ ‖r(y)‖²``, through optimistix.

    (JᵀJ + λ I) d = -Jᵀ r,    y <- y + d        (Levenberg-Marquardt: λ grows where a step gains too little)

``"dogleg"`` bends from the gradient towards the Gauss-Newton step within a trust region, ``"gauss_newton"`` takes
λ = 0. The systems are solved by QR on the stacked (J, √λ I), not by normal equations.

References:
    Marquardt (1963), An algorithm for least-squares estimation of nonlinear parameters.
    Powell (1970), A new algorithm for unconstrained optimization.
    Rader, Lyons, Kidger (2024), Optimistix: modular optimisation in JAX and Equinox.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import lineax  # type: ignore[import-untyped]
import optimistix
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stepping, stopping

_METHODS = {
    "levenberg_marquardt": optimistix.LevenbergMarquardt,
    "dogleg": optimistix.Dogleg,
    "gauss_newton": optimistix.GaussNewton,
}


class LeastSquaresState(NamedTuple):
    """State of `LeastSquares`.

    Attributes:
        value: The point y.
        error: ‖Jᵀr(y)‖ / (1 + ‖Jᵀr(y0)‖).
        status: A status code.
        inner: The arrays of optimistix's state.
        scale: 1 + ‖Jᵀr(y0)‖.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    inner: stepping.Inner
    scale: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class LeastSquares:
    """Minimizes half the sum of squares of ``fun(y, *args)``; a `core.Solver`.

    Args:
        fun: ``fun(y, *args)``, a pytree of residuals. Static.
        tol: Converged when ``‖Jᵀr(y)‖ <= tol (1 + ‖Jᵀr(y0)‖)``, with y0 where the run began.
        method: ``"levenberg_marquardt"``, ``"dogleg"`` or ``"gauss_newton"``. Static.
        linear_solver: A lineax solver of the linear least squares of a step; None is that of optimistix, which
            holds the Jacobian. ``lineax.LSMR(rtol, atol)`` never does. Static.

    Raises:
        ValueError: If an option is out of its range, or `fun` does not return floating arrays.

    Note:
        A step evaluates a trial point: the first one y0 itself, so that the value moves from the second on. Trial
        points are judged by their sums of squares, whose differences end at rounding: with residuals that do not
        vanish at the solution, a tol much below the square root of the dtype's epsilon may end STALLED.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import core, solvers
        >>> t = jnp.linspace(0.0, 1.0, 5)
        >>> solver = solvers.LeastSquares(lambda y, data: y[0] * jnp.exp(-y[1] * t) - data)
        >>> solution = core.run(solver, jnp.ones(2), 2.0 * jnp.exp(-3.0 * t), max_steps=50).raise_if_failed()
        >>> solution.value.round(2).tolist()
        [2.0, 3.0]
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    method: str = static_field(default="levenberg_marquardt")
    linear_solver: lineax.AbstractLinearSolver | None = static_field(default=None)

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.one_of("method", self.method, tuple(_METHODS))

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """The gradient ``Jᵀ r``, zero exactly at a stationary point."""
        residuals, pull = jax.vjp(lambda y: self._residuals(y, args), value)
        return pull(residuals)[0]

    def init(self, y0: PyTree, *args: Any) -> LeastSquaresState:
        """The first state, with the error of `y0`."""
        value = stopping.start("y0", y0)
        size = stopping.norm(self.optimality(value, *args))
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        inner = stepping.begin(self._method(), lambda y: self._residuals(y, args), value)
        return LeastSquaresState(value, error, status, inner, 1 + size, watch)

    def step(self, state: LeastSquaresState, *args: Any) -> LeastSquaresState:
        """One trial point, taken or not."""
        value, inner = stepping.advance(
            self._method(), lambda y: self._residuals(y, args), state.value, state.inner
        )
        error = stopping.norm(self.optimality(value, *args)) / state.scale
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return LeastSquaresState(value, error, status, inner, state.scale, watch)

    def _residuals(self, y: PyTree, args: tuple[Any, ...]) -> PyTree:
        return jax.tree.map(lambda r: checks.floating("the output of fun", r), self.fun(y, *args))

    def _method(self) -> Any:
        # The tolerances are those of a stopping rule that is not asked.
        options = {} if self.linear_solver is None else {"linear_solver": self.linear_solver}
        return _METHODS[self.method](rtol=1.0, atol=1.0, **options)
