"""The two products with dy*/dθ at a given root, and the adjoint that a caller may keep.

With A = ∂₁F and B = ∂₂F at (y, θ):

    root_jvp:  ẏ = −A⁻¹ B θ̇,        root_vjp:  Aᵀ u = −ȳ,  θ̄ = Bᵀ u.

In a loop over θ the adjoint u moves little from step to step: handed back as `init` it saves most of the
solve. For F = ∇₁g and ȳ = ∇₁f of a bilevel problem, −u = [∂₁²g]⁻¹ ∇₁f.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdiv.implicit.equation import Solve, label, linear_solve, residual, split
from jaxdiv.linalg import vectors
from jaxdiv.linalg.refine import SolveInfo
from jaxdiv.linalg.vectors import Vector


class Adjoint(NamedTuple):
    """The solved linear system behind a product.

    Attributes:
        value: u of `root_vjp` or ẏ of `root_jvp`, like the solution; the next call's `init`.
        info: How the solve ended; None where `solve` does not say.
    """

    value: PyTree
    info: SolveInfo | None


def root_jvp(
    optimality_fun: Callable[..., Any],
    sol: PyTree,
    args: Sequence[Any],
    tangents: Sequence[Any],
    solve: Solve = "auto",
    *,
    init: PyTree | None = None,
    return_adjoint: bool = False,
) -> Any:
    """Returns the tangent of the root of `optimality_fun` along `tangents` of its arguments.

    Args:
        optimality_fun: ``(sol, *args) -> F``, a pytree like `sol`.
        sol: The root, a pytree of floating arrays.
        args: The arguments at which it is the root.
        tangents: One a argument, like it; None stands for zero.
        solve: How A ẏ = −B θ̇ is solved; see `custom_root`.
        init: First guess of the tangent.
        return_adjoint: Whether to return the `Adjoint` too.

    Returns:
        The tangent, like `sol`; or ``(tangent, Adjoint)``.

    Raises:
        ValueError: If `tangents` does not match `args`, or if F or `init` does not match `sol`.

    Example:
        >>> root_jvp(lambda y, a: y**2 - a, jnp.array(2.0), (jnp.array(4.0),), (jnp.array(1.0),))
        Array(0.25, dtype=float32)
    """
    if len(args) != len(tangents):
        raise ValueError(
            f"tangents must have one entry for each of the {len(args)} args; got {len(tangents)}."
        )
    moving = [i for i, t in enumerate(tangents) if t is not None]
    sol = jax.tree.map(jnp.asarray, sol)
    y = vectors.widened("sol", sol)
    fun = residual(lambda v, a: optimality_fun(v, *a), label(optimality_fun), y, tuple(args))

    def along(active: Sequence[Any]) -> PyTree:
        full = list(args)
        for i, x in zip(moving, active, strict=True):
            full[i] = x
        return fun(y, tuple(full))

    primals = [jax.tree.map(jnp.asarray, args[i]) for i in moving]
    for i, primal in zip(moving, primals, strict=True):
        vectors.same_space(f"tangents[{i}]", tangents[i], f"args[{i}]", primal)
    directions = [
        jax.tree.map(lambda t, x: jnp.asarray(t, x.dtype), tangents[i], primal)
        for i, primal in zip(moving, primals, strict=True)
    ]
    _, moved = jax.jvp(along, (primals,), (directions,))
    _, product = jax.linearize(lambda v: fun(v, tuple(args)), y)
    value, info = linear_solve(solve, product, jax.tree.map(jnp.negative, moved), _guess(init, y))
    tangent = vectors.cast_like(value, sol)
    return (tangent, Adjoint(value, info)) if return_adjoint else tangent


def root_vjp(
    optimality_fun: Callable[..., Any],
    sol: PyTree,
    args: Sequence[Any],
    cotangent: PyTree,
    solve: Solve = "auto",
    *,
    init: PyTree | None = None,
    return_adjoint: bool = False,
) -> Any:
    """Returns the cotangents of the arguments for a cotangent of the root of `optimality_fun`.

    Args:
        optimality_fun: ``(sol, *args) -> F``, a pytree like `sol`.
        sol: The root, a pytree of floating arrays.
        args: The arguments at which it is the root.
        cotangent: Like `sol`.
        solve: How Aᵀ u = −ȳ is solved; see `custom_root`. The operator handed to it is Aᵀ.
        init: First guess of u, e.g. ``adjoint.value`` of the call before.
        return_adjoint: Whether to return the `Adjoint` too.

    Returns:
        A tuple of cotangents like `args` (float0 for integer arrays, None for leaves that are no arrays);
        or ``(cotangents, Adjoint)``.

    Raises:
        ValueError: If F, `cotangent` or `init` does not match `sol`.

    Example:
        >>> (bar,) = root_vjp(lambda y, a: y**2 - a, jnp.array(2.0), (jnp.array(4.0),), jnp.array(1.0))
        >>> print(bar)
        0.25
    """
    y = vectors.widened("sol", jax.tree.map(jnp.asarray, sol))
    vectors.same_space("cotangent", cotangent, "sol", y)
    data, join = split(tuple(args), floats=True)
    fun = residual(lambda v, d: optimality_fun(v, *join(d)), label(optimality_fun), y, data)
    b = jax.tree.map(lambda c, v: -jnp.asarray(c, v.dtype), cotangent, y)
    _, pull_y = jax.vjp(lambda v: fun(v, data), y)
    value, info = linear_solve(solve, lambda u: pull_y(u)[0], b, _guess(init, y))
    _, pull_data = jax.vjp(lambda d: fun(y, d), data)
    cotangents = join(pull_data(value)[0], blank=True)
    return (cotangents, Adjoint(value, info)) if return_adjoint else cotangents


def _guess(init: PyTree | None, y: Vector) -> Vector | None:
    if init is None:
        return None
    vectors.same_space("init", init, "sol", y)
    return vectors.cast_like(jax.tree.map(jnp.asarray, init), y)
