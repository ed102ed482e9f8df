r"""Sketch and project: linear systems solved a few random combinations of equations at a time.

For A x = b, with a fresh random S of q rows in each step,

    x⁺ = argmin {‖z - x‖ : S A z = S b} = x - (S A)⁺ S (A x - b)

Single rows, drawn with probability ‖a_i‖² / ‖A‖_F², are the randomized Kaczmarz method, whose squared error falls by
1 - σ_min(A)² / ‖A‖_F² a step in expectation. With as many rows as A has, one step solves the system.

References:
    Strohmer, Vershynin (2009), A randomized Kaczmarz algorithm with exponential convergence, theorem 2.
    Gower, Richtárik (2015), Randomized iterative methods for linear systems.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import Status, checks, safe_norm
from jaxdiv.core.types import Key, Numeric
from jaxdiv.linalg.count_sketch import count_sketch
from jaxdiv.linalg.gaussian_sketch import gaussian_sketch

SKETCHES = ("gaussian", "count", "kaczmarz")
_HIGHEST = jax.lax.Precision.HIGHEST


class SketchInfo(NamedTuple):
    """How `sketch_and_project` ended.

    Attributes:
        status: A `core.Status` code.
        steps: Sketches used.
        residual: ‖A x - b‖.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    residual: Float[Array, ""]


def sketch_and_project(
    matrix: Float[Array, "m n"],
    b: Float[Array, " m"],
    *,
    sketch: str = "gaussian",
    size: int = 1,
    init: Float[Array, " n"] | None = None,
    rtol: Numeric = 1e-5,
    max_steps: int | Int[Array, ""] = 10_000,
    key: Key,
) -> tuple[Float[Array, " n"], SketchInfo]:
    """Solves a consistent system by random projections.

    Args:
        matrix: A.
        b: The right-hand side, in the range of A.
        sketch: ``"gaussian"``, ``"count"`` (CountSketch) or ``"kaczmarz"`` (rows of A, drawn by their squared norms).
        size: q, rows of a sketch.
        init: First x; zeros by default, which leads to the solution of least norm.
        rtol: The solve converges when ``‖A x - b‖ <= rtol ‖b‖``.
        max_steps: Most sketches.
        key: Random key.

    Returns:
        x and a `SketchInfo`.

    Raises:
        ValueError: If a shape or dtype does not fit, `sketch` is unknown, or an option is out of its range.

    Note:
        A step costs one product with A, one with the sketch, and a least-squares problem of q rows.

    References:
        Gower, Richtárik (2015), Randomized iterative methods for linear systems.

    Example:
        >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> x, info = sketch_and_project(matrix, jnp.array([3.0, 4.0]), key=jax.random.key(0))
        >>> x.round(3).tolist(), int(info.status)
        ([1.0, 1.0], 0)
    """
    matrix, b = checks.floating("matrix", matrix), checks.floating("b", b)
    checks.rank("matrix", matrix, 2)
    checks.not_empty("matrix", matrix)
    checks.in_range("size", size, 1)
    checks.in_range("rtol", rtol, 0.0)
    checks.in_range("max_steps", max_steps, 0)
    checks.one_of("sketch", sketch, SKETCHES)
    dtype = jnp.promote_types(matrix.dtype, b.dtype)
    matrix, b = matrix.astype(dtype), b.astype(dtype)
    rows, columns = matrix.shape
    x = jnp.zeros(columns, dtype) if init is None else jnp.asarray(init, dtype)
    for name, vector, length in (("b", b, rows), ("init", x, columns)):
        if vector.shape != (length,):
            raise ValueError(f"{name} must have shape {(length,)}; got {vector.shape}.")
    goal = rtol * safe_norm(b)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, x, residual = carry
        x = x + correction(matrix, residual, jax.random.fold_in(key, steps), sketch=sketch, size=size)
        return steps + 1, x, jnp.matmul(matrix, x, precision=_HIGHEST) - b

    first = (jnp.zeros((), jnp.int32), x, jnp.matmul(matrix, x, precision=_HIGHEST) - b)
    # Not a number is no progress to wait for.
    steps, x, residual = jax.lax.while_loop(
        lambda carry: (safe_norm(carry[2]) > goal) & (carry[0] < max_steps), body, first
    )
    error = safe_norm(residual)
    status = jnp.where(error <= goal, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(jnp.isfinite(error), status, Status.NONFINITE).astype(jnp.int32)
    return x, SketchInfo(status, steps, error)


def correction(
    matrix: Float[Array, "m n"], residual: Float[Array, " m"], key: Key, *, sketch: str, size: int
) -> Float[Array, " n"]:
    """``-(S A)⁺ S r``, the least move that solves a random sketch of ``A d = -r``."""
    rows = matrix.shape[0]
    if sketch == "kaczmarz":
        weights = jnp.sum(matrix**2, axis=1)
        chosen = jax.random.choice(key, rows, (size,), p=weights / jnp.sum(weights))
        some, right = matrix[chosen], residual[chosen]
    else:
        drawn = (gaussian_sketch if sketch == "gaussian" else count_sketch)(rows, size, key=key)
        some, right = drawn(matrix), drawn(residual)
    # By singular values: rows may repeat or be empty, and the normal equations would lose half of the digits.
    return -jnp.matmul(jnp.linalg.pinv(some), right, precision=_HIGHEST)
