"""The default of the entropy: Sinkhorn's algorithm, then Newton's method where the rate promises nothing better.

After some steps the error has fallen by a factor q a step, and ``log(tol / error) / log q`` more are to come. Where
that is more than Newton's method costs, in Sinkhorn's steps, it takes over from the potentials at hand; so it does
where Sinkhorn's algorithm ends without having converged.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv.core import RUNNING, Progress, Status, any_lane, run
from jaxdiv.ot.geometry import CostMatrix
from jaxdiv.ot.newton import SinkhornNewton
from jaxdiv.ot.problem import Problem
from jaxdiv.ot.sinkhorn import Sinkhorn

# Sinkhorn steps after which the rate is looked at, and the last of them that it is taken from.
TRIAL, WINDOW = 50, 20
# The largest factor that Newton's method makes, in columns.
LARGEST_FACTOR = 8192


def by_default(
    problem: Problem, potentials: tuple[Array, Array], history: int, progress: Progress | None
) -> tuple[Any, ...]:
    """Potentials, mass, status, steps, error and the last errors of an entropic problem."""
    m = problem.b.size
    sinkhorn = Sinkhorn()
    newton = SinkhornNewton(tol=sinkhorn.tol)
    window = max(WINDOW, history)
    out = run(sinkhorn, potentials, problem, max_steps=TRIAL, history=window, progress=progress)
    state, steps = out.state, out.steps
    errors = newest_last(out.history, steps)
    capable = isinstance(problem.geometry, CostMatrix) and problem.row.smooth and problem.column.smooth
    capable = capable and m <= LARGEST_FACTOR
    if capable:
        first, last = errors[-WINDOW], errors[-1]
        left = jnp.log(sinkhorn.tol / last) / (jnp.log(last / first) / (WINDOW - 1))
        # NaN and negative: no decrease at all.
        slow = (state.status == RUNNING) & ~((left > 0) & (left < 200 + m / 2))
        state = state._replace(status=jnp.where(slow, Status.STALLED, state.status).astype(jnp.int32))
    rest = sinkhorn.max_steps - TRIAL
    out = run(sinkhorn, potentials, problem, max_steps=rest, history=history, progress=progress, state=state)
    steps = steps + out.steps
    errors = _joined(errors[window - history :], out.history, out.steps)
    found = (out.value, out.state.mass, out.status, steps, out.error, errors)
    if not capable:
        return found

    def finished() -> tuple[Any, ...]:
        return found

    def by_newton() -> tuple[Any, ...]:
        value, _, status, steps, error, errors = found
        state = newton.init(value, problem)
        state = state._replace(
            status=jnp.where(status == Status.CONVERGED, status, RUNNING).astype(jnp.int32)
        )
        out = run(
            newton,
            value,
            problem,
            max_steps=newton.max_steps,
            history=history,
            progress=progress,
            state=state,
        )
        better = (status != Status.CONVERGED) & (out.error <= error)
        steps = steps + out.steps
        errors = _joined(errors, out.history, out.steps)
        new = (problem.extended(*out.value), out.state.mass, out.status, steps, out.error, errors)
        return jax.tree.map(lambda x, y: jnp.where(better, x, y), new, (*found[:3], steps, *found[4:]))

    return jax.lax.cond(any_lane(out.status != Status.CONVERGED), by_newton, finished)


def newest_last(history: Array, steps: Array) -> Array:
    """The errors of a run with those that are missing in front."""
    return jnp.roll(history, jnp.maximum(history.size - steps, 0))


def _joined(before: Array, history: Array, steps: Array) -> Array:
    """The last errors of a run and, as far as there is room, of those before it."""
    both = jnp.concatenate([before, newest_last(history, steps)])
    size = history.size
    index = jnp.arange(size)
    taken = jnp.minimum(steps, size)
    return both[jnp.where(index >= size - taken, size + index, index + taken)]
