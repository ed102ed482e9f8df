r"""Newton's method for equality constraints: sketched systems, and an exact augmented Lagrangian to descend on.

For ``min f(x)`` with c(x) = 0, L = f + λᵀc and G = ∂c/∂x, the merit function

    𝓛_η(x, λ) = L + (η₁ / 2) ‖c‖² + (η₂ / 2) ‖G ∇_x L‖²

has, for large η₁ and small η₂, the solutions among its minimizers. A step solves the Newton system of the optimality
conditions r = (∇_x L, c) inexactly,

    Γ z = -r,    Γ = [[B, Gᵀ], [G, 0]],    z = (Δx, Δλ)

with B = ∇²_xx L, raised by a multiple of the identity where it is not at least 1e-3 on the null space of G. It does so
by sketch and project, from z = 0, until both of

    ‖Γ z + r‖ <= κ ‖r‖,    ∇𝓛_ηᵀ z <= -(η₂ / 2) ‖r‖²

hold. Where the first does and the second does not, η₁ grows by ν², η₂ shrinks by ν, κ by ν⁴, and the same solve goes
on. The step length is the first of 1, ½, ¼, … with 𝓛_η(x + α Δx, λ + α Δλ) <= 𝓛_η + α β ∇𝓛_ηᵀ z.

The paper's threshold on the residual is computed from bounds on Γ and on the merit function; κ stands for it here.

References:
    Hong, Na, Mahoney, Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized iterative
    sketching.
    Gower, Richtárik (2015), Randomized iterative methods for linear systems.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import Status, checks, pytree_dataclass, safe_norm, static_field
from jaxdiv.core.types import Key, Numeric
from jaxdiv.linalg.sketch_and_project import SKETCHES, correction
from jaxdiv.solvers import stopping
from jaxdiv.solvers.gradient import value_and_grad

CONVEXITY = 1e-3  # of B on the null space of G, at least
HALVINGS = 40
SLACK = 10  # units of rounding of the merit function, of which its differences are made
_HIGHEST = jax.lax.Precision.HIGHEST


class EALNewtonState(NamedTuple):
    """State of `EALNewton`.

    Attributes:
        value: The pair (x, λ).
        error: ‖(∇_x L, c)‖ / (1 + the same at the start).
        status: A status code.
        penalties: (η₁, η₂).
        accuracy: κ.
        size: The last step length α; 0 if none was taken.
        sketches: Sketches used so far; with the key of the solver it gives the next one.
        scale: 1 + ‖(∇_x L, c)‖ at the start.
        watch: What is remembered to see a stall.
    """

    value: tuple[PyTree, PyTree]
    error: Float[Array, ""]
    status: Int[Array, ""]
    penalties: Float[Array, "2"]
    accuracy: Float[Array, ""]
    size: Float[Array, ""]
    sketches: Int[Array, ""]
    scale: Float[Array, ""]
    watch: stopping.Watch


class _Inner(NamedTuple):
    draws: Array
    z: Array
    residual: Array
    penalties: Array
    accuracy: Array
    done: Array


@pytree_dataclass
class EALNewton:
    """Minimizes ``fun(x, *args)`` subject to ``constraint(x, *args) = 0``; a `core.Solver` of pairs (x, λ).

    Args:
        fun: ``fun(x, *args) -> scalar``. Static.
        constraint: ``constraint(x, *args)``, a pytree like λ; its Jacobian must have full rank. Static.
        sketch: ``"gaussian"``, ``"count"``, ``"kaczmarz"``, or ``"exact"`` for direct solves. Static.
        sketch_size: q, the equations combined at a time. Static.
        tol: Converged when ``‖(∇_x L, c)‖ <= tol (1 + ‖(∇_x L, c)‖ at the start)``.
        penalty: The first η₁, positive.
        multiplier_penalty: The first η₂, positive.
        growth: ν, above 1.
        armijo: β, between 0 and ½.
        accuracy: The first κ, between 0 and 1.
        max_sketches: Sketches of one step at most; a direction that descends is then taken as it is.
        key: Random key; ``jax.random.key(0)`` by default.

    Raises:
        ValueError: If an option is out of its range, y0 is no pair, `fun` does not return a floating scalar, or
            `constraint` does not return a pytree like λ.

    Note:
        Γ is formed and ∇²L factorized on the null space of G once a step; the merit function's gradient needs third
        derivatives of `fun`. In float32 ill-conditioned systems need more sketches than they are worth.

    References:
        Hong, Na, Mahoney, Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized
        iterative sketching.

    Example:
        >>> from jaxdiv import core, solvers
        >>> solver = solvers.EALNewton(lambda x: x[0] + x[1], lambda x: x @ x - 2.0, tol=1e-4)
        >>> solution = core.run(solver, (jnp.array([-1.5, 0.3]), jnp.array(1.0)), max_steps=50)
        >>> jax.tree.map(lambda x: x.round(2).tolist(), solution.raise_if_failed().value)
        ([-1.0, -1.0], 0.5)
    """

    fun: Callable[..., Any] = static_field()
    constraint: Callable[..., Any] = static_field()
    sketch: str = static_field(default="gaussian")
    sketch_size: int = static_field(default=4)
    tol: Numeric = 1e-5
    penalty: Numeric = 1.0
    multiplier_penalty: Numeric = 0.1
    growth: Numeric = 1.5
    armijo: Numeric = 0.3
    accuracy: Numeric = 0.1
    max_sketches: Numeric = 10_000
    key: Key | None = None

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun, constraint=self.constraint)
        checks.one_of("sketch", self.sketch, (*SKETCHES, "exact"))
        checks.in_range("sketch_size", self.sketch_size, 1)
        checks.in_range("tol", self.tol, 0.0)
        for name in ("penalty", "multiplier_penalty"):
            checks.in_range(name, getattr(self, name), 0.0, open_low=True)
        checks.in_range("growth", self.growth, 1.0, open_low=True)
        for name, high in (("armijo", 0.5), ("accuracy", 1.0)):
            checks.in_range(name, getattr(self, name), 0.0, high, open_low=True, open_high=True)
        checks.in_range("max_sketches", self.max_sketches, 1)

    def optimality(self, value: tuple[PyTree, PyTree], *args: Any) -> tuple[PyTree, PyTree]:
        """``(∇_x L, c)``, zero exactly at a stationary point."""
        x, multipliers = value
        out, pull = jax.vjp(lambda x: self._constraint(x, multipliers, args), x)
        _, gradient = value_and_grad(self.fun, x, args)
        return jax.tree.map(jnp.add, gradient, pull(multipliers)[0]), out

    def init(self, y0: tuple[PyTree, PyTree], *args: Any) -> EALNewtonState:
        """The first state, at a pair (x, λ)."""
        if not isinstance(y0, tuple) or len(y0) != 2:
            raise ValueError(f"y0 must be a pair (x, multipliers); got {type(y0).__name__}.")
        value: tuple[PyTree, PyTree] = stopping.start("y0", y0)
        flat, _ = ravel_pytree(value)
        size = stopping.norm(self.optimality(value, *args))
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        penalties = jnp.stack([jnp.asarray(p, flat.dtype) for p in (self.penalty, self.multiplier_penalty)])
        accuracy, one = jnp.asarray(self.accuracy, flat.dtype), jnp.ones((), flat.dtype)
        none = jnp.zeros((), jnp.int32)
        return EALNewtonState(value, error, status, penalties, accuracy, one, none, 1 + size, watch)

    def step(self, state: EALNewtonState, *args: Any) -> EALNewtonState:
        """One inexact Newton direction, and a line search along it."""
        flat, unravel = ravel_pytree(state.value)
        parts, terms = self._merit(unravel, flat, args)
        gamma, r = self._system(unravel, flat, args)
        inner = self._direction(state, gamma, r, terms)
        weights = _weights(inner.penalties)
        value, slope = jnp.dot(weights, parts(flat)), jnp.dot(weights, terms @ inner.z)
        rounding = SLACK * jnp.finfo(flat.dtype).eps * jnp.abs(value)

        def falls(size: Array) -> Array:
            trial = jnp.dot(weights, parts(flat + size * inner.z))
            # Not a number is no descent.
            return (slope < 0) & (trial <= value + size * self.armijo * slope + rounding)

        def shorter(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            count, size, _ = carry
            return count + 1, size / 2, falls(size / 2)

        one = jnp.ones((), flat.dtype)
        _, size, taken = jax.lax.while_loop(
            lambda carry: ~carry[2] & (carry[0] < HALVINGS),
            shorter,
            (jnp.zeros((), jnp.int32), one, falls(one)),
        )
        new = unravel(jnp.where(taken, flat + size * inner.z, flat))
        error = jnp.where(taken, stopping.norm(self.optimality(new, *args)) / state.scale, state.error)
        status, watch = stopping.judge(state.watch, error, self.tol, state.value, new)
        status = jnp.where(taken, status, Status.STALLED).astype(jnp.int32)
        size = jnp.where(taken, size, 0.0)
        sketches = state.sketches + inner.draws
        return EALNewtonState(
            new, error, status, inner.penalties, inner.accuracy, size, sketches, state.scale, watch
        )

    def _constraint(self, x: PyTree, multipliers: PyTree, args: tuple[Any, ...]) -> PyTree:
        return stopping.same_space("the output of constraint", self.constraint(x, *args), multipliers)

    def _merit(
        self, unravel: Any, flat: Array, args: tuple[Any, ...]
    ) -> tuple[Callable[[Array], Array], Array]:
        """The three terms of 𝓛 as a function of the flat pair, and their gradients [3, n + m]."""

        def parts(flat: Array) -> Array:
            x, multipliers = unravel(flat)
            gradient, out = self.optimality((x, multipliers), *args)
            pushed = jax.jvp(lambda x: self._constraint(x, multipliers, args), (x,), (gradient,))[1]
            c, push, weights = (ravel_pytree(t)[0].astype(flat.dtype) for t in (out, pushed, multipliers))
            lagrangian = self.fun(x, *args).astype(flat.dtype) + jnp.dot(weights, c)
            return jnp.stack([lagrangian, jnp.dot(c, c) / 2, jnp.dot(push, push) / 2])

        return parts, jax.jacrev(parts)(flat)

    def _system(self, unravel: Any, flat: Array, args: tuple[Any, ...]) -> tuple[Array, Array]:
        """Γ with its convexified block, and r."""

        def conditions(flat: Array) -> Array:
            return ravel_pytree(self.optimality(unravel(flat), *args))[0].astype(flat.dtype)

        n = ravel_pytree(unravel(flat)[0])[0].size
        gamma = jax.jacfwd(conditions)(flat)
        gamma = (gamma + gamma.T) / 2
        null = jnp.eye(n, dtype=flat.dtype)
        if flat.size > n:
            null = jnp.linalg.qr(gamma[:n, n:], mode="complete")[0][:, flat.size - n :]
        if null.shape[1]:
            least = jnp.linalg.eigvalsh(null.T @ gamma[:n, :n] @ null)[0]
            raised = jnp.maximum(CONVEXITY - least, 0.0)
            gamma = gamma.at[jnp.arange(n), jnp.arange(n)].add(raised)
        return gamma, conditions(flat)

    def _direction(self, state: EALNewtonState, gamma: Array, r: Array, terms: Array) -> _Inner:
        """A z with a small residual, along which the merit function of the returned penalties descends."""
        length = safe_norm(r)
        key = jax.random.key(0) if self.key is None else self.key
        growth = jnp.asarray(self.growth, r.dtype)
        factors = jnp.stack([growth**2, 1 / growth])

        def body(old: _Inner) -> _Inner:
            if self.sketch == "exact":
                z = jnp.linalg.solve(gamma, -r)
            else:
                draw = jax.random.fold_in(key, state.sketches + old.draws)
                z = old.z + correction(gamma, old.residual, draw, sketch=self.sketch, size=self.sketch_size)
            residual = jnp.matmul(gamma, z, precision=_HIGHEST) + r
            close = safe_norm(residual) <= old.accuracy * length
            slope = jnp.dot(_weights(old.penalties), terms @ z)
            descends = slope <= -old.penalties[1] / 2 * length**2
            sharpen = close & ~descends
            penalties = jnp.where(sharpen, old.penalties * factors, old.penalties)
            accuracy = jnp.where(sharpen, old.accuracy / growth**4, old.accuracy)
            return _Inner(old.draws + 1, z, residual, penalties, accuracy, close & descends)

        start = _Inner(
            jnp.zeros((), jnp.int32), jnp.zeros_like(r), r, state.penalties, state.accuracy, jnp.array(False)
        )
        return jax.lax.while_loop(lambda s: ~s.done & (s.draws < self.max_sketches), body, start)


def _weights(penalties: Array) -> Array:
    """Of the three terms of 𝓛."""
    return jnp.concatenate([jnp.ones(1, penalties.dtype), penalties])
