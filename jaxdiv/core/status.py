"""How an iterative computation ended: one code per lane, and what to do about it.

A result carries its `Status` as an int32 array, one entry per lane, so that it passes through jit
and vmap. A state that is still being iterated carries `RUNNING`, which is not a `Status`: no result
ever shows it.
"""

import enum
from typing import Any, Final

import numpy as np
from jax.typing import ArrayLike

from jaxdiv.core.checks import concrete

RUNNING: Final = -1
"""The code of a state that may be stepped further."""


class Status(enum.IntEnum):
    """How a computation ended.

    Example:
        >>> Status(1).name, Status.MAX_STEPS.message
        ('MAX_STEPS', 'the step limit came first; raise max_steps or loosen tol')
    """

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    NONFINITE = 3
    INFEASIBLE = 4

    @property
    def message(self) -> str:
        """What the status means and what to change."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the error is within tol",
    Status.MAX_STEPS: "the step limit came first; raise max_steps or loosen tol",
    Status.STALLED: "steps change nothing any more; loosen tol or use a wider dtype",
    Status.NONFINITE: "a step gave NaN or an infinite error, the last finite state is kept; "
    "check the inputs or take smaller steps",
    Status.INFEASIBLE: "no point satisfies the constraints; check that the inputs are compatible",
}

_SHOWN = 8  # lanes named in a message


def raise_if_failed(
    status: ArrayLike, *, steps: ArrayLike | None = None, error: ArrayLike | None = None
) -> None:
    """Raises unless every lane converged, naming the lanes that did not.

    Args:
        status: Codes of any shape; each entry is a lane.
        steps: Steps taken by each lane, for the message.
        error: Last error of each lane, for the message.

    Raises:
        RuntimeError: If a lane's status is not `Status.CONVERGED`.
        ValueError: If `status` is traced.

    Example:
        >>> raise_if_failed(np.array([0, 1]), steps=np.array([7, 50]))
        Traceback (most recent call last):
        ...
        RuntimeError: 1 of 2 lanes failed: [1] MAX_STEPS after 50 steps (the step limit came ...
    """
    codes, counts, errors = (_concrete(x) for x in (status, steps, error))
    assert codes is not None
    failed = np.argwhere(codes != Status.CONVERGED)
    if len(failed) == 0:
        return
    told: set[int] = set()
    lines = []
    for lane in map(tuple, failed[:_SHOWN]):
        code = int(codes[lane])
        name = Status(code).name if code != RUNNING else "RUNNING"
        line = f"{list(map(int, lane))} {name}" if codes.ndim else name
        line += "" if counts is None else f" after {counts[lane]} steps"
        line += "" if errors is None else f" at error {errors[lane]:.3g}"
        if code not in told and code != RUNNING:
            line += f" ({Status(code).message})"
        told.add(code)
        lines.append(line)
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more")
    head = f"{len(failed)} of {codes.size} lanes failed" if codes.ndim else "the solver failed"
    raise RuntimeError(f"{head}: {'; '.join(lines)}.")


def _concrete(x: ArrayLike | None) -> np.ndarray[Any, Any] | None:
    if not concrete(x):
        raise ValueError("raise_if_failed needs concrete values; got a traced status; call it outside jit.")
    return None if x is None else np.asarray(x)
