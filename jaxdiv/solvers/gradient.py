r"""Deterministic minimization by any optax transformation, with a stopping rule on the gradient.

    updates, memory = tx.update(∇f(y), memory, y, value=f(y), grad=∇f(y), value_fn=f),    y <- y + updates

References:
    DeepMind et al. (2020), The DeepMind JAX ecosystem (optax: chains of gradient transformations).
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


class GradientState(NamedTuple):
    """State of `Gradient` and of `LBFGS`.

    Attributes:
        value: The point y.
        error: ‖∇f(y)‖ / (1 + ‖∇f(y0)‖).
        status: A status code.
        objective: f(y).
        gradient: ∇f(y).
        memory: State of the optax transformation.
        scale: 1 + ‖∇f(y0)‖.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    objective: Float[Array, ""]
    gradient: PyTree
    memory: PyTree
    scale: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class Gradient:
    """Minimizes ``fun(y, *args)`` by an optax transformation; a `core.Solver`.

    Args:
        fun: ``fun(y, *args) -> scalar``. Static.
        tx: An optax transformation; it receives ``value``, ``grad`` and ``value_fn``, so that line searches work.
            Static: build it once, since a new one compiles anew.
        tol: Converged when ``‖∇f(y)‖ <= tol (1 + ‖∇f(y0)‖)``, with y0 where the run began.

    Raises:
        ValueError: If an option is out of its range, or `fun` does not return a floating scalar.

    Note:
        A transformation that does not come to rest, such as Adam at a constant learning rate, ends MAX_STEPS
        unless it passes a point within `tol`.

    Example:
        >>> from jaxdiv import core, solvers
        >>> solver = solvers.Gradient(lambda y, b: jnp.sum((y - b) ** 2), optax.sgd(0.1))
        >>> solution = core.run(solver, jnp.zeros(2), jnp.array([1.0, 2.0]), max_steps=100).raise_if_failed()
        >>> solution.value.round(3).tolist()
        [1.0, 2.0]
    """

    fun: Callable[..., Any] = static_field()
    tx: optax.GradientTransformation = static_field()
    tol: Numeric = 1e-5

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        if not isinstance(self.tx, optax.GradientTransformation):
            raise ValueError(
                f"tx must be an optax transformation; got {type(self.tx).__name__}; try optax.sgd(0.1)."
            )
        checks.in_range("tol", self.tol, 0.0)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """The gradient of `fun`, zero exactly at a stationary point."""
        return value_and_grad(self.fun, value, args)[1]

    def init(self, y0: PyTree, *args: Any) -> GradientState:
        """The first state, with the gradient at `y0`."""
        return begin(self.fun, self.tx, self.tol, y0, args)

    def step(self, state: GradientState, *args: Any) -> GradientState:
        """One update, and the gradient after it."""
        value, memory = update(self.fun, self.tx, state, args)
        objective, gradient = value_and_grad(self.fun, value, args)
        return after(state, self.tol, value, objective, gradient, memory)


def value_and_grad(fun: Callable[..., Any], y: PyTree, args: tuple[Any, ...]) -> tuple[Array, PyTree]:
    """The objective and its gradient, after checking that it is a floating scalar."""
    out = jax.eval_shape(fun, y, *args)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"fun must return a floating scalar; got {out}; sum or average its terms.")
    objective, gradient = jax.value_and_grad(fun)(y, *args)
    return objective, gradient


def begin(
    fun: Callable[..., Any], tx: optax.GradientTransformation, tol: Numeric, y0: PyTree, args: tuple[Any, ...]
) -> GradientState:
    """The first state of a minimization by `tx`."""
    value = stopping.start("y0", y0)
    objective, gradient = value_and_grad(fun, value, args)
    size = stopping.norm(gradient)
    error = size / (1 + size)
    status, watch = stopping.first(error, tol)
    return GradientState(value, error, status, objective, gradient, tx.init(value), 1 + size, watch)


def update(
    fun: Callable[..., Any], tx: optax.GradientTransformation, state: GradientState, args: tuple[Any, ...]
) -> tuple[PyTree, PyTree]:
    """The next value, and the transformation's state with it."""
    updates, memory = optax.with_extra_args_support(tx).update(
        state.gradient,
        state.memory,
        state.value,
        value=state.objective,
        grad=state.gradient,
        value_fn=lambda y: fun(y, *args),
    )
    return optax.apply_updates(state.value, updates), memory


def after(
    state: GradientState, tol: Numeric, value: PyTree, objective: Array, gradient: PyTree, memory: PyTree
) -> GradientState:
    """The state with a new value, at which objective and gradient are known."""
    error = stopping.norm(gradient) / state.scale
    status, watch = stopping.judge(state.watch, error, tol, state.value, value)
    return GradientState(value, error, status, objective, gradient, memory, state.scale, watch)
