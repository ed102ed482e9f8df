"""Optimality conditions F(y, θ) = 0 of problems: what `custom_root` and `run` differentiate.

Each factory returns F, a function ``(y, *theta)`` with an output like `y`; every function that it is built
from takes the same ``*theta`` behind its own arguments.

    stationarity     F = ∇₁f(y, θ)
    kkt              F = [∇f + (∂h)ᵀ ν + (∂g)ᵀ λ;  h;  λ ∘ g]          y = (z, ν, λ)
    newton           F = −η [∂₁G]⁻¹ G(y, θ),  A = −η I at the root
    conic residual   F = (Q − I) Π(y) + y                             the homogeneous self-dual embedding

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 3 and appendix A.
    Busseti, Moursi and Boyd (2019), Solution refinement at regular points of conic problems, section 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core.types import Numeric
from jaxdiv.implicit.equation import Solve, constant_step, linear_solve

Fun = Callable[..., Any]


def stationarity(fun: Fun) -> Fun:
    """Returns F = ∇₁ fun: an unconstrained minimum, maximum or saddle point.

    Args:
        fun: Scalar function ``(y, *theta)``, differentiable twice at the solution.

    Returns:
        ``F(y, *theta)``; its derivative in y, the Hessian, is symmetric.

    Example:
        >>> stationarity(lambda y, theta: jnp.sum(y**2) / 2 - y @ theta)(jnp.ones(2), jnp.ones(2))
        Array([0., 0.], dtype=float32)
    """
    return jax.grad(fun)


class KKT(NamedTuple):
    """A point of a constrained problem, or the residuals there.

    Attributes:
        primal: The variables z.
        equality: The multipliers ν, like the output of `equality`; None if there is none.
        inequality: The multipliers λ ≥ 0, like the output of `inequality`; None if there is none.
    """

    primal: PyTree
    equality: PyTree = None
    inequality: PyTree = None


def kkt(objective: Fun, equality: Fun | None = None, inequality: Fun | None = None) -> Fun:
    """Returns the conditions of min f(z) subject to h(z) = 0 and g(z) ≤ 0.

    Args:
        objective: Scalar f, ``(z, *theta)``.
        equality: h, ``(z, *theta)``, or None.
        inequality: g, ``(z, *theta)``, or None.

    Returns:
        ``F(y, *theta)`` for a `KKT` point y. Its derivative in y is not symmetric, and singular where a
        constraint is active with multiplier 0 or the active gradients are dependent.

    Raises:
        ValueError: When called: if a multiplier is given without its constraint or the reverse.

    Example:
        >>> F = kkt(lambda z, b: jnp.sum(z**2) / 2, equality=lambda z, b: jnp.sum(z) - b)
        >>> F(KKT(jnp.ones(2), jnp.array(-1.0)), 2.0).equality
        Array(0., dtype=float32)
    """

    def optimality(y: KKT, *theta: Any) -> KKT:
        z, nu, lam = y
        gradient = jax.grad(objective)(z, *theta)
        residuals: list[Any] = []
        for name, constraint, dual in (("equality", equality, nu), ("inequality", inequality, lam)):
            if (constraint is None) != (dual is None):
                raise ValueError(
                    f"y.{name} must hold multipliers exactly if there is a function {name}; "
                    f"got {'none' if dual is None else 'some'}."
                )
            if constraint is None:
                residuals.append(None)
                continue
            value, pull = jax.vjp(lambda z, c=constraint: c(z, *theta), z)
            gradient = jax.tree.map(jnp.add, gradient, pull(dual)[0])
            residuals.append(value)
        h, g = residuals
        return KKT(gradient, h, jax.tree.map(jnp.multiply, lam, g))

    return optimality


def newton(root_fun: Fun, step_size: Numeric = 1.0, solve: Solve = "auto") -> Fun:
    """Returns the fixed point condition of Newton's method for a root of `root_fun`.

    Args:
        root_fun: G, ``(y, *theta)``, with an output like `y`.
        step_size: η; the root does not depend on it.
        solve: How the systems in ∂₁G are solved; see `custom_root`.

    Returns:
        ``F(y, *theta)``, whose derivative in y is −η I at the root: the outer solve is one step.

    Raises:
        ValueError: If a concrete `step_size` is not positive.

    Example:
        >>> newton(lambda y, a: y**2 - a)(jnp.array(3.0), 5.0).round(4)
        Array(-0.6667, dtype=float32)
    """
    eta = constant_step(step_size)

    def optimality(y: PyTree, *theta: Any) -> PyTree:
        value, product = jax.linearize(lambda v: root_fun(v, *theta), y)
        direction, _ = linear_solve(solve, product, value)
        return jax.tree.map(lambda d: -eta * d, direction)

    return optimality


def conic_residual(project: Fun) -> Fun:
    """Returns the residual map of min cᵀx subject to A x + s = b, s in K.

    Args:
        project: ``(v, *theta)``, the projection [m] -> [m] onto the dual cone K*.

    Returns:
        ``F(y, matrix, b, c, *theta)`` for y = (u [n], v [m], w []), matrix [m, n], b [m], c [n]. At a
        solution w > 0, and x = u/w, the dual variable Π(v)/w and s = (Π(v) − v)/w. F is homogeneous in
        y, so that its derivative is singular along y itself: differentiate the ratios only, with a solver
        for singular systems such as ``"normal_cg"``.

    Example:
        >>> F = conic_residual(lambda v: jnp.maximum(v, 0))
        >>> x, y, one = jnp.array([-1.0]), jnp.array([1.0]), jnp.array(1.0)
        >>> F((x, y, one), -jnp.eye(1), jnp.ones(1), jnp.ones(1))[0]
        Array([0.], dtype=float32)
    """

    def optimality(
        y: tuple[Array, Array, Array],
        matrix: Float[Array, "m n"],
        b: Float[Array, " m"],
        c: Float[Array, " n"],
        *theta: Any,
    ) -> tuple[Array, Array, Array]:
        u, v, w = y
        dual, tau = project(v, *theta), jnp.maximum(w, 0)
        return (
            jnp.dot(matrix.T, dual, precision="highest") + c * tau,
            b * tau - jnp.dot(matrix, u, precision="highest") + v - dual,
            w - tau - c @ u - b @ dual,
        )

    return optimality
