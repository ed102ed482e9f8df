"""The penalty function of a bilevel problem and its gradient, from first derivatives alone.

With y_σ ∈ argmin_y σF + G, z ∈ argmin_y G and l(x, σ) = min_y σF(x, y) + G(x, y),

    ψ_σ(x)  = (l(x, σ) − l(x, 0)) / σ = F(x, y_σ) + (G(x, y_σ) − G(x, z)) / σ
    ∇ψ_σ(x) = ∂F/∂x(x, y_σ) + (∂G/∂x(x, y_σ) − ∂G/∂x(x, z)) / σ

by Danskin's theorem: y_σ and z count as constants. Both lie within O(σ) of ψ(x) = min {F(x, y): y ∈ argmin G(x, ·)}
and its gradient where the solutions of the penalized problem move Lipschitz-continuously with σ, be they unique or not.
The central quotient, z being y_{−σ} ∈ argmin G − σF, is

    (l(x, σ) − l(x, −σ)) / 2σ = (F(x, y_σ) + F(x, z)) / 2 + (G(x, y_σ) − G(x, z)) / 2σ

and lies within O(σ²), as long as G − σF has a minimum.

References:
    Kwon, Kwon, Wright, Nowak (2024), On penalty methods for nonconvex bilevel optimization and first-order stochastic
    approximation, section 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Draws, apply
from jaxdiv.bilevel.make_step import Inner
from jaxdiv.bilevel.problem import Losses, Problem
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.objectives.record import Option


class Terms(NamedTuple):
    """What the algorithms of this family combine, all on one draw; three gradients.

    Attributes:
        value: F(x, y).
        outer: ∂F/∂x and ∂F/∂y at (x, y).
        gap: q = G(x, y) − G(x, z).
        inner: ∂q/∂x and ∂q/∂y, z being a constant.
        reference: ∂G/∂y at (x, z).
    """

    value: Scalar
    outer: tuple[PyTree, PyTree]
    gap: Scalar
    inner: tuple[PyTree, PyTree]
    reference: PyTree


def terms(losses: Losses, x: PyTree, y: PyTree, z: PyTree) -> Terms:
    """The terms at (x, y) with z as reference."""
    value, outer = losses.outer_gradients(x, y)
    at_y, (g_x, g_y) = losses.inner_gradients(x, y)
    at_z, (g_x_z, g_z) = losses.inner_gradients(x, z)
    return Terms(value, outer, at_y - at_z, (optax.tree.sub(g_x, g_x_z), g_y), g_z)


def penalty_value(
    losses: Losses, x: PyTree, y_sigma: PyTree, z: PyTree, sigma: Numeric, *, central: bool = False
) -> Scalar:
    """The penalty function ψ_σ at given solutions of the two inner problems.

    Args:
        losses: F and G on one draw, such as ``bilevel.Losses(problem, ((), ()), data, key)`` where the losses are
            functions.
        x: Outer variable.
        y_sigma: A minimizer of σF + G.
        z: A minimizer of G, or of G − σF for the central quotient.
        sigma: σ > 0; its inverse is the weight that other papers give to G.
        central: Whether the quotient is the central one.

    Returns:
        The value.

    Raises:
        ValueError: If `sigma` is not positive.

    Note:
        Two nearly equal values of G are divided by σ. Inaccurate y_σ and z add an error of their squared distance from
        the solutions over σ to the value, and of the distance over σ to the gradient; in float32 rounding adds about
        1e-7 |G| / σ.

    References:
        Kwon, Kwon, Wright, Nowak (2024), section 3.

    Example:
        G = (y − x)² and F = (y − 1)² / 2 at x = 0, σ = 0.5, where y_σ = 0.2:

        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(lambda x, y, batch: (y - x) ** 2, lambda x, y, batch: 0.5 * (y - 1) ** 2)
        >>> losses = bilevel.Losses(problem, ((), ()), bilevel.Data(), jax.random.key(0))
        >>> print(f"{bilevel.penalty_value(losses, 0.0, 0.2, 0.0, 0.5):.2f}")
        0.40
    """
    checks.in_range("sigma", sigma, 0.0, open_low=True)
    gap = losses.inner(x, y_sigma) - losses.inner(x, z)
    if central:
        return (losses.outer(x, y_sigma) + losses.outer(x, z)) / 2 + gap / (2 * sigma)
    return losses.outer(x, y_sigma) + gap / sigma


def penalty_hypergradient(
    losses: Losses, x: PyTree, y_sigma: PyTree, z: PyTree, sigma: Numeric, *, central: bool = False
) -> PyTree:
    """The gradient of the penalty function, which tends to the hypergradient with σ.

    Args:
        losses: F and G on one draw, the same for both gradients of G: their errors cancel.
        x: Outer variable.
        y_sigma: A minimizer of σF + G.
        z: A minimizer of G, or of G − σF for the central quotient.
        sigma: σ > 0.
        central: Whether the quotient is the central one, whose error is O(σ²) instead of O(σ).

    Returns:
        The gradient, like x.

    Raises:
        ValueError: If `sigma` is not positive.

    Note:
        See `penalty_value`: y_σ and z must be accurate to well below σ.

    References:
        Kwon, Kwon, Wright, Nowak (2024), section 3.

    Example:
        G = (y − x)² and F = (y − 1)² / 2 at x = 0, σ = 0.5, where y_σ = 0.2; the hypergradient is −1:

        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(lambda x, y, batch: (y - x) ** 2, lambda x, y, batch: 0.5 * (y - 1) ** 2)
        >>> losses = bilevel.Losses(problem, ((), ()), bilevel.Data(), jax.random.key(0))
        >>> print(f"{bilevel.penalty_hypergradient(losses, 0.0, 0.2, 0.0, 0.5):.2f}")
        -0.80
    """
    checks.in_range("sigma", sigma, 0.0, open_low=True)
    at = terms(losses, x, y_sigma, z)
    f_x, q_x = at.outer[0], at.inner[0]
    if central:
        f_x = optax.tree.scale(0.5, optax.tree.add(f_x, losses.outer_gradients(x, z)[1][0]))
    return combine(f_x, (0.5 if central else 1.0) / sigma, q_x)


def combine(a: PyTree, scale: Any, b: PyTree) -> PyTree:
    """The sum a + scale b in the dtypes of a."""
    return jax.tree.map(lambda a, b: (a + scale * b).astype(jnp.result_type(a)), a, b)


def copy(tree: PyTree) -> PyTree:
    """The same values in other buffers, since a state that holds them twice may be donated."""
    return jax.tree.map(jnp.copy, tree)


def power(exponent: float) -> Callable[[Int[Array, ""]], Any]:
    """The schedule (k + 1)^exponent."""
    return lambda step: (step + 1) ** exponent


def positive(name: str, option: Option) -> None:
    """Raises ValueError unless the option is a schedule or a positive number."""
    if not callable(option):
        checks.in_range(name, option, 0.0, open_low=True)


def inner_projection(
    problem: Problem, project_inner: Callable[[PyTree], PyTree] | None
) -> Callable[[PyTree, PyTree], PyTree]:
    """``(x, y) -> y``, projected as the problem's own projection does unless another is given."""
    if project_inner is not None:
        return lambda x, y: project_inner(y)
    pair = problem.project
    return (lambda x, y: y) if pair is None else lambda x, y: pair(x, y)[1]


def descend(
    tx: optax.GradientTransformation,
    project: Callable[[PyTree, PyTree], PyTree],
    draws: Draws,
    x: PyTree,
    first: Inner,
    length: int,
) -> Inner:
    """Projected steps along ∂G/∂y, on draws 0 to ``length - 1``."""

    def one(inner: Inner, i: Int[Array, ""]) -> tuple[Inner, None]:
        value, state = apply(tx, draws(i).inner_gradient(x, inner.value), inner.tx, inner.value)
        new = Inner(project(x, value), state)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), new, inner), None

    return jax.lax.scan(one, first, jnp.arange(length))[0]
