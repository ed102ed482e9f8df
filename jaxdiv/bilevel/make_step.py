"""Two-loop algorithms: some steps of the inner problem, an estimate of the hypergradient, one step of the outer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.problem import Losses, Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import Status, checks
from jaxdiv.core.types import Numeric, Scalar


class Inner(NamedTuple):
    """The inner variable and the state of its transform."""

    value: PyTree
    tx: PyTree


class Loop(NamedTuple):
    """The inner loop of one outer step, for estimators that run it or look into it.

    Attributes:
        run: ``(x, inner, first, length) -> inner``: that many inner steps from the step numbered `first` on,
            differentiable in x and inner; each step is recomputed in the backward pass.
        length: Inner steps before each outer step.
        start: y and the transform's state before them.
        draws: Draws of the step; 0 to ``length - 1`` are the loop's.
    """

    run: Callable[[PyTree, Inner, Any, int], Inner]
    length: int
    start: Inner
    draws: Draws

    @property
    def final(self) -> Losses:
        """The losses on the draw of the hypergradient."""
        return self.draws(self.length)

    def solve(self, x: PyTree) -> Inner:
        """The inner variable after the loop, a constant."""
        x, start = jax.lax.stop_gradient((x, self.start))
        return jax.lax.stop_gradient(self.run(x, start, 0, self.length))


class Estimate(NamedTuple):
    """What an estimator gives.

    Attributes:
        inner: y after the loop and its transform's state.
        value: F there.
        hypergradient: The direction of x.
        state: The estimator's own state.
        counts: Keywords of `report`: gradients, products, and where they apply residual, status, metrics.
    """

    inner: Inner
    value: Scalar
    hypergradient: PyTree
    state: PyTree
    counts: dict[str, Any]


class Estimator(NamedTuple):
    """How the hypergradient is obtained from an inner loop.

    Attributes:
        init: ``(x, y) -> state``.
        estimate: ``(loop, x, state) -> Estimate``.
    """

    init: Callable[[PyTree, PyTree], PyTree]
    estimate: Callable[[Loop, PyTree, PyTree], Estimate]


class TwoLoopState(NamedTuple):
    """What a two-loop algorithm remembers.

    Attributes:
        inner_tx: State of the transform of y.
        outer_tx: State of the transform of x.
        estimator: State of the estimator, such as the last adjoint.
        first: Where each inner loop starts, if it does not start where the last one ended.
    """

    inner_tx: PyTree
    outer_tx: PyTree
    estimator: PyTree
    first: PyTree


def make_step(
    problem: Problem,
    estimator: Estimator,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    inner_steps: int,
    warm_start: bool = True,
    inner_tol: Numeric | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Builds a two-loop bilevel algorithm.

    Args:
        problem: The problem.
        estimator: How the hypergradient is obtained, such as `implicit_gradient` or `unrolled`.
        inner_tx: Moves y along ∂G/∂y.
        outer_tx: Moves x along the hypergradient.
        inner_steps: Inner steps before each outer step. Static.
        warm_start: Whether an inner loop goes on from the last one's end. Else each starts from the first y with a
            fresh state of its transform.
        inner_tol: If given, a step whose norm of ∂G/∂y after the loop is above it has the status MAX_STEPS, for one
            gradient more.
        sampler: Draws the examples of each inner step and of each hypergradient; all by default.

    Returns:
        ``(init, step)``.

    Raises:
        ValueError: If `inner_steps` is below 1.

    References:
        Pedregosa (2016), Hyperparameter optimization with approximate gradient, algorithm 1, for the implicit ones.
        Franceschi, Donini, Frasconi, Pontil (2017), Forward and reverse gradient-based hyperparameter optimization.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.make_step(
        ...     problem, bilevel.implicit_gradient(), optax.sgd(0.2), optax.sgd(0.1), inner_steps=10
        ... )
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=50)
        >>> [round(x, 3) for x in state.outer.tolist()]
        [3.0, 3.0]
    """
    checks.in_range("inner_steps", inner_steps, 1)

    def start(draws: Draws, x: PyTree, y: PyTree) -> TwoLoopState:
        first = None if warm_start else y
        return TwoLoopState(inner_tx.init(y), outer_tx.init(x), estimator.init(x, y), first)

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: TwoLoopState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, TwoLoopState, Info]:
        before = Inner(y, extra.inner_tx) if warm_start else Inner(extra.first, inner_tx.init(extra.first))
        loop = Loop(_runner(inner_tx, draws), inner_steps, before, draws)
        inner, value, direction, state, counts = estimator.estimate(loop, x, extra.estimator)
        if inner_tol is not None:
            error = optax.tree.norm(loop.final.inner_gradient(x, inner.value))
            status = jnp.asarray(counts.get("status", Status.CONVERGED))
            short = (status == Status.CONVERGED) & (error > inner_tol)
            counts = counts | {
                "status": jnp.where(short, Status.MAX_STEPS, status),
                "gradients": counts["gradients"] + 1,
                "inner_error": error,
            }
        x, outer_state = apply(outer_tx, direction, extra.outer_tx, x, value=value, grad=direction)
        return (
            x,
            inner.value,
            TwoLoopState(inner.tx, outer_state, state, extra.first),
            report(value, direction, **counts),
        )

    return algorithm(problem, sampler, start, advance)


def _runner(tx: optax.GradientTransformation, draws: Draws) -> Callable[[PyTree, Inner, Any, int], Inner]:
    def run(x: PyTree, inner: Inner, first: Any, length: int) -> Inner:
        @jax.checkpoint
        def one(inner: Inner, x: PyTree, i: Array) -> Inner:
            gradient = draws(i).inner_gradient(x, inner.value)
            y, state = apply(tx, gradient, inner.tx, inner.value)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), Inner(y, state), inner)

        steps = first + jnp.arange(length)
        return jax.lax.scan(lambda inner, i: (one(inner, x, i), None), inner, steps)[0]

    return run
