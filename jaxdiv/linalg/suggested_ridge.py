"""The ridge with which a symmetric system can be solved in its dtype.

(A + μ I) x = b has ‖x‖ ≤ ‖b‖ / (λ_min + μ), and A x is known to eps ‖A‖ ‖x‖, so that a residual of
rtol ‖b‖ is in reach of the dtype for

    λ_min + μ ≥ eps ‖A‖ / rtol.

λ_min and ‖A‖ are those that b meets, from the Krylov space of b.

References:
    Higham (2002), Accuracy and stability of numerical algorithms, section 7.1.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.lanczos import lanczos

_STEPS = 30
_SLACK = 4.0


def suggested_ridge(
    matvec: Callable[[PyTree], PyTree], b: PyTree, *, rtol: Numeric = 1e-5, num_steps: int | None = None
) -> Float[Array, ""]:
    """Returns a ridge that makes a symmetric system definite and solvable to `rtol`.

    Args:
        matvec: Symmetric linear map on pytrees like `b`.
        b: Right-hand side, not 0.
        rtol: The tolerance of the solve.
        num_steps: Products with the operator, and vectors kept; default ``min(n, 30)``. More find a
            smaller smallest eigenvalue.

    Returns:
        The least μ ≥ 0 for which A + μ I is as far from singular as `rtol` needs; 0 where b meets no
        eigenvalue that is too small.

    Raises:
        ValueError: If `matvec` does not match `b`, `b` is not floating, or an option is out of range.

    References:
        Higham (2002), Accuracy and stability of numerical algorithms, section 7.1.

    Example:
        >>> from jaxdiv.linalg.solve import solve
        >>> matvec, b = lambda v: jnp.array([1.0, 0.5, 0.0]) * v, jnp.ones(3)
        >>> int(solve(matvec, b)[1].status), int(solve(matvec, b, ridge=suggested_ridge(matvec, b))[1].status)
        (2, 0)
    """
    checks.in_range("rtol", rtol, 0.0, open_low=True)
    b = vectors.widened("b", b)
    if num_steps is None:
        num_steps = min(optax.tree.size(b), _STEPS)
    t = lanczos(matvec, b, num_steps=num_steps)
    values, s = jnp.linalg.eigh(t.matrix())
    # Each Ritz value is this close to an eigenvalue.
    smallest = values[0] - t.residual * jnp.abs(s[-1, 0])
    eps = vectors.epsilon(t.diagonal)
    return jnp.maximum(_SLACK * eps * jnp.max(jnp.abs(values)) / rtol - smallest, 0)
