r"""Broyden's good method with limited memory and a derivative-free line search.

    d = -H F(y),    y⁺ = y + λ d,    H⁺ = H + (s - H z) sᵀH / (sᵀH z),    s = y⁺ - y,  z = F(y⁺) - F(y)

H approximates the inverse Jacobian and is held as γ I plus one rank-one term ``u vᵀ`` per step, with
``u = (s - H z) / (sᵀH z)`` and ``v = Hᵀ s``. A full memory, or a direction that no λ makes acceptable, is thrown
away; γ is then the least-squares fit of γ J F = F, whose sign makes -γ F a descent direction of ‖F‖.

λ is the first of 1, ½, ¼, … with ``‖F(y + λ d)‖ <= (1 + 1/(k + 1)² - λ / 10⁴) ‖F(y)‖`` at step k: the norm may
grow, but by a bounded factor in all, which needs no derivative of ‖F‖ along d.

References:
    Broyden (1965), A class of methods for solving nonlinear simultaneous equations.
    Li, Fukushima (2000), A derivative-free line search and global convergence of Broyden-like method for
    nonlinear equations.
    Kelley (1995), Iterative methods for linear and nonlinear equations, ch. 7 (limited memory).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.core import any_lane, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping

HALVINGS = 12
DECREASE = 1e-4
_HIGHEST = jax.lax.Precision.HIGHEST


class BroydenState(NamedTuple):
    """State of `Broyden`.

    Attributes:
        value: The point y.
        error: ‖F(y)‖ / (1 + ‖F(y0)‖).
        status: A status code.
        residual: F(y).
        gamma: H without memory is gamma times the identity.
        left: The vectors u, 0 where there are none.
        right: The vectors v.
        filled: How many there are.
        steps: Steps taken.
        scale: 1 + ‖F(y0)‖.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    residual: PyTree
    gamma: Float[Array, ""]
    left: Float[Array, "memory n"]
    right: Float[Array, "memory n"]
    filled: Int[Array, ""]
    steps: Int[Array, ""]
    scale: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class Broyden:
    """Finds ``fun(y, *args) = 0`` without Jacobians; a `core.Solver`.

    Args:
        fun: ``fun(y, *args)``, of the structure and shapes of y. Static.
        tol: Converged when ``‖F(y)‖ <= tol (1 + ‖F(y0)‖)``, with y0 where the run began.
        memory: Number of past steps that approximate the Jacobian, at least 1. Static.

    Raises:
        ValueError: If an option is out of its range, or `fun` leaves the space of y.

    Note:
        The memory holds 2 · `memory` vectors of the size of y in one common dtype.

    Example:
        >>> from jaxdiv import core, solvers
        >>> solver = solvers.Broyden(lambda y, a: y**3 + y - a, tol=1e-6)
        >>> solution = core.run(solver, jnp.zeros(2), jnp.array([2.0, 10.0]), max_steps=50).raise_if_failed()
        >>> solution.value.round(4).tolist()
        [1.0, 2.0]
    """

    fun: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    memory: int = static_field(default=20)

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("memory", self.memory, 1)

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``fun(y)``, zero exactly at a root."""
        return stopping.same_space("the output of fun", self.fun(value, *args), value)

    def init(self, y0: PyTree, *args: Any) -> BroydenState:
        """The first state, with the error of `y0`."""
        value = stopping.start("y0", y0)
        residual = self.optimality(value, *args)
        size = stopping.norm(residual)
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        flat, _ = ravel_pytree(value)
        empty, zero = jnp.zeros((self.memory, flat.size), flat.dtype), jnp.zeros((), jnp.int32)
        gamma = self._gamma(value, residual, args)
        return BroydenState(value, error, status, residual, gamma, empty, empty, zero, zero, 1 + size, watch)

    def step(self, state: BroydenState, *args: Any) -> BroydenState:
        """One line search along the quasi-Newton direction."""
        y, unravel = ravel_pytree(state.value)
        f, _ = ravel_pytree(state.residual)
        direction = -_apply(state, f)
        trial, image, taken = self._search(y, f, direction, state.steps, unravel, args)

        s, z = trial - y, image - f
        hz = _apply(state, z)
        hts = state.gamma * s + _combine(state.left, state.right, s)
        pivot = jnp.vdot(s, hz, precision=_HIGHEST)
        # A pivot of rounding size would make H singular or huge.
        usable = jnp.abs(pivot) > jnp.finfo(y.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(hz)
        full = state.filled >= self.memory
        anew = full | ~taken
        slot = jnp.where(usable & taken, state.filled, self.memory)  # beyond the end: dropped
        left = state.left.at[slot].set((s - hz) / jnp.where(usable, pivot, 1.0), mode="drop")
        right = state.right.at[slot].set(hts, mode="drop")
        left, right = (jnp.where(anew, 0.0, rows) for rows in (left, right))
        filled = jnp.where(anew, 0, state.filled + usable).astype(jnp.int32)

        value, residual = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (unravel(trial), unravel(image)),
            (state.value, state.residual),
        )
        gamma = jax.lax.cond(
            any_lane(anew),
            lambda: jnp.where(anew, self._gamma(value, residual, args), state.gamma),
            lambda: state.gamma,
        )
        error = stopping.norm(residual) / state.scale
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, value)
        return BroydenState(
            value, error, status, residual, gamma, left, right, filled, state.steps + 1, state.scale, watch
        )

    def _search(
        self, y: Array, f: Array, direction: Array, steps: Array, unravel: Any, args: tuple[Any, ...]
    ) -> tuple[Array, Array, Bool[Array, ""]]:
        """The first acceptable point along the direction, its image, and whether there is one."""
        size, growth = stopping.norm(f), 1 / (steps + 1.0).astype(f.dtype) ** 2

        def at(length: Array) -> tuple[Array, Array, Bool[Array, ""]]:
            trial = y + length * direction
            image = ravel_pytree(self.optimality(unravel(trial), *args))[0].astype(y.dtype)
            # Not a number is not acceptable.
            return trial, image, stopping.norm(image) <= (1 + growth - DECREASE * length) * size

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            count, *_ = carry
            return count + 1, *at(jnp.exp2(-(count + 1).astype(y.dtype)))

        first = (jnp.zeros((), jnp.int32), *at(jnp.ones((), y.dtype)))
        _, *found = jax.lax.while_loop(lambda carry: ~carry[3] & (carry[0] < HALVINGS), body, first)
        return found[0], found[1], found[2]

    def _gamma(self, value: PyTree, residual: PyTree, args: tuple[Any, ...]) -> Array:
        """The fit of gamma J F = F, 1 where J F vanishes."""
        f, _ = ravel_pytree(residual)
        jf, _ = ravel_pytree(jax.jvp(lambda y: self.optimality(y, *args), (value,), (residual,))[1])
        size = stopping.norm(jf)
        unit = jf / jnp.where(size > 0, size, 1.0)
        fit = jnp.vdot(unit, f, precision=_HIGHEST) / jnp.where(size > 0, size, 1.0)
        return jnp.where((fit != 0) & jnp.isfinite(fit), fit, 1.0).astype(f.dtype)


def _apply(state: BroydenState, x: Array) -> Array:
    """H x."""
    return state.gamma * x + _combine(state.right, state.left, x)


def _combine(inner: Array, outer: Array, x: Array) -> Array:
    return jnp.matmul(jnp.matmul(inner, x, precision=_HIGHEST), outer, precision=_HIGHEST)
