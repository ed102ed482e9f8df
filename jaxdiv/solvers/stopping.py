"""How the solvers of this room start, measure and end.

An error is the norm of what vanishes at a solution, over a scale, so that a few units of rounding are the least
that any solver reaches. Each solver documents its own; it is measured at the value that the state holds.

A run stalls when neither the least error falls nor the value moves by more than rounding (at an error of a few
units of rounding, whatever the value does) for `PATIENCE` steps in a row: plateaus of the error alone are no
stall, since momentum and curved valleys have long ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import RUNNING, Status, checks, safe_norm
from jaxdiv.core.types import Numeric

PATIENCE = 20
ROUNDINGS = 4  # units of rounding that count as none


class Watch(NamedTuple):
    """What a solver remembers to see that it stalls.

    Attributes:
        best: The least error so far.
        idle: Steps since it fell or the value moved.
    """

    best: Float[Array, ""]
    idle: Int[Array, ""]


def start(name: str, y0: PyTree) -> PyTree:
    """The first value as floating arrays, half precisions raised to float32.

    Raises:
        ValueError: If it has no element, or a leaf is not real floating point.
    """
    value = jax.tree_util.tree_map_with_path(
        lambda path, leaf: checks.floating(name + jax.tree_util.keystr(path), leaf), y0
    )
    if sum(leaf.size for leaf in jax.tree.leaves(value)) == 0:
        raise ValueError(f"{name} must have elements; got {jax.tree.structure(value)}; give a start to move.")
    return value


def same_space(name: str, tree: PyTree, value: PyTree) -> PyTree:
    """The tree in the dtypes of `value`.

    Raises:
        ValueError: If its structure or its shapes are not those of `value`.
    """
    got, expected = (
        (jax.tree.structure(t), [jnp.shape(leaf) for leaf in jax.tree.leaves(t)]) for t in (tree, value)
    )
    if got != expected:
        raise ValueError(
            f"{name} must have the structure and shapes of the value, {expected[0]} with {expected[1]}; "
            f"got {got[0]} with {got[1]}."
        )
    return jax.tree.map(lambda leaf, ref: jnp.asarray(leaf, ref.dtype), tree, value)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm over all leaves, whose squares neither overflow nor underflow."""
    return safe_norm(jnp.stack([safe_norm(leaf) for leaf in jax.tree.leaves(tree)]))


def first(error: Float[Array, ""], tol: Numeric) -> tuple[Int[Array, ""], Watch]:
    """The status at the first value, and the memory of its error."""
    status = jnp.where(error <= tol, Status.CONVERGED, RUNNING).astype(jnp.int32)
    return status, Watch(error, jnp.zeros((), jnp.int32))


def judge(
    watch: Watch, error: Float[Array, ""], tol: Numeric, old: PyTree, new: PyTree
) -> tuple[Int[Array, ""], Watch]:
    """The status after a step from `old` to `new`, and the memory with it.

    Args:
        watch: The memory before the step.
        error: The error at `new`.
        tol: Converged when the error is at most `tol`.
        old: The value before the step.
        new: The value after it.
    """
    rounding = ROUNDINGS * float(np.finfo(error.dtype).eps)
    moves = norm(optax.tree.sub(new, old)) > rounding * norm(new)
    gains = (error < watch.best) | (moves & (error > rounding))
    idle = jnp.where(gains, 0, watch.idle + 1).astype(jnp.int32)
    status = jnp.where(idle >= PATIENCE, Status.STALLED, RUNNING)
    status = jnp.where(error <= tol, Status.CONVERGED, status).astype(jnp.int32)
    return status, Watch(jnp.minimum(error, watch.best), idle)


def check_functions(**functions: Any) -> None:
    """Raises ValueError unless each named argument can be called."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function; got {type(function).__name__}.")
