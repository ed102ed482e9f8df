"""`core.run` with the derivatives of the solver's own optimality condition.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.
"""

import dataclasses
from typing import Any

from jaxtyping import PyTree

from jaxdiv import core
from jaxdiv.implicit.equation import Solve, attach, freeze


def run(
    solver: core.Solver,
    y0: PyTree,
    *args: Any,
    max_steps: int,
    history: int = 0,
    progress: core.Progress | None = None,
    state: PyTree | None = None,
    solve: Solve = "auto",
) -> core.Solution:
    """Runs `solver`; its solution's value has the derivatives of ``solver.optimality(value, *args) = 0``.

    Args:
        solver: A `core.Solver` with a method ``optimality(value, *args)`` that returns a pytree like
            `value`, zero at the solution. Its numeric options are parameters like `args`.
        y0: The first value; it has no derivative.
        *args: The problem. Arrays carry derivatives; functions are static and must be hashable.
        max_steps: See `core.run`.
        history: See `core.run`.
        progress: See `core.run`.
        state: See `core.run`; it has no derivative.
        solve: How the linear systems of the derivatives are solved; see `custom_root`.

    Returns:
        The solution of `core.run`. Only `value` has derivatives, in forward and reverse mode and to any
        order. A run that did not converge is differentiated at the value it reached, and its status says
        so.

    Raises:
        ValueError: If the solver has no `optimality`, if that does not return a pytree like the value, or
            as `core.run`. When differentiated: if `solver` or a function among `args` closes over a value
            that carries a derivative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from typing import NamedTuple
        >>> class HeronState(NamedTuple):
        ...     value: jax.Array
        ...     error: jax.Array
        ...     status: jax.Array
        >>> @core.pytree_dataclass
        ... class Heron:
        ...     def init(self, y0, a):
        ...         return HeronState(y0, jnp.inf * y0, jnp.int32(core.RUNNING))
        ...     def step(self, state, a):
        ...         y = (state.value + a / state.value) / 2
        ...         error = abs(y * y - a)
        ...         return HeronState(y, error, jnp.where(error < 1e-6, core.Status.CONVERGED, core.RUNNING))
        ...     def optimality(self, value, a):
        ...         return value * value - a
        >>> root = jax.jit(lambda a: run(Heron(), jnp.array(1.0), a, max_steps=20).value)
        >>> print(f"{root(4.0):.4f}, {jax.grad(root)(4.0):.4f}, {jax.grad(jax.grad(root))(4.0):.5f}")
        2.0000, 0.2500, -0.03125
    """
    if not callable(getattr(solver, "optimality", None)):
        raise ValueError(
            f"solver must have a method optimality(value, *args); got {type(solver).__name__}; "
            "add it, or use core.run, which has no implicit derivatives."
        )
    found = core.run(
        freeze(solver), freeze(y0), *freeze(args),
        max_steps=max_steps, history=history, progress=progress, state=freeze(state),
    )  # fmt: skip

    def optimality(value: PyTree, theta: Any) -> PyTree:
        return theta[0].optimality(value, *theta[1])

    value = attach(optimality, "solver.optimality", found.value, (solver, args), solve)
    return dataclasses.replace(freeze(found), value=value)
