r"""Newton's method on the semi-dual, with continuation in epsilon.

Eliminating f by its Sinkhorn half-step leaves a concave function of g whose negative Hessian is the Schur
complement of the dual's,

    S / epsilon,    S = diag(c + epsilon k_c) - P^T diag(1 / (r + epsilon k_r)) P,

with row and column masses r, c of the plan P and the stiffness k of the penalties (0 for exact marginals). A
step solves ``S d = epsilon (b - c)`` (for exact marginals). It begins no longer than some multiples of epsilon
and is halved until the dual has grown enough, where rounding of the dual itself counts as growth.

S is solved by its Cholesky factor while m is small. For larger m, P is replaced by its `nonzeros` largest
entries in each row where few count, as they do for small epsilon (Tang et al.); S stays
positive definite because the whole masses remain on its diagonal. Conjugate gradients with the diagonal as
preconditioner then need n `nonzeros` multiplications an iteration, and with all of P n m. Their tolerance is
tied to the error. When they do not come near a solution with all of P, or not in the time of a factorization,
this and all later steps are taken by the Cholesky factor.

Far from the optimum of a small epsilon columns lose their mass and S its rank, so epsilons go down from a
quarter of the cost's range by a constant factor, each solved loosely and begun by a Sinkhorn step; so is the
next step after one that had to be shortened. A first guess that is good at some epsilon begins there.

References:
    Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying (2024), Accelerating Sinkhorn algorithm
    with sparse Newton iterations.
    Brauer, Clason, Lorenz, Wirth (2017), A Sinkhorn-Newton method for entropic optimal transport.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core import RUNNING, Status, any_lane, checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot import schur
from jaxdiv.ot.geometry import capped_exp
from jaxdiv.ot.problem import Problem

# Relative to the mass: to this error an epsilon above the given one is solved, and a first guess is good.
LOOSE = 0.1
# Halvings of a step before it counts as failed, and steps without a new least error before the solver stops.
HALVINGS, PATIENCE = 12, 8
# Entries kept for each that counts in a row, where sparse products stand for P.
SPARE = 4
# The residual that makes a direction useful.
USEFUL = 0.3
# The longest step in the potentials, in units of epsilon.
TRUST = 30.0
# Columns up to which a factorization is cheaper than conjugate gradients.
DIRECT = 256


class NewtonState(NamedTuple):
    """State of `SinkhornNewton`.

    Attributes:
        value: The potentials (f, g).
        error: L1 norm of the dual's derivative at them; inf at epsilons above the given one.
        status: A status code.
        mass: Mass of the plan.
        ahead: The potentials (f, g) of the next step.
        epsilon: The epsilon of the next step.
        rest: Whether the next step begins with a Sinkhorn step.
        direct: Whether linear systems are factored from now on.
        products: Iterations of conjugate gradients so far.
        steps: Steps taken.
        best: Least error so far.
        highest: Largest dual so far at the given epsilon.
        idle: Steps since either improved.
    """

    value: tuple[Float[Array, " n"], Float[Array, " m"]]
    error: Float[Array, ""]
    status: Int[Array, ""]
    mass: Float[Array, ""]
    ahead: tuple[Float[Array, " n"], Float[Array, " m"]]
    epsilon: Float[Array, ""]
    rest: Bool[Array, ""]
    direct: Bool[Array, ""]
    products: Int[Array, ""]
    steps: Int[Array, ""]
    best: Float[Array, ""]
    highest: Float[Array, ""]
    idle: Int[Array, ""]


@pytree_dataclass
class SinkhornNewton:
    """Newton's method on the semi-dual; a `core.Solver` of an entropic problem with smooth marginals.

    For small epsilon and high accuracy, where Sinkhorn's algorithm needs thousands of steps and this one ten.

    Args:
        tol: Converged when the error is at most `tol`.
        max_steps: Most Newton steps.
        warmup: Sinkhorn steps before the first Newton step.
        factor: Ratio of successive epsilons, above 1; None works at the given epsilon alone.
        linear: ``"cholesky"`` factors S, n m^2 + m^3 / 3 multiplications a step; ``"cg"`` uses conjugate
            gradients alone; ``"auto"`` factors up to 256 columns, and where conjugate gradients fail.
        nonzeros: Entries kept in each row of P for conjugate gradients, at most m; None keeps all.

    Raises:
        ValueError: If an option is out of its range; by `solve`, if a penalty has no derivative, such as TV.

    Note:
        Float64 for an epsilon below about 1e-2 of the cost's range: the error floor is that of masses
        ``exp(rounding of f / epsilon)``. The cost matrix, its plan and the factor are held whole.

    Example:
        >>> from jaxdiv import ot
        >>> out = ot.solve(ot.CostMatrix(jnp.eye(3)), epsilon=0.1, solver=ot.SinkhornNewton(tol=1e-6))
        >>> int(out.status)
        0
    """

    tol: Numeric = 1e-6
    max_steps: int = static_field(default=100)
    warmup: int = static_field(default=0)
    factor: Numeric | None = 4.0
    linear: str = static_field(default="auto")
    nonzeros: int | None = static_field(default=32)

    def __post_init__(self) -> None:
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("max_steps", self.max_steps, 1)
        checks.in_range("warmup", self.warmup, 0)
        if self.factor is not None:
            checks.in_range("factor", self.factor, 1.0, open_low=True)
        checks.one_of("linear", self.linear, ("auto", "cholesky", "cg"))
        if self.nonzeros is not None:
            checks.in_range("nonzeros", self.nonzeros, 1)

    def init(self, y0: tuple[Array, Array], problem: Problem) -> NewtonState:
        """The first state, at potentials (f, g)."""
        f, g = y0
        dtype = problem.a.dtype
        inf, zero = jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32)
        g = jax.lax.fori_loop(0, self.warmup, lambda _, g: _sinkhorn(problem, g), g)
        epsilon = problem.epsilon.astype(dtype)
        if self.factor is not None:
            cost = problem.geometry.cost_matrix()
            span = 0.25 * (jnp.max(cost) - jnp.min(cost))
            levels = jnp.floor(jnp.log(jnp.maximum(span / epsilon, 1.0)) / jnp.log(self.factor))
            epsilon = (epsilon * self.factor ** jnp.where(_good(problem, g), 0.0, levels)).astype(dtype)
        direct = self.linear == "cholesky" or (self.linear == "auto" and problem.b.size <= DIRECT)
        return NewtonState(
            (f, g), inf, zero + RUNNING, inf, (f, g), epsilon, jnp.array(True), jnp.array(direct),
            zero, zero, inf, -inf, zero,
        )  # fmt: skip

    def step(self, state: NewtonState, problem: Problem) -> NewtonState:
        """Measures the potentials at hand, then moves them or goes on to the next epsilon."""
        epsilon = state.epsilon
        last = epsilon <= problem.epsilon
        now = problem.at(epsilon)

        def rested(ahead: tuple[Array, Array]) -> tuple[Array, Array]:
            g = jnp.where(state.rest, _sinkhorn(now, ahead[1]), ahead[1])
            return now.row_update(g), g

        f, g = jax.lax.cond(any_lane(state.rest), rested, lambda ahead: ahead, state.ahead)
        plan = now.plan(f, g)
        r, c = jnp.sum(plan, axis=1), jnp.sum(plan, axis=0)
        slope = -problem.column.residual(c, g, problem.b)
        error = now.error(r, c, f, g)
        done = error <= jnp.where(last, self.tol, LOOSE * jnp.sum(problem.b))

        direction, direct, products = self._direction(now, state, f, g, plan, r, c, slope, error, ~done)
        moved, shortened = _search(now, f, g, direction, slope, jnp.sum(r), ~done)
        reported = jnp.where(last, error, jnp.inf)
        value, rounding = _value(now, f, g, jnp.sum(r))
        grown = value > state.highest + rounding
        idle = jnp.where((reported < state.best) | grown | ~last, 0, state.idle + 1)
        stalled = last & (idle >= PATIENCE)
        status = jnp.where(last & done, Status.CONVERGED, jnp.where(stalled, Status.STALLED, RUNNING))
        lower = epsilon / (2.0 if self.factor is None else self.factor)
        lower = jnp.where(lower < 1.01 * problem.epsilon, problem.epsilon, lower)
        return NewtonState(
            (f, g),
            reported,
            status.astype(jnp.int32),
            jnp.sum(r),
            jax.tree.map(lambda old, new: jnp.where(done, old, new), (f, g), moved),
            jnp.where(done & ~last, lower, epsilon).astype(epsilon.dtype),
            done | shortened,
            direct,
            state.products + products,
            state.steps + 1,
            jnp.minimum(reported, state.best),
            jnp.where(last, jnp.maximum(value, state.highest), -jnp.inf),
            idle,
        )

    def _direction(
        self, problem: Problem, state: NewtonState, f: Array, g: Array, plan: Array, r: Array, c: Array,
        slope: Array, error: Array, needed: Bool[Array, ""],
    ) -> tuple[Float[Array, " m"], Bool[Array, ""], Int[Array, ""]]:  # fmt: skip
        """Newton's direction, whether to factor from now on, and iterations of conjugate gradients."""
        epsilon, m = problem.epsilon, c.size
        row = r + epsilon * problem.row.stiffness(f, problem.a)
        column = c + epsilon * problem.column.stiffness(g, problem.b)
        part = schur.participates(column)
        rhs = epsilon * jnp.where(part, slope, 0.0)

        def factored(rhs: Array) -> Array:
            return schur.solve(schur.factor(schur.complement(plan, row, column, problem.singular)), rhs)

        tol = jnp.clip(0.1 * error / jnp.sum(problem.b), 1e-6, 1e-2).astype(rhs.dtype)

        nonzeros = m if self.nonzeros is None else min(self.nonzeros, m)
        whole = schur.whole(plan, row, column)

        def iterated(products: schur.Products, budget: int) -> tuple[Array, Array, Array]:
            most = jnp.where(needed & ~state.direct, budget, 0)
            return schur.iterate(products, whole, row, column, rhs, problem.singular, tol, most)

        zero, none = jnp.zeros_like(rhs), jnp.zeros((), jnp.int32)
        if self.linear == "cholesky" or (self.linear == "auto" and m <= DIRECT):
            return jax.lax.cond(any_lane(needed), factored, lambda _: zero, rhs), state.direct, none

        def largest() -> schur.Products:
            return schur.largest(plan, row, column, nonzeros) if nonzeros < m else whole

        if self.linear == "cg":
            direction, _, products = iterated(largest(), 20 * m)
            return direction, state.direct, products

        def attempted() -> tuple[Array, Array, Array]:
            # The mean over the mass of (sum_j P_ij)^2 / sum_j P_ij^2, the entries that count in a row.
            squares = jnp.sum(plan**2, axis=1)
            counting = jnp.sum(r**3 / jnp.where(squares > 0, squares, 1.0)) / jnp.sum(r)
            thick = SPARE * counting > nonzeros
            # A factorization multiplies as often as m / 2 products do, and ten times faster.
            return jax.lax.cond(
                any_lane(needed & ~state.direct & thick),
                lambda: iterated(whole, m // 20),
                lambda: iterated(largest(), m),
            )

        direction, residual, products = jax.lax.cond(
            any_lane(needed & ~state.direct), attempted, lambda: (zero, jnp.ones((), rhs.dtype), none)
        )
        direct = state.direct | (needed & ~(residual <= USEFUL))
        dense = needed & direct
        exact = jax.lax.cond(any_lane(dense), factored, lambda _: zero, rhs)
        return jnp.where(dense, exact, direction), direct, products


def _sinkhorn(problem: Problem, g: Array) -> Array:
    return problem.column_update(problem.row_update(g))


def _good(problem: Problem, g: Array) -> Bool[Array, ""]:
    """Whether a guess is good enough to begin at the given epsilon."""
    f = problem.row_update(g)
    error = problem.error(*problem.masses(f, g), f, g)
    return error <= LOOSE * jnp.sum(problem.b)


def _value(problem: Problem, f: Array, g: Array, mass: Array) -> tuple[Array, Array]:
    """The dual, and its rounding, below which growth cannot be seen."""
    value = problem.value(f, g, mass)
    terms = jnp.vdot(problem.a, jnp.abs(f)) + jnp.vdot(problem.b, jnp.abs(g)) + problem.epsilon * mass
    return value, 10 * jnp.finfo(value.dtype).eps * terms


def _search(
    problem: Problem, f: Array, g: Array, direction: Array, slope: Array, mass: Array, needed: Bool[Array, ""]
) -> tuple[tuple[Array, Array], Bool[Array, ""]]:
    """The next potentials, and whether the step had to be shortened."""
    value, rounding = _value(problem, f, g, mass)
    promised = jnp.vdot(slope, direction)

    def running(carry: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        _, halvings, grown, _ = carry
        return needed & ~grown & (halvings < HALVINGS)

    def shorten(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        length, halvings, _, _ = carry
        length = jnp.where(halvings == 0, length, length / 2)
        trial = g + length * direction
        softmin = problem.row_softmin(trial)
        f_trial = problem.row.update(softmin, problem.a, problem.epsilon)
        mass = jnp.sum(problem.a * capped_exp((f_trial - softmin) / problem.epsilon))
        grown = problem.value(f_trial, trial, mass) >= value + 1e-4 * length * promised - rounding
        return length, halvings + 1, grown, f_trial

    longest = TRUST * problem.epsilon / jnp.max(jnp.abs(direction), initial=jnp.finfo(value.dtype).tiny)
    start = (jnp.minimum(1.0, longest), jnp.zeros((), jnp.int32), jnp.array(False), f)
    length, _, grown, f_trial = jax.lax.while_loop(running, shorten, start)
    usable = grown & jnp.all(jnp.isfinite(direction))
    ahead = (jnp.where(usable, f_trial, f), jnp.where(usable, g + length * direction, g))
    return ahead, (length < 1) | ~usable
