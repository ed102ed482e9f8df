"""Fixed points of first-order methods as optimality conditions: F(y, θ) = T(y, θ) − y.

    proximal gradient    T = prox_{η g}(y − η ∇₁f(y, θ))
    projected gradient   T = proj_C(y − η ∇₁f(y, θ))
    mirror descent       T = proj^φ_C(∇φ(y) − η ∇₁f(y, θ))        KL: softmax(log y − η ∇₁f(y, θ))
    block proximal       T_i = prox_{η_i g_i}(y_i − η_i ∇_i f(y, θ)), every block at the same y

A solution is a fixed point for every step η > 0, whatever method found it; η only conditions the linear
system, best near 1/L. Each factory returns ``F(y, *theta)``; every function that it is built from takes
the same ``*theta`` behind its own arguments.

References:
    Blondel et al. (2022), Efficient and modular implicit differentiation, section 3 and appendix A.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core.types import Numeric
from jaxdiv.implicit.equation import constant_step

Fun = Callable[..., Any]


def _minus(t: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, t, y)


def _descend(y: PyTree, gradient: PyTree, eta: Numeric) -> PyTree:
    return jax.tree.map(lambda v, g: v - eta * g, y, gradient)


def proximal_gradient(fun: Fun, prox: Fun, step_size: Numeric = 1.0) -> Fun:
    """Returns the condition of min fun(y) + g(y).

    Args:
        fun: The smooth term, a scalar ``(y, *theta)``.
        prox: ``(v, step_size, *theta) -> argmin_y ‖y − v‖²/2 + step_size · g(y)``.
        step_size: η; the solution does not depend on it.

    Returns:
        ``F(y, *theta)``.

    Raises:
        ValueError: If a concrete `step_size` is not positive.

    Example:
        >>> def prox(v, eta, theta):
        ...     return jnp.sign(v) * jnp.maximum(jnp.abs(v) - eta * theta, 0)
        >>> F = proximal_gradient(lambda y, theta: jnp.sum((y - 3) ** 2) / 2, prox)
        >>> F(jnp.array([2.0]), 1.0)
        Array([0.], dtype=float32)
    """
    eta = constant_step(step_size)

    def optimality(y: PyTree, *theta: Any) -> PyTree:
        return _minus(prox(_descend(y, jax.grad(fun)(y, *theta), eta), eta, *theta), y)

    return optimality


def projected_gradient(fun: Fun, project: Fun, step_size: Numeric = 1.0) -> Fun:
    """Returns the condition of min fun(y) over a convex set.

    Args:
        fun: A smooth scalar ``(y, *theta)``.
        project: The Euclidean projection onto the set, ``(v, *theta)``.
        step_size: η; the solution does not depend on it.

    Returns:
        ``F(y, *theta)``.

    Raises:
        ValueError: If a concrete `step_size` is not positive.

    Example:
        >>> F = projected_gradient(lambda y, c: jnp.sum((y - c) ** 2) / 2, lambda v, c: jnp.maximum(v, 0))
        >>> F(jnp.array([0.0, 2.0]), jnp.array([-1.0, 2.0]))
        Array([0., 0.], dtype=float32)
    """
    return proximal_gradient(fun, lambda v, eta, *theta: project(v, *theta), step_size)


def _log(y: PyTree) -> PyTree:
    # A coordinate that is exactly 0 stays 0: its derivative is 0, not 0 · ∞.
    return jax.tree.map(lambda v: jnp.where(v > 0, jnp.log(jnp.where(v > 0, v, 1)), -jnp.inf), y)


def _softmax(x: PyTree, *theta: Any) -> PyTree:
    return jax.tree.map(lambda v: jax.nn.softmax(v, axis=-1), x)


def mirror_descent(
    fun: Fun, project: Fun = _softmax, mirror_map: Fun = _log, step_size: Numeric = 1.0
) -> Fun:
    """Returns the condition of min fun(y) over a convex set, in the geometry of a mirror map.

    Args:
        fun: A smooth scalar ``(y, *theta)``.
        project: ``(x, *theta) -> argmin_y φ(y) − ⟨x, y⟩`` over the set. Default: softmax along the last
            axis, for rows on the simplex and the negative entropy φ.
        mirror_map: ∇φ. Default: the logarithm. With ``lambda y: y`` and a Euclidean projection this is
            `projected_gradient`.
        step_size: η; the solution does not depend on it.

    Returns:
        ``F(y, *theta)``. Unlike the projection, the KL geometry tells an active constraint by its rate
        of decay: a coordinate at 0 whose gradient is not above the others' makes the system singular.

    Raises:
        ValueError: If a concrete `step_size` is not positive.

    Example:
        >>> F = mirror_descent(lambda y, c: y @ jnp.log(y) - y @ c)
        >>> jnp.abs(F(jax.nn.softmax(jnp.arange(3.0)), jnp.arange(3.0))).max() < 1e-6
        Array(True, dtype=bool)
    """
    eta = constant_step(step_size)

    def optimality(y: PyTree, *theta: Any) -> PyTree:
        return _minus(project(_descend(mirror_map(y), jax.grad(fun)(y, *theta), eta), *theta), y)

    return optimality


def block_proximal_gradient(
    fun: Fun, proxes: Sequence[Fun], step_sizes: Sequence[Numeric] | Float[Array, " blocks"] | None = None
) -> Fun:
    """Returns the condition of min fun(y) + Σ_i g_i(y_i) over the blocks of y.

    A solver that sweeps over the blocks has the same fixed points and the same derivatives.

    Args:
        fun: The smooth term, a scalar ``(y, *theta)``, y a tuple or list of pytrees.
        proxes: One a block, ``(v, step_size, *theta)`` as in `proximal_gradient`.
        step_sizes: η_i; default 1. The solution does not depend on them.

    Returns:
        ``F(y, *theta)``.

    Raises:
        ValueError: If the number of blocks, proxes and steps differ, or a concrete step is not positive.

    Example:
        >>> free = lambda v, eta: v
        >>> F = block_proximal_gradient(lambda y: jnp.sum((y[0] - y[1]) ** 2), [free, free], [0.5, 0.25])
        >>> F((jnp.ones(1), jnp.zeros(1)))
        (Array([-1.], dtype=float32), Array([0.5], dtype=float32))
    """
    etas = [1.0] * len(proxes) if step_sizes is None else [constant_step(s) for s in step_sizes]
    if len(etas) != len(proxes):
        raise ValueError(
            f"step_sizes must have one entry for each of the {len(proxes)} proxes; got {len(etas)}."
        )

    def optimality(y: Sequence[PyTree], *theta: Any) -> Sequence[PyTree]:
        if len(y) != len(proxes):
            raise ValueError(f"y must have one block for each of the {len(proxes)} proxes; got {len(y)}.")
        gradient = jax.grad(fun)(y, *theta)
        moved = [
            _minus(prox(_descend(v, g, eta), eta, *theta), v)
            for prox, v, g, eta in zip(proxes, y, gradient, etas, strict=True)
        ]
        return type(y)(moved)  # type: ignore[call-arg]

    return optimality
