r"""L-BFGS with optax's zoom line search.

    y <- y - s P ∇f(y)

where P approximates the inverse Hessian by the last pairs of steps and gradient differences, and s satisfies the
strong Wolfe conditions, in the approximate form of Hager and Zhang near the minimum. The line search hands on the
objective and the gradient at its last trial, so that a step of length 1 costs one evaluation.

References:
    Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization.
    Hager, Zhang (2006), Algorithm 851: CG_DESCENT, sec. 4.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import gradient, stopping
from jaxdiv.solvers.gradient import GradientState


@pytree_dataclass
class LBFGS:
    """Minimizes ``fun(y, *args)`` by L-BFGS; a `core.Solver`.

    Args:
        fun: ``fun(y, *args) -> scalar``. Static.
        tol: Converged when ``‖∇f(y)‖ <= tol (1 + ‖∇f(y0)‖)``, with y0 where the run began.
        memory: Number of past steps that approximate the Hessian, at least 1. Static.
        max_linesearch_steps: Evaluations per step at most. Static.

    Raises:
        ValueError: If an option is out of its range, or `fun` does not return a floating scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import core, solvers
        >>> rosenbrock = lambda y: (1 - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2
        >>> solution = core.run(solvers.LBFGS(rosenbrock), jnp.array([-1.2, 1.0]), max_steps=100)
        >>> solution.raise_if_failed().value.round(2).tolist()
        [1.0, 1.0]
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    memory: int = static_field(default=10)
    max_linesearch_steps: int = static_field(default=20)

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("memory", self.memory, 1)
        checks.in_range("max_linesearch_steps", self.max_linesearch_steps, 1)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """The gradient of `fun`, zero exactly at a stationary point."""
        return gradient.value_and_grad(self.fun, value, args)[1]

    def init(self, y0: PyTree, *args: Any) -> GradientState:
        """The first state, with the gradient at `y0`."""
        return gradient.begin(self.fun, _transformation(self), self.tol, y0, args)

    def step(self, state: GradientState, *args: Any) -> GradientState:
        """One line search along the quasi-Newton direction."""
        value, memory = gradient.update(self.fun, _transformation(self), state, args)
        # The line search is the last of the chain; its state holds what it evaluated at the new point.
        search = memory[-1]
        return gradient.after(state, self.tol, value, search.value, search.grad, memory)


def _transformation(solver: LBFGS) -> optax.GradientTransformation:
    return _built(solver.memory, solver.max_linesearch_steps)


@functools.cache
def _built(memory: int, steps: int) -> optax.GradientTransformation:
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=steps, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=memory, linesearch=search)
