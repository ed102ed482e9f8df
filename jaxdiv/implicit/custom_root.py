"""Solvers with the derivatives of the equation that they solve.

A solver finds y with F(y, θ) = 0; how it does so, loops, branches or foreign code, leaves no trace in the
derivatives, which are those of the equation:

    ∂₁F ẏ = −∂₂F θ̇   (forward),      ∂₁Fᵀ u = −ȳ,  θ̄ = ∂₂Fᵀ u   (reverse; one solve for every argument).

A fixed point y = T(y, θ) is the root of F = T − id.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 2, eqs. (1)-(3).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from jaxdiv.implicit.equation import Solve, attach, freeze, label

Fun = Callable[..., Any]


def custom_root(optimality_fun: Fun, has_aux: bool = False, solve: Solve = "auto") -> Callable[[Fun], Fun]:
    """Returns a decorator that gives a solver the derivatives of the root of `optimality_fun`.

    Args:
        optimality_fun: ``(sol, *args, **kwargs) -> F``, a pytree like `sol`, zero at the solution and
            differentiable. `args` and `kwargs` are those of the solver.
        has_aux: Whether the solver returns ``(sol, aux)``; `aux` may be anything and has no derivative.
        solve: How the linear systems in ∂₁F are solved: the name of a method of `linalg.solve`, a
            ``functools.partial`` of `linalg.solve` (tolerance, ridge, preconditioner), or a function
            ``(matvec, b) -> x``, called with the transposed operator in reverse mode. The default
            ``"auto"`` takes any ∂₁F, also a singular one where the system is consistent: it is as quick
            as ``"minres"`` where ∂₁F is symmetric, as for gradients, and goes on with ``"normal_cg"``
            where it sees that it is not. Naming the method that fits compiles sooner.

    Returns:
        A decorator of solvers ``solver(init, *args, **kwargs) -> sol``. The solver sees its arguments cut
        off from differentiation, so that it need be neither differentiable nor, outside ``jax.jit``,
        traceable. `init` has no derivative; nor have Python numbers, integers and functions, which may
        stand in any argument. The solution is a pytree of floating arrays.

    Raises:
        ValueError: When called: if the solution is not floating, if `optimality_fun` does not take the
            solver's arguments or does not return a pytree like the solution. When differentiated: if the
            solver or `optimality_fun` closes over a value that carries a derivative.

    Note:
        The derivative is exact at a root; at an approximate one its error is within
        `error_bound`. It is solved to the tolerance of `solve`, relative to its right-hand side; a zero
        cotangent gives zero. Compile what is differentiated with ``jax.jit``: run eagerly, the linear
        solve compiles at each call.

    References:
        Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> def gradient(y, theta):
        ...     return y + theta * y - jnp.ones(2)
        >>> @custom_root(gradient)
        ... def solver(init, theta):
        ...     return jnp.ones(2) / (1 + theta)
        >>> jax.jit(jax.jacobian(solver, argnums=1))(None, 1.0)
        Array([-0.25, -0.25], dtype=float32, weak_type=True)
    """
    name = label(optimality_fun)

    def decorate(solver: Fun) -> Fun:
        @functools.wraps(solver)
        def solve_and_attach(*args: Any, **kwargs: Any) -> Any:
            init, args, kwargs = _init_first(solver, args, kwargs)
            found = solver(freeze(init), *freeze(args), **freeze(kwargs))
            sol, aux = _with_aux(found) if has_aux else (found, None)
            _check_call(optimality_fun, name, sol, args, kwargs)
            sol = attach(lambda y, t: optimality_fun(y, *t[0], **t[1]), name, sol, (args, kwargs), solve)
            return (sol, freeze(aux)) if has_aux else sol

        return solve_and_attach

    return decorate


def custom_fixed_point(
    fixed_point_fun: Fun, has_aux: bool = False, solve: Solve = "auto"
) -> Callable[[Fun], Fun]:
    """Returns a decorator that gives a solver the derivatives of the fixed point of `fixed_point_fun`.

    Args:
        fixed_point_fun: ``(sol, *args, **kwargs) -> T``, a pytree like `sol`, equal to `sol` at the
            solution.
        has_aux: See `custom_root`.
        solve: See `custom_root`.

    Returns:
        ``custom_root`` of T − id.

    Raises:
        ValueError: See `custom_root`.

    References:
        Blondel et al. (2022), Efficient and modular implicit differentiation, section 2, eq. (3).

    Example:
        >>> import jax.numpy as jnp
        >>> @custom_fixed_point(lambda y, a: (y + a / y) / 2)
        ... def square_root(init, a):
        ...     return jnp.sqrt(a)
        >>> jax.jit(jax.grad(square_root, argnums=1))(None, 4.0)
        Array(0.25, dtype=float32, weak_type=True)
    """

    @functools.wraps(fixed_point_fun)
    def optimality_fun(sol: Any, *args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(lambda t, y: t - y, fixed_point_fun(sol, *args, **kwargs), sol)

    return custom_root(optimality_fun, has_aux, solve)


def _init_first(solver: Fun, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """Returns `init`, given by place or by name, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    name = next(iter(inspect.signature(solver).parameters), "init")
    if name not in kwargs:
        raise ValueError(f"the solver must get {name!r} as its first argument; got {sorted(kwargs)}.")
    return kwargs[name], (), {k: v for k, v in kwargs.items() if k != name}


def _with_aux(found: Any) -> tuple[Any, Any]:
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"a solver with has_aux=True must return (sol, aux); got {type(found).__name__}.")
    return found[0], found[1]


def _check_call(fun: Fun, name: str, sol: Any, args: Any, kwargs: Any) -> None:
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # some compiled functions have none
        return
    try:
        signature.bind(sol, *args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{name} must take (sol, *args, **kwargs) with the solver's {len(args)} args and kwargs "
            f"{sorted(kwargs)}; got the signature {signature}: {error}."
        ) from None
