"""One loop for every iterative solver: bounded, resumable, honest about how it ended.

A solver is a frozen dataclass registered as a pytree (`core.pytree_dataclass`) with two pure
functions:

    state = solver.init(y0, *args)        # the first state, in its final shapes and dtypes
    state = solver.step(state, *args)     # one step

A state is a pytree with at least ``value`` (the iterate), ``error`` (a floating scalar; ``inf``
until it is first measured) and ``status`` (an int32 scalar: `RUNNING`, or the `Status` with which
the solver ends). `run` steps while the status is `RUNNING`, at most ``max_steps`` times. It adds
what holds for every solver:

* a step that gives a NaN in the value or the error, makes a measured error infinite, or claims to
  have converged at an infinite error ends ``NONFINITE``, and the state before that step is kept;
* a step that returns an equal state ends ``STALLED``: a pure step will never move again (and
  ``NONFINITE`` if its error is infinite);
* a state still running after ``max_steps`` ends ``MAX_STEPS``.

Note:
    Lanes come from `jax.vmap` around `run`: a lane that has ended is frozen while others run.
    Forward-mode derivatives pass through the loop; reverse mode does not (the number of steps is
    not known at trace time) and raises: differentiate the solution implicitly instead.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.core.pytree import pytree_dataclass, strong
from jaxdiv.core.status import RUNNING, Status, raise_if_failed

Progress: TypeAlias = Callable[[int, float], None]
"""Called on the host with the number of steps taken and the error after them."""

_REPORTS = 100  # calls of a progress callback per run


class Solver(Protocol):
    """Finds one value: the state has `value`, `error` and `status`."""

    def init(self, y0: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the first state, in its final shapes and dtypes."""

    def step(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the state after one step."""


class Learner(Protocol):
    """Plays online: the play comes before the feedback."""

    def init(self, x0: Any) -> Any:
        """Returns the first state."""

    def play(self, state: Any, hint: Any) -> tuple[Any, Any]:
        """Returns the play and the state that remembers it."""

    def update(self, state: Any, feedback: Any) -> Any:
        """Returns the state after the feedback to the last play."""


@pytree_dataclass
class Solution:
    """What a solver found and how it ended; a leading axis per `jax.vmap`.

    Attributes:
        value: The last value without NaN (NaN only if the first one has it).
        state: The solver's state there; `run` resumes from it.
        status: A `Status` code.
        steps: The number of steps that led to `value`.
        error: The solver's own measure of error at `value`.
        history: The error after each of the last `history` steps, oldest first, ``inf`` where there
            was none.
    """

    value: PyTree
    state: PyTree
    status: Int[Array, "*lanes"]
    steps: Int[Array, "*lanes"]
    error: Float[Array, "*lanes"]
    history: Float[Array, "*lanes history"]

    def raise_if_failed(self) -> "Solution":
        """Returns itself if every lane converged.

        Raises:
            RuntimeError: If a lane did not; the message names lanes and statuses.
            ValueError: If the status is traced.
        """
        raise_if_failed(self.status, steps=self.steps, error=self.error)
        return self


def run(
    solver: Solver,
    y0: PyTree,
    *args: Any,
    max_steps: int,
    history: int = 0,
    progress: Progress | None = None,
    state: PyTree | None = None,
) -> Solution:
    """Steps `solver` until it ends, at most `max_steps` times.

    Args:
        solver: A `Solver`.
        y0: The first value, handed to ``solver.init``; unused when resuming.
        *args: The problem, handed to every step. Arrays and numbers in it are traced; anything else
            (functions) is static and must be hashable.
        max_steps: Steps of this call at most. Static.
        history: How many of the last errors to keep. Static.
        progress: Called on the host about a hundred times and after the last step, once per lane. A
            new callable compiles anew.
        state: The ``state`` of an earlier solution, from which to continue. Steps and history count
            from here, and k steps followed by k more give bit for bit what 2k steps give. A state
            that has ended stays.

    Returns:
        The solution; it never raises for values, see `Solution.raise_if_failed`.

    Raises:
        ValueError: If `max_steps` or `history` is negative, if the state lacks a scalar error or
            status, or if a step changes the structure, a shape or a dtype of the state.

    Example:
        >>> from typing import NamedTuple
        >>> class HeronState(NamedTuple):
        ...     value: jax.Array
        ...     error: jax.Array
        ...     status: jax.Array
        >>> @pytree_dataclass
        ... class Heron:
        ...     tol: float = 1e-6
        ...     def init(self, y0, a):
        ...         return HeronState(y0, jnp.inf * y0, jnp.int32(RUNNING))
        ...     def step(self, state, a):
        ...         y = (state.value + a / state.value) / 2
        ...         error = abs(y * y - a)
        ...         done = error < self.tol
        ...         return HeronState(y, error, jnp.where(done, Status.CONVERGED, RUNNING))
        >>> solution = run(Heron(), jnp.array(1.0), 2.0, max_steps=20).raise_if_failed()
        >>> print(f"{solution.value:.6f} in {solution.steps} steps")
        1.414214 in 4 steps
    """
    for name, count in (("max_steps", max_steps), ("history", history)):
        if count < 0:
            raise ValueError(f"{name} must be at least 0; got {count}.")
    leaves, structure = jax.tree.flatten((solver, y0, args, state))
    traced = [leaf if _is_data(leaf) else None for leaf in leaves]
    static = tuple(None if _is_data(leaf) else leaf for leaf in leaves)
    return _run(traced, static, structure, max_steps, history, progress)


def _is_data(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


# Compiled here: an eager while_loop over fresh closures would compile at every call.
@functools.partial(jax.jit, static_argnames=("static", "structure", "max_steps", "history", "progress"))
def _run(
    traced: list[Any],
    static: tuple[Any, ...],
    structure: Any,
    max_steps: int,
    history: int,
    progress: Progress | None,
) -> Solution:
    leaves = [s if t is None else t for t, s in zip(traced, static, strict=True)]
    solver, y0, args, resumed = jax.tree.unflatten(structure, leaves)
    first = strong(solver.init(y0, *args) if resumed is None else resumed)
    _check_scalars(first)
    every = max(1, max_steps // _REPORTS)

    def running(carry: tuple[Any, ...]) -> Bool[Array, ""]:
        _, status, steps, _ = carry
        return (status == RUNNING) & (steps < max_steps)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, status, steps, errors = carry
        new = strong(solver.step(state, *args))
        _check_same(state, new)
        claims = new.status == Status.CONVERGED
        overflown = jnp.isinf(new.error) & (jnp.isfinite(state.error) | claims)
        broken = _has_nan((new.value, new.error)) | overflown
        idle = (new.status == RUNNING) & _identical(state, new)
        stuck = jnp.where(jnp.isfinite(new.error), Status.STALLED, Status.NONFINITE)
        status = jnp.where(idle, stuck, new.status)
        status = jnp.where(broken, Status.NONFINITE, status).astype(jnp.int32)
        if history:
            slot = steps % history
            errors = errors.at[slot].set(jnp.where(broken, errors[slot], new.error))
        steps = steps + jnp.where(broken, 0, 1)
        # What a step hands on untouched is not read.
        state = jax.tree.map(lambda old, x: old if x is old else jnp.where(broken, old, x), state, new)
        if progress is not None:
            last = (status != RUNNING) | (steps == max_steps)
            # Under vmap both branches run, so the host asks again whether to report.
            report = running(carry) & (last | (steps % every == 0))
            tell = functools.partial(_tell, progress)
            jax.lax.cond(
                report,
                lambda: jax.debug.callback(tell, report, steps, state.error),
                lambda: None,
            )
        return state, status, steps, errors

    broken = _has_nan((first.value, first.error))
    status = jnp.where(broken, Status.NONFINITE, first.status).astype(jnp.int32)
    errors = jnp.full((history,), jnp.inf, first.error.dtype)
    carry = (first, status, jnp.int32(0), errors)
    state, status, steps, errors = jax.lax.while_loop(running, body, carry)

    status = jnp.where(status == RUNNING, Status.MAX_STEPS, status).astype(jnp.int32)
    if history:
        errors = jnp.roll(errors, jnp.where(steps > history, -(steps % history), 0))
    return Solution(state.value, state, status, steps, state.error, errors)


def _tell(progress: Progress, report: Any, steps: Any, error: Any) -> None:
    if report:
        progress(int(steps), float(error))


def _check_scalars(state: PyTree) -> None:
    for name, kind in (("error", jnp.floating), ("status", jnp.integer)):
        x = getattr(state, name)
        if x.shape != () or not jnp.issubdtype(x.dtype, kind):
            raise ValueError(
                f"state.{name} must be a {kind.__name__} scalar; got {x.dtype}{list(x.shape)}; "
                "solve one problem and jax.vmap over run for several."
            )


def _check_same(old: PyTree, new: PyTree) -> None:
    expected, got = str(jax.tree.structure(old)), str(jax.tree.structure(new))
    if expected != got:
        raise ValueError(f"solver.step must keep the structure of its state {expected}; got {got}.")
    for (path, a), b in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"solver.step must keep shape and dtype of state{jax.tree_util.keystr(path)}; "
                f"got {a.dtype}{list(a.shape)}, then {b.dtype}{list(b.shape)}; "
                "give the first state its final shapes and dtypes."
            )


def _identical(old: PyTree, new: PyTree) -> Bool[Array, ""]:
    def same(a: PyTree, b: PyTree) -> Bool[Array, ""]:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        equal = (jnp.all(x == y) for x, y in pairs if x is not y)
        return functools.reduce(jnp.logical_and, equal, jnp.array(True))

    # The whole state is read only where error and value, which come first, did not move.
    unmoved = (old.error == new.error) & same(old.value, new.value)
    return jax.lax.cond(unmoved, lambda: same(old, new), lambda: unmoved)


def _has_nan(value: PyTree) -> Bool[Array, ""]:
    leaves = [x for x in jax.tree.leaves(value) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_or, (jnp.any(jnp.isnan(x)) for x in leaves), jnp.array(False))
