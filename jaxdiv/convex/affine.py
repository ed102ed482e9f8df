r"""Euclidean projection onto an affine set {A z = b}.

    P(x) = x + A⁺ (b - A x)

With the pseudoinverse A⁺ the rows of A may depend on each other.

References:
    Golub, Pereyra (1973), The differentiation of pseudo-inverses and nonlinear least squares problems whose
    variables separate. Parikh, Boyd (2014), Proximal algorithms, section 6.2.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.convex import arguments
from jaxdiv.core import checks


def project_affine(
    x: Float[Array, "*s"], matrix: Float[Array, "m k"], offset: Float[Array, "*b m"], *, axis: int = -1
) -> Float[Array, "*s"]:
    """Projects onto the solutions of linear equations.

    Args:
        x: Any shape, k entries along `axis`.
        matrix: A [m, k].
        offset: b [m], or [..., m] with the batch axes of `x` in front, which it broadcasts to.
        axis: Axis of the vectors; the others are batch axes.

    Returns:
        The nearest point with ``A z = b``, in the dtype of `x`; where there is none, the nearest of those
        that leave the least squares of ``A z - b``.

    Raises:
        ValueError: If an argument is not floating point, is empty or does not fit the others.

    Note:
        Singular values below ``10 max(m, k) eps`` of the largest count as 0. Derivatives, by A too, hold as
        long as the rank stays. The residual of the equations is about eps times the condition number of A.

    References:
        Golub, Pereyra (1973), The differentiation of pseudo-inverses and nonlinear least squares problems.

    Example:
        >>> matrix, offset = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), jnp.array([1.0, 2.0])
        >>> project_affine(jnp.array([2.0, 1.0, 0.0]), matrix, offset).round(4).tolist()
        [1.0, 0.0, 1.0]
    """
    wide, axes = arguments.vectors(x, axis)
    rows = arguments.to_rows(wide, axes)
    matrix, offset = (checks.floating(n, v) for n, v in (("matrix", matrix), ("offset", offset)))
    checks.rank("matrix", matrix, 2)
    checks.not_empty("matrix", matrix)
    if matrix.shape[1] != rows.shape[-1]:
        raise ValueError(
            f"matrix must have one column for each of the {rows.shape[-1]} entries of x along axis {axis}; "
            f"got shape {matrix.shape}."
        )
    shape = (*rows.shape[:-1], matrix.shape[0])
    if offset.ndim == 0 or offset.shape[-1] != shape[-1] or not arguments.broadcasts(offset.shape, shape):
        raise ValueError(
            f"offset must have shape {shape[-1:]}, or broadcast to {shape}; got shape {offset.shape}."
        )
    matrix, offset = matrix.astype(rows.dtype), offset.astype(rows.dtype)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    with jax.default_matmul_precision("highest"):
        inverse = jnp.linalg.pinv(matrix)
    out = rows + product(offset - product(rows, matrix.T), inverse.T)
    return arguments.from_rows(out, wide, axes).astype(jnp.result_type(x))
