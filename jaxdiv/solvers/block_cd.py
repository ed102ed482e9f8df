r"""Block coordinate descent with greedy rules, three updates, and the active set of an l1 norm or of y ⪰ 0.

For ``min f(y) + h(y)``, h one of 0, λ ‖y‖₁ and the indicator of y ⪰ 0, with bounds H_b ⪰ ∇²_bb f and L_b = λ_max(H_b),
a step moves one block b by

    lipschitz   d = prox_{h / L_b}(y_b - ∇_b f / L_b) - y_b
    matrix      d = -H_b⁻¹ ∇_b f                                h = 0
    newton      d = -α (∇²_bb f)⁻¹ ∇_b f                        α by backtracking; see below for h ≠ 0

and the block is the next one, a random one, or the one with the largest score, which for h = 0 is

    gs          ‖∇_b f‖
    gsl         ‖∇_b f‖² / L_b
    gsd         Σ_{i ∈ b} (∇_i f)² / D_i,    D_i = |b| (H_b)_ii, so that D ⪰ H_b
    gsq         ∇_bᵀf H_b⁻¹ ∇_b f,           twice the decrease that a matrix update guarantees

With h, the scores of gsl and gsd are twice the decrease of the same models of f plus h, and that of gs the length of
the gradient mapping, L_b ‖d‖ (known as GS-q and GS-r). Variable blocks are the τ coordinates of largest score.

With h, Newton follows a lipschitz update of the block by a step on its entries that are not 0, where f + h is smooth;
an entry that would change its sign stops at 0, and only a decrease is taken. After finitely many steps the zeros are
those of the solution if |∇_i f| < λ there; then this is Newton's method on the rest: superlinear, and exact for a
quadratic once a block holds all of it.

References:
    Nutini, Laradji, Schmidt (2022), Let's make block coordinate descent converge faster: faster greedy rules,
    message-passing, active-set complexity, and superlinear convergence.
    Nutini, Schmidt, Laradji, Friedlander, Koepke (2015), Coordinate descent converges faster with the Gauss-Southwell
    rule than random selection (GS-r, GS-q).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv import convex, linalg
from jaxdiv.core import RUNNING, Status, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Key, Numeric
from jaxdiv.solvers import blocks as cuts
from jaxdiv.solvers import stopping
from jaxdiv.solvers.block_newton import newton
from jaxdiv.solvers.gradient import value_and_grad

RULES = ("gs", "gsl", "gsd", "gsq", "cyclic", "random")
UPDATES = ("lipschitz", "matrix", "newton")


class BlockCDState(NamedTuple):
    """State of `BlockCD`.

    Attributes:
        value: The point y.
        error: ‖y - prox_h(y - ∇f(y))‖, which is ‖∇f(y)‖ for h = 0, over 1 + the same at the start.
        status: A status code.
        gradient: ∇f(y).
        models: What is known of f's curvature.
        block: The coordinates of the last step, -1 where its block is shorter. [k]
        steps: Steps taken.
        swept: y at the start of the sweep, by which cyclic and random runs are judged.
        scale: 1 + the error's numerator at the start.
        watch: What is remembered to see a stall.
    """

    value: PyTree
    error: Float[Array, ""]
    status: Int[Array, ""]
    gradient: PyTree
    models: cuts.Models
    block: Int[Array, " k"]
    steps: Int[Array, ""]
    swept: PyTree
    scale: Float[Array, ""]
    watch: stopping.Watch


@pytree_dataclass
class BlockCD:
    """Minimizes ``fun(y, *args) + h(y)`` by moving one block at a time; a `core.Solver`.

    Args:
        fun: ``fun(y, *args) -> scalar``, smooth. Static.
        blocks: Coordinates of each block, in the order of ``ravel_pytree``: a sequence of sequences, or an array
            [blocks, k] padded with -1; together they cover y. None makes every coordinate a block. An integer τ makes
            variable blocks: the τ coordinates of largest score, for the rules ``"gs"`` and ``"gsd"``. Static.
        rule: ``"gs"``, ``"gsl"``, ``"gsd"``, ``"gsq"``, ``"cyclic"`` or ``"random"``. Static.
        update: ``"lipschitz"``, ``"matrix"`` or ``"newton"``. Static.
        prox: None, ``"l1"`` or ``"nonneg"``: h. Static.
        tol: Converged when ``‖y - prox_h(y - ∇f(y))‖ <= tol (1 + the same at y0)``.
        strength: λ of the l1 norm.
        bounds: Bounds on the blocks of the Hessian: L_b [blocks], H_b [blocks, k, k], or [n, n], from which blocks are
            cut. None takes the Hessian at y0, which is a bound for quadratics only.
        key: Random key of the rule ``"random"``; ``jax.random.key(0)`` by default.

    Raises:
        ValueError: If an option is out of its range, blocks do not cover y, `bounds` has another shape, or rule, update
            and prox do not go together.

    Note:
        Every step takes the whole gradient, which greedy rules read. Too small bounds may diverge, unless the update
        is Newton's, which only descends. Bounds are factorized with the rounding unit times L_b on the diagonal.

    References:
        Nutini, Laradji, Schmidt (2022), Let's make block coordinate descent converge faster.

    Example:
        >>> from jaxdiv import core, solvers
        >>> bowl = lambda y, b: jnp.sum(jnp.array([1.0, 2.0, 4.0]) * (y - b) ** 2) / 2
        >>> solver = solvers.BlockCD(bowl, ((0, 1), (2,)), prox="l1", strength=1.0, rule="gsl")
        >>> solution = core.run(solver, jnp.zeros(3), jnp.array([2.0, 0.4, 1.0]), max_steps=100)
        >>> solution.raise_if_failed().value.round(2).tolist()
        [1.0, 0.0, 0.75]
    """

    fun: Callable[..., Any] = static_field()
    blocks: Any = static_field(default=None)
    rule: str = static_field(default="gsl")
    update: str = static_field(default="lipschitz")
    prox: str | None = static_field(default=None)
    tol: Numeric = 1e-5
    strength: Numeric = 0.0
    bounds: Float[Array, "..."] | None = None
    key: Key | None = None

    def __post_init__(self) -> None:
        stopping.check_functions(fun=self.fun)
        checks.one_of("rule", self.rule, RULES)
        checks.one_of("update", self.update, UPDATES)
        checks.one_of("prox", self.prox, (None, "l1", "nonneg"))
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("strength", self.strength, 0.0)
        if self.prox is not None and self.update == "matrix":
            raise ValueError("update must be 'lipschitz' or 'newton' with a prox; got 'matrix'.")
        if self.prox is not None and self.rule == "gsq":
            raise ValueError(
                "rule must not be 'gsq' with a prox; take 'gsl', the decrease of the update's model."
            )
        if isinstance(self.blocks, int | np.integer):
            checks.in_range("blocks", self.blocks, 1)
            checks.one_of("rule of variable blocks", self.rule, ("gs", "gsd"))
        elif self.blocks is not None:
            object.__setattr__(self, "blocks", cuts.partition(self.blocks))

    def optimality(self, value: PyTree, *args: Any) -> PyTree:
        """``y - prox_h(y - ∇f(y))``, zero exactly at a solution."""
        _, gradient = value_and_grad(self.fun, value, args)
        return jax.tree.map(self._mapping, value, gradient)

    def init(self, y0: PyTree, *args: Any) -> BlockCDState:
        """The first state, with the gradient at `y0`, which is moved into y ⪰ 0 where that is asked."""
        value = stopping.start("y0", y0)
        if self.prox == "nonneg":
            value = jax.tree.map(lambda y: jnp.maximum(y, 0.0), value)
        _, gradient = value_and_grad(self.fun, value, args)
        flat, _ = ravel_pytree(value)
        table = cuts.table(self.blocks, flat.size)
        size = stopping.norm(jax.tree.map(self._mapping, value, gradient))
        error = size / (1 + size)
        status, watch = stopping.first(error, self.tol)
        none, block = jnp.zeros((), jnp.int32), jnp.full(table.shape[1], -1, jnp.int32)
        given = self.bounds
        if given is None:
            given = linalg.materialize(linalg.hessian_operator(lambda y: self.fun(y, *args), value), value)
        variable = isinstance(self.blocks, int | np.integer)
        models = cuts.models(jnp.asarray(given, flat.dtype), table, flat.size, variable=variable)
        return BlockCDState(value, error, status, gradient, models, block, none, value, 1 + size, watch)

    def step(self, state: BlockCDState, *args: Any) -> BlockCDState:
        """One update of one block, and the gradient after it."""
        y, unravel = ravel_pytree(state.value)
        g, _ = ravel_pytree(state.gradient)
        block, lipschitz, factor = self._choose(state, y, g)
        used = block >= 0
        # Padding points behind the end, where reads give 0 and writes are dropped.
        at = jnp.where(used, block, y.size)
        part, slope = cuts.read(y, at), cuts.read(g, at)
        if self.update == "matrix":
            part = part - jax.scipy.linalg.cho_solve((factor, True), slope)
        elif self.update == "lipschitz" or self.prox is not None:
            part = self._proximal(part - slope / lipschitz, 1 / lipschitz)
        if self.update == "newton":
            part = newton(
                lambda y: self.fun(unravel(y), *args),
                y,
                at,
                part,
                weight=self._weight(y),
                keeps_sign=self.prox is not None,
                lipschitz=lipschitz,
            )
        value = unravel(cuts.write(y, at, part))
        _, gradient = value_and_grad(self.fun, value, args)

        steps = state.steps + 1
        error = stopping.norm(jax.tree.map(self._mapping, value, gradient)) / state.scale
        # A block that is at rest says nothing of the others: such rules are judged by whole sweeps.
        sweep = state.models.bounds.shape[0] if self.rule in ("cyclic", "random") else 1
        due = steps % sweep == 0
        status, watch = stopping.judge(state.watch, error, self.tol, state.swept, value)
        early = jnp.where(error <= self.tol, Status.CONVERGED, RUNNING)
        status = jnp.where(due, status, early).astype(jnp.int32)
        watch, swept = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), (watch, value), (state.watch, state.swept)
        )
        return BlockCDState(
            value, error, status, gradient, state.models, block, steps, swept, state.scale, watch
        )

    def _proximal(self, point: Array, size: Array) -> Array:
        if self.prox == "l1":
            return convex.prox_l1(point, self._weight(point) * size)
        return jnp.maximum(point, 0.0) if self.prox == "nonneg" else point

    def _weight(self, y: Array) -> Array:
        """λ, or 0 if h is not the l1 norm."""
        return jnp.asarray(self.strength if self.prox == "l1" else 0.0, y.dtype)

    def _mapping(self, y: Array, g: Array) -> Array:
        return y - self._proximal(y - g, jnp.ones((), y.dtype)) if self.prox is not None else g

    def _choose(self, state: BlockCDState, y: Array, g: Array) -> tuple[Array, Array, Array]:
        """The coordinates of the next block, its L_b and the factor of its H_b."""
        bounds, lipschitz, factors = state.models
        if lipschitz is None or factors is None:
            (bound,) = bounds
            diagonal = self.blocks * jnp.diagonal(bound)
            scores = self._score(y[:, None], g[:, None], diagonal[:, None])
            block = jax.lax.top_k(scores, self.blocks)[1].astype(jnp.int32)
            bound = bound[block[:, None], block[None, :]]
            return block, cuts.largest(bound), cuts.factor(bound, block >= 0)
        rows = jnp.asarray(cuts.table(self.blocks, y.size), jnp.int32)
        count = len(rows)
        if self.rule == "cyclic":
            chosen = state.steps % count
        elif self.rule == "random":
            key = jax.random.key(0) if self.key is None else self.key
            chosen = jax.random.randint(jax.random.fold_in(key, state.steps), (), 0, count)
        else:
            used = rows >= 0
            parts, slopes = (jnp.where(used, x[rows], 0.0) for x in (y, g))
            if self.rule == "gsq":
                solved = jax.scipy.linalg.solve_triangular(factors, slopes[..., None], lower=True)
                scores = jnp.sum(solved[..., 0] ** 2, axis=1)
            elif self.rule == "gsd":
                diagonal = jnp.diagonal(bounds, axis1=1, axis2=2) * jnp.sum(used, axis=1, keepdims=True)
                scores = self._score(parts, slopes, jnp.where(used, diagonal, 1.0))
            else:
                scores = self._score(parts, slopes, lipschitz[:, None])
            chosen = jnp.argmax(scores)
        return rows[chosen], lipschitz[chosen], factors[chosen]

    def _score(self, y: Array, g: Array, bound: Array) -> Array:
        """Twice the decrease of gᵀd + ½ dᵀ diag(bound) d + h(y + d); for gs the squared gradient mapping; by rows."""
        ahead = self._proximal(y - g / bound, 1 / bound)
        d = ahead - y
        if self.rule == "gs":
            return jnp.sum((bound * d) ** 2, axis=-1)
        decrease = bound * d**2
        if self.prox is not None:
            # What entries gain that reach or cross 0, from the conditions of the minimum: differences of h would be
            # rounding near a solution, and the choice with them.
            weight = self._weight(y)
            crossed = weight * (jnp.abs(y) - jnp.sign(ahead) * y)
            reached = (g + bound * d) * y + weight * jnp.abs(y)
            decrease += 2 * jnp.maximum(jnp.where(ahead != 0, crossed, reached), 0.0)
        return jnp.sum(decrease, axis=-1)
