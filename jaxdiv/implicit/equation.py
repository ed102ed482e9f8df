"""The equation F(y, θ) = 0 around a value y: its derivative in y, its derivative in θ, and the value tied to θ.

With A = ∂₁F and B = ∂₂F at (y, θ), the implicit function theorem gives A ẏ + B θ̇ = 0. `attach` is the
identity on y whose tangent is that ẏ, solved by `linalg.solve`; as the rule evaluates A and B at the value
that it returns, the rule may itself be differentiated, in any mode and to any order.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from jaxdiv import linalg
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.refine import SolveInfo
from jaxdiv.linalg.vectors import Matvec, Vector

Residual: TypeAlias = Callable[[Vector, PyTree], Vector]
"""``(y, theta) -> F(y, theta)``, like `y`."""

Solve: TypeAlias = str | Callable[..., Any]
"""How A x = b is solved: a method of `linalg.solve`, a ``functools.partial`` of it, or a function
``(matvec, b) -> x`` that may return ``(x, SolveInfo)``."""


def freeze(tree: PyTree) -> PyTree:
    """Returns the pytree with its arrays cut off from differentiation; other leaves as they are."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree)


def label(fun: Callable[..., Any]) -> str:
    """Returns what messages call `fun`."""
    name = getattr(fun, "__name__", "optimality_fun")
    return "optimality_fun" if name == "<lambda>" else name


def split(theta: PyTree, *, floats: bool = False) -> tuple[list[Array], Callable[..., PyTree]]:
    """Returns the arrays of a pytree, and what puts arrays back among its other leaves.

    Args:
        theta: Any pytree. Functions, strings and Python integers are no arrays.
        floats: Whether Python floats are.

    Returns:
        The arrays, and ``join(arrays, blank=False) -> theta``, with None for the other leaves if `blank`.
    """
    kinds = (jax.Array, np.ndarray, np.generic, *((float,) if floats else ()))
    leaves, structure = jax.tree.flatten(theta)
    is_data = [isinstance(x, kinds) for x in leaves]

    def join(data: Sequence[Array], blank: bool = False) -> PyTree:
        rest = iter(data)
        others = [None if blank else x for x in leaves]
        return jax.tree.unflatten(
            structure, [next(rest) if d else x for x, d in zip(others, is_data, strict=True)]
        )

    return [jnp.asarray(x) for x, d in zip(leaves, is_data, strict=True) if d], join


def residual(
    fun: Callable[[Vector, Any], Any], name: str, y: Vector, theta: Any
) -> Callable[[Vector, Any], Vector]:
    """Returns `fun` with its output checked to be like `y` and cast to the dtypes of `y`.

    Args:
        fun: ``(y, theta) -> F``.
        name: What `fun` is called, for messages.
        y: The value, of at least single precision.
        theta: The parameters.

    Raises:
        ValueError: If the output differs from `y` in structure or shapes.
    """
    vectors.same_space(f"the output of {name}", jax.eval_shape(fun, y, theta), "the solution", y)
    return lambda v, t: vectors.cast_like(jax.tree.map(jnp.asarray, fun(v, t)), y)


def linear_solve(
    solve: Solve, matvec: Matvec, b: Vector, init: Vector | None = None
) -> tuple[Vector, SolveInfo | None]:
    """Returns the solution of ``matvec(x) = b``, differentiable, and how its solve ended if that is known.

    Args:
        solve: See `Solve`.
        matvec: The operator.
        b: Right-hand side, of at least single precision.
        init: First guess, or None.
    """
    options = {} if init is None else {"init": init}
    if isinstance(solve, str):
        return linalg.solve(matvec, b, method=solve, **options)
    if not callable(solve):
        raise ValueError(
            f"solve must be a method of linalg.solve or a function (matvec, b) -> x; got {solve!r}."
        )

    def known(matvec: Matvec, rhs: Vector) -> tuple[Vector, SolveInfo | None]:
        out = solve(matvec, rhs, **options)
        if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], SolveInfo):
            return out
        return out, None

    x, info = jax.eval_shape(lambda rhs: known(matvec, rhs), b)
    vectors.same_space("the output of solve", x, "b", b)
    if info is not None:
        return known(matvec, b)

    def bare(matvec: Matvec, rhs: Vector) -> Vector:
        return vectors.cast_like(known(matvec, rhs)[0], rhs)

    x = jax.lax.custom_linear_solve(matvec, vectors.coupled(b), solve=bare, transpose_solve=bare)
    return x, None


def attach(fun: Residual, name: str, sol: Vector, theta: PyTree, solve: Solve) -> Vector:
    """Returns `sol` with the derivatives that F(y, θ) = 0 gives it in θ.

    Args:
        fun: ``(y, theta) -> F``, with an output like `y`.
        name: What `fun` is called, for messages.
        sol: The root, computed from frozen values.
        theta: A pytree; its arrays may carry derivatives.
        solve: See `Solve`.

    Raises:
        ValueError: If `sol` is not floating or F does not match it; and, once a derivative is taken, if
            the solver or F closes over a value with a derivative.
    """
    sol = jax.tree.map(jnp.asarray, sol)
    y = vectors.widened("the solution", sol)
    data, join = split(theta)
    # Traced values that F closes over become operands, so that none can lose a derivative unseen.
    joined = residual(lambda v, d: fun(v, join(d)), name, y, data)
    closed = jax.make_jaxpr(joined)(y, data)
    traced = [isinstance(c, jax.core.Tracer) for c in closed.consts]
    hoisted = [c for c, t in zip(closed.consts, traced, strict=True) if t]

    def evaluate(v: Vector, d: Sequence[Array], h: Sequence[Array]) -> Vector:
        rest = iter(h)
        consts = [next(rest) if t else c for c, t in zip(closed.consts, traced, strict=True)]
        out = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves((v, list(d))))
        return jax.tree.unflatten(jax.tree.structure(y), out)

    @jax.custom_jvp
    def root(sol: Vector, data: list[Array], hoisted: list[Array]) -> Vector:
        del data, hoisted
        return sol

    @partial(root.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Vector, Vector]:
        if _perturbed(tangents[0]):
            raise ValueError(_closure_message("the solver"))
        if _perturbed(tangents[2]):
            raise ValueError(_closure_message(name))
        # Tied to θ in its turn, for derivatives of this rule.
        tied = root(*primals)
        _, data, hoisted = primals
        v = vectors.widened("the solution", tied)
        index = _perturbed(tangents[1])

        def along(active: Sequence[Array]) -> Vector:
            full = list(data)
            for i, x in zip(index, active, strict=True):
                full[i] = x
            return evaluate(v, full, hoisted)

        _, moved = jax.jvp(along, ([data[i] for i in index],), ([tangents[1][i] for i in index],))
        _, product = jax.linearize(lambda v: evaluate(v, data, hoisted), v)
        tangent, _ = linear_solve(solve, product, jax.tree.map(jnp.negative, moved))
        return tied, vectors.cast_like(tangent, sol)

    return root(sol, data, hoisted)


def _perturbed(tangents: PyTree) -> list[int]:
    """Returns the indices of the leaves that carry a tangent."""
    leaves = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    return [
        i
        for i, t in enumerate(leaves)
        if not isinstance(t, SymbolicZero) and getattr(t, "dtype", None) != jax.dtypes.float0
    ]


def _closure_message(name: str) -> str:
    return (
        f"{name} must get what is differentiated as arguments; got a closed-over value that carries a "
        "derivative; hand it over as an argument of both the solver and the optimality function, e.g. "
        "by jax.closure_convert, or cut it off with jax.lax.stop_gradient."
    )


def constant_step(step_size: Numeric) -> Numeric:
    """Returns a positive step size, cut off from differentiation: no solution depends on it.

    Raises:
        ValueError: If it is concrete and not positive.
    """
    checks.in_range("step_size", step_size, 0.0, open_low=True)
    return freeze(step_size)
