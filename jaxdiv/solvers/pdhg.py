r"""The primal-dual hybrid gradient method of Chambolle and Pock, with adaptive steps and restarts.

For ``min_x max_y f(x) + ⟨K x, y⟩ - g*(y)``, with both functions given by their proximal operators:

    x⁺ = prox_f(x - τ Kᵀy, τ),    y⁺ = prox_g*(y + σ K (2 x⁺ - x), σ),    τ = η / ω,  σ = η ω

It converges for ``η ‖K‖ < 1``. Without a given η a step is taken if ``η <= η̄``, where

    η̄ = (ω ‖x⁺ - x‖² + ‖y⁺ - y‖² / ω) / (2 |⟨y⁺ - y, K (x⁺ - x)⟩|),

and the next η is the least of (1 - (k+1)^-0.3) η̄ and (1 + (k+1)^-0.6) η: no norm of K is needed. A restart goes
on from the average of the points since the last one, once its residual has fallen to a fifth of that at the
last restart, or to four fifths and no longer falls; on linear programs the rate becomes linear.

The error is the residual of the optimality conditions at (x⁺, y⁺), exactly: both of

    (x - x⁺) / τ + Kᵀ(y⁺ - y) ∈ ∂f(x⁺) + Kᵀy⁺,    (y - y⁺) / σ + K (x⁺ - x) ∈ ∂g*(y⁺) - K x⁺

References:
    Chambolle, Pock (2011), A first-order primal-dual algorithm for convex problems with applications to imaging.
    Applegate, Díaz, Hinder, Lu, Lubin, O'Donoghue, Schudy (2021), Practical large-scale linear programming using
    primal-dual hybrid gradient, alg. 3 (steps), sec. 3.2 (restarts).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import any_lane, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping

TRIALS = 20
PERIOD = 8  # steps between tests of the average
SUFFICIENT, NECESSARY = 0.2, 0.8
Pair = tuple[PyTree, PyTree]


class PDHGState(NamedTuple):
    """State of `PDHG`.

    Attributes:
        value: The points (x, y).
        error: The larger of the residuals of x and y, over 1 + ‖Kᵀy‖ and 1 + ‖K x‖; inf at first.
        status: A status code.
        images: (Kᵀy, K x).
        size: The step η.
        steps: Steps taken.
        sums: Those of value and images since the last restart, weighed by η.
        weight: The sum of the weights.
        reference: The residual at the last restart; inf until it is measured.
        latest: That of the average when it was last tested.
        watch: What is remembered to see a stall.
    """

    value: Pair
    error: Float[Array, ""]
    status: Int[Array, ""]
    images: Pair
    size: Float[Array, ""]
    steps: Int[Array, ""]
    sums: tuple[Pair, Pair]
    weight: Float[Array, ""]
    reference: Float[Array, ""]
    latest: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class PDHG:
    """Solves ``min_x max_y f(x) + ⟨K x, y⟩ - g*(y)``; a `core.Solver` of pairs (x, y).

    Args:
        operator: ``operator(x, *args)``, K x: linear in x. Static.
        prox_f: ``prox_f(x, step, *args)``, the minimizer of ``step f(u) + ½ ‖u - x‖²``. Static.
        prox_g: ``prox_g(y, step, *args)``, the same for the conjugate g*; the negative of f's part for a maximum.
            Static.
        tol: Converged when the residuals of x and y are at most ``tol (1 + ‖Kᵀy‖)`` and ``tol (1 + ‖K x‖)``.
        step_size: η, below 1 / ‖K‖; None adapts.
        primal_weight: ω, the ratio of the steps of y and x; about ‖y‖ / ‖x‖ at the solution is best.
        restart: Whether to restart from averages. Static.

    Raises:
        ValueError: If an option is out of its range, y0 is no pair, or a function leaves its space.

    Note:
        `optimality` takes both proximal steps at length 1. A restart is tested every eighth step, at the cost of
        a step.

    Example:
        >>> from jaxdiv import core, solvers
        >>> # min ½ ‖x - b‖² + ‖x‖₁, as a saddle point over ‖y‖∞ <= 1
        >>> solver = solvers.PDHG(
        ...     lambda x, b: x,
        ...     prox_f=lambda x, step, b: (x + step * b) / (1 + step),
        ...     prox_g=lambda y, step, b: jnp.clip(y, -1.0, 1.0),
        ... )
        >>> start = (jnp.zeros(2), jnp.zeros(2))
        >>> solution = core.run(solver, start, jnp.array([3.0, 0.5]), max_steps=200).raise_if_failed()
        >>> jnp.abs(solution.value[0]).round(3).tolist()
        [2.0, 0.0]
    """

    operator: Callable[..., Any] = static_field()
    prox_f: Callable[..., Any] = static_field()
    prox_g: Callable[..., Any] = static_field()
    tol: Numeric = 1e-5
    step_size: Numeric | None = None
    primal_weight: Numeric = 1.0
    restart: bool = static_field(default=True)

    def __post_init__(self) -> None:
        stopping.check_functions(operator=self.operator, prox_f=self.prox_f, prox_g=self.prox_g)
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("primal_weight", self.primal_weight, 0.0, open_low=True)
        if self.step_size is not None:
            checks.in_range("step_size", self.step_size, 0.0, open_low=True)

    def optimality(self, value: Pair, *args: Any) -> Pair:
        """``(x - prox_f(x - Kᵀy, 1), y - prox_g*(y + K x, 1))``, zero exactly at a saddle point."""
        x, y = value
        down, up = self._images(value, args)
        near = self._proximal("prox_f", x, down, -1.0, args)
        far = self._proximal("prox_g", y, up, 1.0, args)
        return optax.tree.sub(x, near), optax.tree.sub(y, far)

    def init(self, y0: Pair, *args: Any) -> PDHGState:
        """The first state, at a pair (x, y)."""
        if not isinstance(y0, tuple) or len(y0) != 2:
            raise ValueError(f"y0 must be a pair (x, y) of primal and dual; got {type(y0).__name__}.")
        value = (stopping.start("y0[0]", y0[0]), stopping.start("y0[1]", y0[1]))
        dtype = jnp.result_type(*jax.tree.leaves(value))
        inf, zero = jnp.full((), jnp.inf, dtype), jnp.zeros((), dtype)
        images = self._images(value, args)
        size = self._first_size(value[0], args) if self.step_size is None else self.step_size
        status, watch = stopping.first(inf, 0.0)
        sums = jax.tree.map(jnp.zeros_like, (value, images))
        return PDHGState(
            value, inf, status, images, jnp.asarray(size, dtype), jnp.zeros((), jnp.int32), sums, zero,
            inf, inf, watch,
        )  # fmt: skip

    def step(self, state: PDHGState, *args: Any) -> PDHGState:
        """One step of x and of y, and maybe a restart."""
        value, images, taken, size = self._search(state, args)
        error = self._residual((state.value, state.images), (value, images), taken)
        new = state._replace(value=value, error=error, images=images, size=size, steps=state.steps + 1)
        if self.restart:
            sums = jax.tree.map(lambda s, x: s + taken.astype(x.dtype) * x, state.sums, (value, images))
            new = new._replace(
                sums=sums,
                weight=state.weight + taken,
                reference=jnp.where(jnp.isinf(state.reference), error, state.reference),
            )
            new = jax.lax.cond(
                any_lane(new.steps % PERIOD == 0), lambda: self._restarted(new, args), lambda: new
            )
        status, watch = stopping.judge(state.watch, new.error, self.tol, state.value, new.value)
        return new._replace(status=status, watch=watch)

    def _restarted(self, state: PDHGState, args: tuple[Any, ...]) -> PDHGState:
        """The state a step after the average of the points, if that has become good enough."""
        mean = jax.tree.map(lambda s: (s / state.weight).astype(s.dtype), state.sums)
        after = self._move(mean, state.size, args)
        gap = self._residual(mean, after, state.size)
        good = (gap <= SUFFICIENT * state.reference) | (
            (gap <= NECESSARY * state.reference) & (gap > state.latest)
        )
        value, images = after
        restarted = state._replace(
            value=value,
            error=gap,
            images=images,
            sums=jax.tree.map(jnp.zeros_like, state.sums),
            weight=jnp.zeros_like(state.weight),
            reference=gap,
            latest=jnp.full_like(gap, jnp.inf),
        )
        due = good & (state.steps % PERIOD == 0)
        latest = jnp.where(state.steps % PERIOD == 0, gap, state.latest)
        return jax.tree.map(
            lambda new, old: jnp.where(due, new, old), restarted, state._replace(latest=latest)
        )

    def _search(self, state: PDHGState, args: tuple[Any, ...]) -> tuple[Pair, Pair, Array, Array]:
        """The next points, their images, the step that led there and the one to try next."""
        old = (state.value, state.images)
        if self.step_size is not None:
            return *self._move(old, state.size, args), state.size, state.size

        def at(count: Array, size: Array) -> tuple[Any, ...]:
            new = self._move(old, size, args)
            ((dx, dy), (_, dkx)) = optax.tree.sub(new, old)
            omega = jnp.asarray(self.primal_weight, size.dtype)
            length = omega * stopping.norm(dx) ** 2 + stopping.norm(dy) ** 2 / omega
            product = 2 * jnp.abs(optax.tree.vdot(dy, dkx)).astype(size.dtype)
            limit = jnp.where(product > 0, length / jnp.where(product > 0, product, 1.0), jnp.inf)
            k = (state.steps + count + 2).astype(size.dtype)
            later = jnp.minimum((1 - k**-0.3) * limit, (1 + k**-0.6) * size)
            return count + 1, new, size, later, size <= limit

        first = at(jnp.zeros((), jnp.int32), state.size)
        _, new, size, later, _ = jax.lax.while_loop(
            lambda carry: ~carry[4] & (carry[0] < TRIALS), lambda carry: at(carry[0], carry[3]), first
        )
        return *new, size, later

    def _move(self, old: tuple[Pair, Pair], size: Array, args: tuple[Any, ...]) -> tuple[Pair, Pair]:
        """One step from points and their images: the new ones."""
        (x, y), (down, up) = old
        new_x = self._proximal("prox_f", x, down, -size / self.primal_weight, args)
        new_up = self._image(new_x, args)
        ahead = jax.tree.map(lambda new, old: 2 * new - old, new_up, up)
        new_y = self._proximal("prox_g", y, ahead, size * self.primal_weight, args)
        return (new_x, new_y), (self._pull(new_x, new_y, args), new_up)

    def _residual(self, old: tuple[Pair, Pair], new: tuple[Pair, Pair], size: Array) -> Array:
        """The larger of the relative residuals at `new`, to which a step of `size` led from `old`."""
        ((dx, dy), (ddown, dup)) = optax.tree.sub(new, old)
        _, (down, up) = new
        rx = optax.tree.add_scale(ddown, -self.primal_weight / size, dx)
        ry = optax.tree.add_scale(dup, -1 / (size * self.primal_weight), dy)
        errors = (stopping.norm(r) / (1 + stopping.norm(scale)) for r, scale in ((rx, down), (ry, up)))
        return jnp.maximum(*errors).astype(size.dtype)

    def _proximal(self, name: str, point: PyTree, slope: PyTree, size: Any, args: tuple[Any, ...]) -> PyTree:
        """The proximal operator of length abs(size) at ``point + size · slope``."""
        moved = jax.tree.map(lambda p, s: (p + size * s).astype(p.dtype), point, slope)
        return stopping.same_space(
            f"the output of {name}", getattr(self, name)(moved, abs(size), *args), point
        )

    def _images(self, value: Pair, args: tuple[Any, ...]) -> Pair:
        x, y = value
        stopping.same_space("the dual y0[1]", y, jax.eval_shape(lambda: self._image(x, args)))
        return self._pull(x, y, args), self._image(x, args)

    def _image(self, x: PyTree, args: tuple[Any, ...]) -> PyTree:
        return self.operator(x, *args)

    def _pull(self, x: PyTree, y: PyTree, args: tuple[Any, ...]) -> PyTree:
        """Kᵀ y."""
        return jax.linear_transpose(lambda x: self._image(x, args), x)(y)[0]

    def _first_size(self, x: PyTree, args: tuple[Any, ...]) -> Array:
        """The inverse of the gain of K on KᵀK u for a random u: a little above 1 / ‖K‖."""
        u = optax.tree.random_like(jax.random.key(0), x)
        v = self._pull(x, self._image(u, args), args)
        size, gain = stopping.norm(v), stopping.norm(self._image(v, args))
        return jnp.where(gain > 0, size / jnp.where(gain > 0, gain, 1.0), 1.0)
