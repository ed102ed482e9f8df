r"""Euclidean projections of a matrix onto transport plans and doubly stochastic matrices.

    argmin_P ½|P - X|²,   P ≥ 0, P1 = a, Pᵀ1 = b

is transport at the cost -X with the regularizer ½|P|². What a row or column of X has in common does not count.

References:
    Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport, section 3.
    Zass, Shashua (2006), Doubly stochastic normalization for spectral clustering.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import Status, checks
from jaxdiv.ot.geometry import CostMatrix, finite
from jaxdiv.ot.regularizers import Quadratic
from jaxdiv.ot.semi_dual import SemiDual
from jaxdiv.ot.solve import solve


def project_transport(
    x: Float[Array, "n m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    max_steps: int = 5000,
) -> Float[Array, "n m"]:
    """Projects onto the plans with given row and column sums.

    Args:
        x: A matrix, finite.
        a: Row sums [n], nonnegative; 1/n by default.
        b: Column sums [m] of the same total; 1/m by default.
        max_steps: Most steps of the solver, `SemiDual`.

    Returns:
        The nearest nonnegative matrix with these sums, in the dtype of `x`. NaN where it was not found, or
        traced sums admit none.

    Raises:
        ValueError: If `x` is not a floating matrix or has a concrete entry that is not finite, or concrete sums
            are negative, not finite, all zero or of unequal total.

    Note:
        Derivatives are those of the optimum; changes of a and b count as far as they leave their totals equal.
        The column sums hold up to rounding, the row sums up to ``eps^{3/4}`` of the total, or to the rounding
        of x where that is more. Use `solve` with ``Quadratic(1.0)`` to see steps, error and status.

    References:
        Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [0.5, 0.2]])
        >>> project_transport(x, jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])).round(4).tolist()
        [[0.5, 0.0], [0.25, 0.25]]
    """
    wide = checks.floating("x", x)
    checks.rank("x", wide, 2)
    finite("x", wide)
    n, m = wide.shape
    # Potentials of the size of x would lose digits.
    rows = jax.lax.stop_gradient(jnp.mean(wide, 1, keepdims=True))
    columns = jax.lax.stop_gradient(jnp.mean(wide - rows, 0))
    centered = wide - rows - columns
    mass = jnp.sum(jnp.full(n, 1.0 / n) if a is None else jnp.asarray(a)).astype(wide.dtype)
    eps = float(jnp.finfo(wide.dtype).eps)
    solver = SemiDual(tol=jax.lax.stop_gradient(eps**0.75 * mass), max_steps=max_steps)
    out = solve(CostMatrix(-centered), a, b, regularizer=Quadratic(1.0), solver=solver)
    slack = eps**0.5 * mass + eps * (n + m) * jnp.max(jnp.abs(centered))
    found = (out.status != Status.INFEASIBLE) & (out.error <= slack)
    return jnp.where(found, out.plan(), jnp.nan).astype(jnp.result_type(x))


def project_birkhoff(x: Float[Array, "n n"], *, max_steps: int = 5000) -> Float[Array, "n n"]:
    """Projects onto the doubly stochastic matrices.

    Args:
        x: A square matrix, finite.
        max_steps: As in `project_transport`.

    Returns:
        The nearest nonnegative matrix whose rows and columns sum to 1, in the dtype of `x`. NaN where it was
        not found.

    Raises:
        ValueError: If `x` is not a floating square matrix or has a concrete entry that is not finite.

    Note:
        As `project_transport` with sums of 1.

    References:
        Zass, Shashua (2006), Doubly stochastic normalization for spectral clustering.

    Example:
        >>> project_birkhoff(jnp.array([[1.0, 0.5], [0.0, 0.5]])).round(4).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    wide = checks.floating("x", x)
    checks.rank("x", wide, 2)
    if wide.shape[0] != wide.shape[1]:
        raise ValueError(f"x must be a square matrix; got shape {wide.shape}.")
    ones = jnp.ones(wide.shape[0], wide.dtype)
    return project_transport(wide, ones, ones, max_steps=max_steps).astype(jnp.result_type(x))
