"""SRBA: SOBA along recursive directions that all examples restart from time to time.

    d_k = d(w_k) on all examples, if k is a multiple of the period, else d_{k−1} + d(w_k; b) − d(w_{k−1}; b)

with w = (x, y, v) and d the three directions of `soba`. Their error is a sum of differences since the last restart;
constant steps converge.

References:
    Dagréou, Moreau, Vaiter, Ablin (2024), A lower bound and a near-optimal algorithm for bilevel empirical risk
    minimization, algorithm 1. The bound on v there is left out, as in the benchmark_bilevel code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, report
from jaxdiv.bilevel.joint import Directions, Joint, JointState, directions
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.bilevel.storm import storm
from jaxdiv.core import checks
from jaxdiv.core.types import Scalar


class SrbaState(NamedTuple):
    """What SRBA remembers.

    Attributes:
        joint: v and the states of the three transforms.
        directions: d.
        last: The triple (x, y, v) at which d was taken.
    """

    joint: JointState
    directions: Directions
    last: tuple[PyTree, PyTree, PyTree]


def srba(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    period: int | Int[Array, ""],
    adjoint_tx: optax.GradientTransformation | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Stochastic recursive bilevel algorithm.

    Args:
        problem: The problem.
        inner_tx: Moves y along its direction. Constant steps serve.
        outer_tx: Moves x along its direction.
        period: Steps from one restart to the next, about the draws in a pass over the examples of both losses.
        adjoint_tx: Moves v along its direction; like `inner_tx` by default.
        sampler: Draws the examples of a recursive step; all by default.

    Returns:
        ``(init, step)``; a recursive step takes four gradients and two products, a restart two and one on all examples.
        The metric ``"restart"`` tells which it was.

    Raises:
        ValueError: If `period` is below 1.

    References:
        Dagréou, Moreau, Vaiter, Ablin (2024), algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((y - x) ** 2), lambda x, y, batch: jnp.sum((y - 3.0) ** 2)
        ... )
        >>> init, step = bilevel.srba(problem, optax.sgd(0.2), optax.sgd(0.1), period=10)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=300)
        >>> state.outer.round(2)
        Array([3., 3.], dtype=float32)
    """
    checks.in_range("period", period, 1)
    joint = Joint(inner_tx, inner_tx if adjoint_tx is None else adjoint_tx, outer_tx)

    def start(draws: Draws, x: PyTree, y: PyTree) -> SrbaState:
        state = joint.init(x, y)
        v = state.adjoint
        return SrbaState(state, Directions(v, v, optax.tree.zeros_like(x)), (x, y, v))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: SrbaState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, SrbaState, Info]:
        here = (x, y, extra.joint.adjoint)

        def restarted() -> tuple[Scalar, Directions]:
            return directions(draws._replace(sampler=full_batch)(0), *here)

        def recursive() -> tuple[Scalar, Directions]:
            value, new = directions(draws(0), *here)
            _, old = directions(draws(0), *extra.last)
            return value, storm(extra.directions, new, old, 0.0)

        restart = step % period == 0
        value, along = jax.lax.cond(restart, restarted, recursive)
        x, y, state = joint.move(x, y, extra.joint, along)
        info = report(
            value,
            along.outer,
            gradients=jnp.where(restart, 2, 4),
            products=jnp.where(restart, 1, 2),
            restart=restart,
        )
        return x, y, SrbaState(state, along, here), info

    return algorithm(problem, sampler, start, advance)
