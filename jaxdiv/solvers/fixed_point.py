r"""Fixed-point iteration with damping.

    y <- y + damping (T(y) - y)

It converges linearly where this map contracts; a damping below 1 makes contractions of maps whose derivative has
eigenvalues near or beyond -1, one above 1 overrelaxes.

References:
    Krasnosel'skii (1955), Two remarks on the method of successive approximations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping


class FixedPointState(NamedTuple):
    """State of `FixedPoint`.

    Attributes:
        value: The point y.
        error: ‖T(y) - y‖ / (1 + ‖y‖).
        status: A status code.
        residual: T(y) - y.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    residual: PyTree
    watch: stopping.Watch


@pytree_dataclass
class FixedPoint:
    """Finds ``y = fun(y, *args)`` by iterating `fun`; a `core.Solver`.

    Args:
        fun: ``fun(y, *args)``, of the structure and shapes of y. Static.
        tol: Converged when ``‖fun(y) - y‖ <= tol (1 + ‖y‖)``.
        damping: Length of a step, positive; 1 is the plain iteration.

    Raises:
        ValueError: If an option is out of its range, or `fun` leaves the space of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import core, solvers
        >>> solution = core.run(solvers.FixedPoint(jnp.cos), jnp.array(1.0), max_steps=100)
        >>> f"{solution.raise_if_failed().value:.4f}"
        '0.7391'
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    damping: Numeric = 1.0

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("damping", self.damping, 0.0, open_low=True)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``fun(y) - y``, zero exactly at a fixed point."""
        return residual(self.fun, value, args)

    def init(self, y0: PyTree, *args: Any) -> FixedPointState:
        """The first state, with the error of `y0`."""
        value = stopping.start("y0", y0)
        change = self.optimality(value, *args)
        error = relative(change, value)
        status, watch = stopping.first(error, self.tol)
        return FixedPointState(value, error, status, change, watch)

    def step(self, state: FixedPointState, *args: Any) -> FixedPointState:
        """One evaluation of `fun`."""
        value = jax.tree.map(lambda y, r: (y + self.damping * r).astype(y.dtype), state.value, state.residual)
        change = self.optimality(value, *args)
        error = relative(change, value)
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return FixedPointState(value, error, status, change, watch)


def residual(fun: Callable[..., Any], value: PyTree, args: tuple[Any, ...]) -> PyTree:
    """``fun(y) - y``, after checking that `fun` stays in the space of y."""
    image = stopping.same_space("the output of fun", fun(value, *args), value)
    return jax.tree.map(lambda t, y: t - y, image, value)


def relative(change: PyTree, value: PyTree) -> Float[Array, ""]:
    """``‖change‖ / (1 + ‖value‖)``."""
    return stopping.norm(change) / (1 + stopping.norm(value))
