r"""Sinkhorn's algorithm: coordinate ascent on the dual.

    f <- prox_row( -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon) )
    g <- prox_col( -epsilon log sum_i a_i exp((f_i - C_ij) / epsilon) )

With s the softmin of g, the row masses of the plan of (f, g) are ``a exp((f - s) / epsilon)``; s is what the
next half-step on f needs anyway, so that the error of every iterate is exact and costs no pass over C. The
softmins are products with a kernel matrix while its range allows (`jaxdiv.ot.kernel`), else in log space.

Overrelaxation makes a half-step omega times as long (Thibault, Chizat, Dossal, Papadakis 2021). Anderson
acceleration extrapolates g from its last values. Annealing runs at larger strengths first, where mass moves
far in few steps (Kosowsky, Yuille 1994); the tolerance counts at the given epsilon alone. For one cloud
against itself the average ``f <- (f + T f) / 2`` keeps f = g and needs one pass a step (Feydy et al. 2019).

References:
    Cuturi (2013), Sinkhorn distances: lightspeed computation of optimal transport.
    Chizat, Peyré, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport, sec. 3.
    Thibault, Chizat, Dossal, Papadakis (2021), Overrelaxed Sinkhorn-Knopp algorithm.
    Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré (2019), Interpolating between optimal transport and MMD
    using Sinkhorn divergences, sec. 3.1.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import RUNNING, Status, any_lane, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot import anderson, kernel
from jaxdiv.ot.geometry import CostMatrix, capped_exp, excess_cost
from jaxdiv.ot.problem import Problem

# Steps without a new least error or a move after which none is expected: many, or few at the dtype's reach.
PATIENCE, REACHED = 20, 3


class SinkhornState(NamedTuple):
    """State of `Sinkhorn`.

    Attributes:
        value: The potentials (f, g).
        error: L1 norm of the dual's derivative at them; inf while annealing.
        status: A status code.
        mass: Mass of the plan.
        softmin: Row softmin of g.
        steps: Steps taken.
        best: Least error so far.
        idle: Steps since, without a move.
        start: The epsilon at which annealing begins.
        logs: Whether softmins are taken in log space.
        kernel: The kernel matrix, if there is one.
        memory: The last g, if Anderson acceleration is on.
    """

    value: tuple[Float[Array, " n"], Float[Array, " m"]]
    error: Float[Array, ""]
    status: Int[Array, ""]
    mass: Float[Array, ""]
    softmin: Float[Array, " n"]
    steps: Int[Array, ""]
    best: Float[Array, ""]
    idle: Int[Array, ""]
    start: Float[Array, ""]
    logs: Bool[Array, ""]
    kernel: kernel.Kernel | None
    memory: anderson.Memory | None


@pytree_dataclass
class Sinkhorn:
    """Sinkhorn's algorithm; a `core.Solver` of an entropic problem.

    Args:
        tol: Converged when the error is at most `tol`.
        max_steps: Most steps; a step updates f and g.
        mode: ``"log"``, ``"kernel"`` (products with a kernel matrix, which must fit in memory; ends NONFINITE
            where its range does not suffice) or ``"auto"``: kernel where the cost matrix is held and nothing
            anneals, turning to log where its range does not suffice.
        anneal: Number of steps that begin at larger epsilons and end, geometrically, at the given one; 0 is
            none. The first epsilon is the mean cost above a row's least.
        overrelaxation: Length of a half-step, in (0, 2); 1 is the plain algorithm. It counts at the last
            epsilon.
        anderson: Number of past steps that Anderson acceleration combines; 0 is none.
        symmetric: Average f and g, for a cost matrix that equals its transpose and equal weights and
            penalties.

    Raises:
        ValueError: If an option is out of its range, or options exclude each other.

    Note:
        Under `jax.vmap` a lane stops at its own tolerance and is frozen until all have; where one lane needs
        log space, all take it, so that one branch runs. An error below the dtype's reach, about 1e-6 in
        float32 and 1e-15 in float64 for masses of 1, ends STALLED.

    Example:
        >>> from jaxdiv import ot
        >>> solver = ot.Sinkhorn(tol=1e-6, anneal=10)
        >>> out = ot.solve(ot.CostMatrix(jnp.eye(3)), epsilon=0.1, solver=solver)
        >>> int(out.status)
        0
    """

    tol: Numeric = 1e-4
    max_steps: int = static_field(default=2000)
    mode: str = static_field(default="auto")
    anneal: int = static_field(default=0)
    overrelaxation: Numeric = 1.0
    anderson: int = static_field(default=0)
    symmetric: bool = static_field(default=False)

    def __post_init__(self) -> None:
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("max_steps", self.max_steps, 1)
        checks.one_of("mode", self.mode, ("auto", "log", "kernel"))
        checks.in_range("overrelaxation", self.overrelaxation, 0.0, 2.0, open_low=True, open_high=True)
        checks.in_range("anneal", self.anneal, 0, self.max_steps - 1)
        checks.in_range("anderson", self.anderson, 0)
        if self.mode == "kernel" and self.anneal:
            raise ValueError("anneal must be 0 in kernel mode, whose matrix belongs to one epsilon; use log.")
        if self.symmetric and self.anderson:
            raise ValueError("anderson must be 0 where symmetric is True; choose one.")

    def init(self, y0: tuple[Array, Array], problem: Problem) -> SinkhornState:
        """The first state, at potentials (f, g)."""
        f, g = y0
        inf, zero = jnp.full((), jnp.inf, problem.a.dtype), jnp.zeros((), jnp.int32)
        if self.symmetric and f.shape != g.shape:
            raise ValueError(f"symmetric=True needs as many rows as columns; got {f.size} and {g.size}.")
        dense = isinstance(problem.geometry, CostMatrix)
        if self.mode == "kernel" and not dense:
            raise ValueError(
                "mode must be 'log' for a geometry without a cost matrix in memory; got 'kernel'."
            )
        matrix, start = None, problem.epsilon
        if self.anneal:
            start = jnp.maximum(excess_cost(problem.geometry), start).astype(problem.a.dtype)
        if dense and self.mode != "log" and not self.anneal:
            matrix = kernel.make(problem.geometry.cost_matrix(), g, problem.epsilon)
            softmin, trusted = kernel.softmin(matrix, g, problem.b, problem.epsilon, 1)
            if self.mode == "auto":
                softmin = jax.lax.cond(any_lane(~trusted), lambda: problem.row_softmin(g), lambda: softmin)
        else:
            softmin, trusted = problem.at(start).row_softmin(g), jnp.array(False)
        mass = jnp.sum(problem.a * capped_exp((f - softmin) / problem.epsilon))
        memory = anderson.empty(self.anderson, g) if self.anderson else None
        return SinkhornState(
            (f, g), inf, zero + RUNNING, mass, softmin, zero, inf, zero, start, ~trusted, matrix, memory
        )

    def step(self, state: SinkhornState, problem: Problem) -> SinkhornState:
        """One update of f and g."""
        annealed = state.steps >= self.anneal
        now, then = self._at(problem, state, 0), self._at(problem, state, 1)
        omega = jnp.where(annealed, self.overrelaxation, 1.0).astype(problem.a.dtype)
        f, g = state.value
        image = problem.row.update(state.softmin, problem.a, now.epsilon)
        memory = state.memory
        if self.symmetric:
            f = g = 0.5 * (f + image)
            below, trusted = None, jnp.array(True)
        else:
            f = f + omega * (image - f)
            below, trusted = self._softmin(state, now, f, 0)
            image = g + omega * (problem.column.update(below, problem.b, now.epsilon) - g)
            if memory is not None:
                image, memory = anderson.accelerate(memory, g, image)
            g = image
        softmin, again = self._softmin(state, then, g, 1)

        r = problem.a * capped_exp((f - softmin) / problem.epsilon)
        c = r if below is None else problem.b * capped_exp((g - below) / problem.epsilon)
        error = problem.error(r, c, f, g)
        if self.symmetric:
            # What makes f = g the answer is taken on trust until it would end the iteration.
            error = jax.lax.cond(
                any_lane(error <= self.tol),
                lambda: problem.error(*problem.masses(f, g), f, g),
                lambda: error,
            )
        error = jnp.where(annealed, error, jnp.inf)
        best = jnp.minimum(error, state.best)
        # At small epsilon the error rests for many steps while the potentials still move.
        moves = jnp.max(jnp.abs(g - state.value[1])) > 4 * jnp.finfo(g.dtype).eps * jnp.max(jnp.abs(g))
        reached = error <= reach(problem.a.dtype, problem.a.size + problem.b.size) * jnp.sum(problem.a)
        idle = jnp.where((error < state.best) | (moves & ~reached) | ~annealed, 0, state.idle + 1)
        stalled = idle >= jnp.where(reached, REACHED, PATIENCE)
        status = jnp.where(stalled, Status.STALLED, RUNNING)
        status = jnp.where(error <= self.tol, Status.CONVERGED, status).astype(jnp.int32)
        new = SinkhornState(
            (f, g), error, status, jnp.sum(r), softmin, state.steps + 1, best, idle,
            state.start, state.logs, state.kernel, memory,
        )  # fmt: skip
        if state.kernel is None:
            return new
        trusted = trusted & again
        if self.mode == "kernel":
            status = jnp.where(trusted, status, Status.NONFINITE).astype(jnp.int32)
            return new._replace(status=status)
        # The step is taken again in log space, from the state before it.
        old = state._replace(logs=jnp.array(True), kernel=None)
        kept = jax.tree.map(lambda x, y: jnp.where(trusted, x, y), new._replace(kernel=None), old)
        return kept._replace(kernel=state.kernel)

    def _softmin(
        self, state: SinkhornState, problem: Problem, h: Array, axis: int
    ) -> tuple[Array, Bool[Array, ""]]:
        """The softmin of a potential, and whether it can be trusted."""
        weights = problem.b if axis == 1 else problem.a

        def in_logs(h: Array) -> tuple[Array, Bool[Array, ""]]:
            return problem.geometry.softmin(h, weights, problem.epsilon, axis), jnp.array(True)

        def by_kernel(h: Array) -> tuple[Array, Bool[Array, ""]]:
            assert state.kernel is not None
            return kernel.softmin(state.kernel, h, weights, problem.epsilon, axis)

        if state.kernel is None:
            return in_logs(h)
        if self.mode == "kernel":
            return by_kernel(h)
        return jax.lax.cond(any_lane(state.logs), in_logs, by_kernel, h)

    def _at(self, problem: Problem, state: SinkhornState, ahead: int) -> Problem:
        """The problem at the epsilon of a step."""
        if not self.anneal:
            return problem
        left = jnp.clip(1.0 - (state.steps + ahead) / self.anneal, 0.0, 1.0)
        # Exactly the given epsilon at the end.
        epsilon = problem.epsilon * (state.start / problem.epsilon) ** left
        return problem.at(jnp.where(left > 0, epsilon, problem.epsilon).astype(problem.a.dtype))


def reach(dtype: Any, n: int) -> float:
    """An error, relative to the mass, below which sums of n terms in this dtype cannot be told from 0."""
    return float(4 * np.finfo(dtype).eps * math.sqrt(n))
