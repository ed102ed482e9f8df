"""The truncated Neumann series: K products stand for an inverse, on purpose.

    x = a Σ_{k=0}^{K} (I − a A)^k b,      b − A x = (I − a A)^{K+1} b,

which converges for ‖I − a A‖ < 1 (0 < a < 2/L for a symmetric A between 0 and L). With a preconditioner
M it is Σ (I − a M A)^k a M b; with a first guess x₀, x₀ plus the same sum of b − A x₀. K = 0 replaces A⁻¹
by a. The sum of the transposed operator is the transposed sum.

References:
    Lorraine, Vicol and Duvenaud (2020), Optimizing millions of hyperparameters by implicit
        differentiation, theorem 1.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdiv.core.status import Status
from jaxdiv.core.types import Numeric
from jaxdiv.linalg.refine import SolveInfo
from jaxdiv.linalg.vectors import Matvec, Vector


def neumann(
    matvec: Matvec,
    b: Vector,
    init: Vector | None,
    *,
    preconditioner: Matvec,
    step_size: Numeric,
    terms: int | Int[Array, ""],
    rtol: Numeric,
    atol: Numeric,
) -> tuple[Vector, SolveInfo]:
    """Returns the truncated series for ``A x = b``, and how close it came.

    Args:
        matvec: The operator A.
        b: Right-hand side, all leaves of one dtype.
        init: First guess x₀; None is 0.
        preconditioner: The operator M.
        step_size: The number a.
        terms: K, the products with A that the sum takes; all are taken.
        rtol: A residual of at most ``max(rtol * norm(b), atol)`` is CONVERGED, any other MAX_STEPS.
        atol: See `rtol`.
    """
    dtype = jnp.result_type(*jax.tree.leaves(b))
    a = jnp.asarray(step_size, dtype)

    def correction(x: Vector) -> Vector:
        r = b if x is None else optax.tree.sub(b, matvec(x))
        return optax.tree.scale(a, preconditioner(r))

    def term(_: Int[Array, ""], x: Vector) -> Vector:
        return optax.tree.add(x, correction(x))

    first = correction(None) if init is None else optax.tree.add(init, correction(init))
    steps = jnp.asarray(terms, jnp.int32)
    x = jax.lax.fori_loop(jnp.int32(0), steps, term, first)

    largest = optax.tree.norm(b, ord="inf")
    unit = 1 / jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    norm_b = optax.tree.norm(optax.tree.scale(unit, b))
    norm = optax.tree.norm(optax.tree.scale(unit, optax.tree.sub(b, matvec(x))))
    finite = jnp.isfinite(norm)
    target = jnp.maximum(jnp.asarray(rtol, dtype) * norm_b, jnp.asarray(atol, dtype) * unit)
    status = jnp.where(norm <= target, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    x = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), x)
    residual = jnp.where(norm_b > 0, norm / jnp.where(norm_b > 0, norm_b, 1), 0)
    return x, SolveInfo(status, steps, jnp.where(finite, residual, jnp.nan))
