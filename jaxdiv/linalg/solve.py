"""One matrix-free linear solve, differentiable to any order.

Solves (A + ridge I) x = b for a linear map A on pytrees. The derivatives are those of the equation, not
of the iterations:

    A ẋ = ḃ − Ȧ x   (forward),      Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ   (reverse),

with respect to b, ridge and every value that `matvec` closes over.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.bicgstab import bicgstab
from jaxdiv.linalg.cg import cg
from jaxdiv.linalg.dense import cholesky, lu, materialize
from jaxdiv.linalg.gmres import gmres
from jaxdiv.linalg.minres import minres
from jaxdiv.linalg.neumann import neumann
from jaxdiv.linalg.normal_cg import normal_cg
from jaxdiv.linalg.refine import SolveInfo, refine
from jaxdiv.linalg.vectors import Matvec, Vector

_KRYLOV: dict[str, Callable[..., tuple[Vector, Int[Array, ""]]]] = {
    "cg": cg,
    "minres": minres,
    "gmres": gmres,
    "bicgstab": bicgstab,
    "normal_cg": normal_cg,
}
_DENSE = {"lu": lu, "cholesky": cholesky}
_SYMMETRIC = ("cg", "minres", "cholesky")
_TERMS = 10  # of the Neumann series, where max_steps does not say
# Of the norm of A, for "auto". A lesser one is left to refinement, each pass of which then gains as much.
_ASYMMETRY = 1e-3
# The fraction of the residual below which another pass is worth its steps; cycles of GMRES are slow.
_PROGRESS = {"gmres": 0.999}


def solve(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    method: str = "cg",
    symmetric: bool | None = None,
    init: PyTree | None = None,
    rtol: Numeric = 1e-5,
    atol: Numeric = 0.0,
    max_steps: int | Int[Array, ""] | None = None,
    ridge: Numeric = 0.0,
    preconditioner: Callable[[PyTree], PyTree] | None = None,
    restart: int = 30,
    step_size: Numeric = 1.0,
) -> tuple[PyTree, SolveInfo]:
    """Solves ``matvec(x) + ridge * x = b``.

    Args:
        matvec: A linear map from pytrees like `b` to pytrees like `b`, traceable and, unless
            `symmetric`, transposable by `jax.linear_transpose`.
        b: Right-hand side, a pytree of floating arrays.
        method: ``"cg"`` (symmetric positive definite), ``"minres"`` (symmetric, also indefinite or
            singular), ``"gmres"`` and ``"bicgstab"`` (general), ``"normal_cg"`` (general, also
            singular; squares the condition number), ``"auto"`` (general, also singular: ``"minres"``
            until the map is seen not to be symmetric, then ``"normal_cg"``), ``"cholesky"`` and
            ``"lu"`` (dense; n products and n² numbers), ``"neumann"`` (a truncated series: all
            `max_steps` terms and no more, whatever the tolerance).
        symmetric: Whether the map is symmetric, so that the transposed system is the system itself.
            Default: what `method` implies.
        init: First guess like `b`; used where it is better than zero. Not differentiated, and not
            used for transposed systems. ``"neumann"`` always starts there.
        rtol: The solve converges when ``norm(b - A x) <= max(rtol * norm(b), atol)``.
        atol: See `rtol`.
        max_steps: Most steps; default 10 n, and 10 for ``"neumann"``. A step is one product with A,
            two for ``"bicgstab"``, one more with its transpose for ``"normal_cg"``, one refinement
            for the dense methods; for ``"auto"`` those of both its methods count.
        ridge: Added to the diagonal, at least 0.
        preconditioner: A linear map close to the inverse of A, symmetric positive definite for
            ``"cg"`` and ``"minres"``. The dense methods take none.
        restart: Length of a cycle of ``"gmres"``, which keeps ``restart + 1`` vectors.
        step_size: The step a of ``"neumann"``, which needs ``norm(I - a A) < 1``.

    Returns:
        x, with the structure and dtypes of `b`, and a `SolveInfo` (status, steps, residual) for each
        lane under ``vmap``. A singular system or a breakdown ends STALLED with the best iterate (for
        ``"minres"`` and ``"normal_cg"`` the least-squares solution); a truncated series ends MAX_STEPS
        unless it meets the tolerance; a lane that ends NONFINITE holds NaN. `suggested_ridge`
        returns a ridge with which a singular symmetric system converges.

    Raises:
        ValueError: If `method` is unknown or contradicts `symmetric`, if `matvec`, `init` or
            `preconditioner` do not match `b`, if `b` is not floating, or if a concrete option is
            out of its range.

    Note:
        Half precisions are computed in float32: `matvec` then sees float32 vectors. The reachable
        residual is about eps ‖A‖ ‖x‖ / ‖b‖; a tolerance below it ends STALLED once no pass improves.
        Derivatives are solved to the same `rtol`, with `atol` in the units of their own right-hand
        sides; how those solves ended is not reported. `info` has zero derivatives.

    References:
        Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.

    Example:
        >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> x, info = solve(lambda v: matrix @ v, jnp.array([3.0, 4.0]))
        >>> x.round(4), int(info.status), int(info.steps)
        (Array([1., 1.], dtype=float32), 0, 2)
    """
    checks.one_of("method", method, (*_KRYLOV, "auto", *_DENSE, "neumann"))
    if symmetric is None:
        symmetric = method in _SYMMETRIC
    if method in _SYMMETRIC and not symmetric:
        raise ValueError(
            f"symmetric must be True for method {method!r}; got False; use 'gmres', 'bicgstab' or 'lu'."
        )
    if method in _DENSE and preconditioner is not None:
        raise ValueError(f"preconditioner must be None for the dense method {method!r}; leave it out.")
    for name, option in (("rtol", rtol), ("atol", atol), ("ridge", ridge)):
        checks.in_range(name, option, 0.0)
    checks.in_range("restart", restart, 1)
    checks.in_range("step_size", step_size, 0.0, open_low=True)

    wide = vectors.widened("b", b)
    space = vectors.uniform(wide)
    size = optax.tree.size(wide)
    if max_steps is None:
        max_steps = _TERMS if method == "neumann" else 10 * size
    checks.in_range("max_steps", max_steps, 0)
    if init is not None:
        vectors.same_space("init", init, "b", b)
        init = vectors.cast_like(jax.lax.stop_gradient(jax.tree.map(jnp.asarray, init)), space)

    plain = vectors.operator("matvec", matvec, "b", wide)
    shift = jnp.asarray(ridge, optax.tree.dtype(space))

    def shifted(v: Vector) -> Vector:
        return vectors.coupled(optax.tree.add_scale(plain(v), shift, v))

    if method in _DENSE:
        matrix = jax.lax.stop_gradient(materialize(shifted, space))
        sides: tuple[Any, Any] = _DENSE[method](matrix)
    else:
        sides = _preconditioners(preconditioner, wide, symmetric)

    def attempt(side: Any, init: Vector | None, matvec: Matvec, rhs: Vector) -> Any:
        """Solves the system or its transpose; `side` is its factorization or preconditioner."""
        if method == "neumann":
            return neumann(
                matvec, rhs, init, preconditioner=side, step_size=step_size, terms=max_steps, rtol=rtol, atol=atol
            )  # fmt: skip
        inner, fallback = side, None
        if method in _KRYLOV:
            options = {"restart": min(restart, size)} if method == "gmres" else {}
            inner = partial(_KRYLOV[method], preconditioner=side, **options)
        elif method == "auto":
            inner, fallback = partial(_trial, side, size), partial(normal_cg, preconditioner=side)
        return refine(
            inner, matvec, rhs, init, rtol=rtol, atol=atol, max_steps=max_steps,
            progress=_PROGRESS.get(method, 0.5), fallback=fallback,
        )  # fmt: skip

    x, info = jax.lax.custom_linear_solve(
        shifted,
        vectors.coupled(space),
        solve=partial(attempt, sides[0], init),
        transpose_solve=partial(attempt, sides[1], None),
        symmetric=symmetric,
        has_aux=True,
    )
    return vectors.cast_like(x, jax.tree.map(jnp.asarray, b)), info


def _trial(side: Matvec, size: int, matvec: Matvec, r: Vector, tol: Any, max_steps: Any) -> Any:
    """Runs MINRES on an operator that may not be symmetric, for as long as it would take on one that is."""
    most = jnp.minimum(max_steps, 3 * size)
    return minres(matvec, r, tol, most, preconditioner=side, asymmetry=_ASYMMETRY)


def _preconditioners(preconditioner: Matvec | None, like: Vector, symmetric: bool) -> tuple[Matvec, Matvec]:
    """Returns the preconditioners of a system and of its transpose."""
    if preconditioner is None:
        return (lambda v: v), (lambda v: v)
    forward = vectors.operator("preconditioner", preconditioner, "b", like)
    if symmetric:
        return forward, forward
    transpose = jax.linear_transpose(forward, vectors.uniform(like))
    return forward, lambda v: transpose(v)[0]
