"""The hypergradient at an inexact inner solution, by an inexact linear solve, with a bound of its error.

G(x, ·) is μ-strongly convex and e = ‖∂G/∂y‖ / μ at y, so that ‖y − y*(x)‖ ≤ e. With d = ‖H q − ∂F/∂y‖, s = ‖∂F/∂y‖,
B = ‖J‖, all at y, and constants of Lipschitz in y, L_F of ∂F/∂y, L_X of ∂F/∂x, L_J of J and L_I of H⁻¹,

    z = ∂F/∂x − J q,    ‖z − ∇Φ(x)‖ ≤ ω = c e + (B / μ) d + (L_J L_F / μ) e²,
    c = L_X + L_F B / μ + L_I s B + L_J s / μ.

For with v = H⁻¹ ∂F/∂y the error of J q is J (q − v), at most B d / μ, and, with stars at y*(x), that of J v is
J (H⁻¹ − H*⁻¹) ∂F/∂y + J H*⁻¹ (∂F/∂y − ∂F*/∂y) + (J − J*) H*⁻¹ ∂F*/∂y, where ‖∂F*/∂y‖ ≤ s + L_F e; the first
summand of z adds L_X e. The paper's F has no part in x, and its e and d are the tolerances; here they are measured, so
that ω holds however the solves have ended.

Constants that are not given are estimated, and ω is then an estimate. B comes from power iterations on Jᵀ J. The others
are running maxima of difference quotients to a random point y' at the distance r: ‖(J' − J) q‖ / (r ‖q‖) for L_J,
likewise of ∂F/∂x for L_X, and ‖(H' − H) q‖ / (μ r s) for L_I, since H'⁻¹ − H⁻¹ = H'⁻¹ (H − H') H⁻¹. The quotient falls
below the constant where the random direction misses what it comes from.

References:
    Salehi, Mukherjee, Roberts, Ehrhardt (2025), An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv import linalg
from jaxdiv.bilevel.inner_solution import StrongConvexity, at
from jaxdiv.bilevel.problem import Losses
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Scalar

_POWER_STEPS = 3


class Constants(NamedTuple):
    """What the bound must know of a problem at a point; a None is estimated.

    Attributes:
        mixed_norm: B, the spectral norm of J at the point.
        mixed_lipschitz: L_J, a Lipschitz constant of y ↦ J(x, y).
        inverse_lipschitz: L_I, one of y ↦ H(x, y)⁻¹; one of y ↦ H over μ² serves.
        direct_lipschitz: L_X, one of y ↦ ∂F/∂x; 0 where F is a function of y alone.
    """

    mixed_norm: Numeric | None = None
    mixed_lipschitz: Numeric | None = None
    inverse_lipschitz: Numeric | None = None
    direct_lipschitz: Numeric | None = None


ConstantsOf: TypeAlias = Constants | Callable[[PyTree, PyTree], Constants]
"""The constants, or ``(x, y) -> Constants``."""


class Quotients(NamedTuple):
    """The largest difference quotients so far, for L_J, L_I and L_X."""

    mixed: Scalar
    inverse: Scalar
    direct: Scalar


class BoundState(NamedTuple):
    """What one estimate leaves to the next.

    Attributes:
        adjoint: q, where the linear solve starts.
        direction: The right singular vector of J that the power iterations have reached, like y.
        largest: Running maxima of the difference quotients.
    """

    adjoint: PyTree
    direction: PyTree
    largest: Quotients


class BoundedEstimate(NamedTuple):
    """A hypergradient and what is known of it.

    Attributes:
        value: F.
        hypergradient: z.
        error_bound: ω.
        inner_error: e, a bound of the distance from y to the inner solution.
        slope: The norm of ∂F/∂y.
        residual: d / ‖∂F/∂y‖.
        status: `Status` of the linear solve.
        gradients: Gradients taken.
        products: Products with second derivatives taken.
        state: For the next estimate.
    """

    value: Scalar
    hypergradient: PyTree
    error_bound: Scalar
    inner_error: Scalar
    slope: Scalar
    residual: Scalar
    status: Int[Array, ""]
    gradients: Int[Array, ""]
    products: Int[Array, ""]
    state: BoundState


class InexactHypergradient(NamedTuple):
    """Two pure functions.

    Attributes:
        init: ``(x, y, key) -> BoundState``.
        estimate: ``(losses, x, y, delta, state) -> BoundedEstimate``; the linear system is solved to the residual
            norm `delta`.
    """

    init: Callable[[PyTree, PyTree, Key], BoundState]
    estimate: Callable[[Losses, PyTree, PyTree, Numeric, BoundState], BoundedEstimate]


def inexact_hypergradient(
    *,
    strong_convexity: StrongConvexity,
    outer_lipschitz: Numeric = 1.0,
    constants: ConstantsOf | None = None,
    max_steps: int | None = None,
) -> InexactHypergradient:
    """Estimates hypergradients with an a-posteriori bound of their error.

    Args:
        strong_convexity: μ, by which G is strongly convex in y; a number or a function of x.
        outer_lipschitz: L_F, a Lipschitz constant of y ↦ ∂F/∂y.
        constants: The other constants or a function ``(x, y) -> Constants``; those not given are estimated, at
            seven products and two gradients for all of them.
        max_steps: Most steps of conjugate gradients; `linalg.solve`'s default.

    Returns:
        ``(init, estimate)``. An estimate takes two gradients, those of G and F, and a product for each step of
        conjugate gradients, for J q and for each residual that is not updated but computed.

    Raises:
        ValueError: If a concrete number is out of its range.

    Note:
        With estimated constants the bound is no certificate. Rounding is not part of it: in float32 e and d below
        1e-7 of what they are differences of mean nothing.

    References:
        Salehi, Mukherjee, Roberts, Ehrhardt (2025).

    Example:
        G = ‖y‖² − 2 x y and F = ½ (y − 3)², at y = 1.1 where y*(1) = 1 and ∇Φ(1) = −2:

        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: y**2 - 2 * x * y, lambda x, y, batch: 0.5 * (y - 3) ** 2
        ... )
        >>> losses = bilevel.Losses(problem, ((), ()), bilevel.Data(), jax.random.key(0))
        >>> init, estimate = inexact_hypergradient(
        ...     strong_convexity=2.0, constants=bilevel.Constants(2.0, 0.0, 0.0, 0.0)
        ... )
        >>> x, y = jnp.asarray(1.0), jnp.asarray(1.1)
        >>> out = estimate(losses, x, y, 1e-6, init(x, y, jax.random.key(0)))
        >>> print(f"{out.hypergradient:.2f} {out.error_bound:.2f}")
        -1.90 0.10
    """
    if not callable(strong_convexity):
        checks.in_range("strong_convexity", strong_convexity, 0.0, open_low=True)
    checks.in_range("outer_lipschitz", outer_lipschitz, 0.0)

    def init(x: PyTree, y: PyTree, key: Key) -> BoundState:
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(y)))
        direction = optax.tree.random_like(key, y)
        return BoundState(optax.tree.zeros_like(y), direction, Quotients(zero, zero, zero))

    def estimate(losses: Losses, x: PyTree, y: PyTree, delta: Numeric, state: BoundState) -> BoundedEstimate:
        mu = at(strong_convexity, x)
        value, (f_x, f_y) = losses.outer_gradients(x, y)
        gradient, product = losses.inner_products(x, y)
        q, info = linalg.solve(
            lambda u: product(u)[0], f_y, symmetric=True, rtol=0.0, atol=delta, init=state.adjoint, max_steps=max_steps
        )  # fmt: skip
        # A lane without a solution keeps its last adjoint, and the bound says what that is worth.
        q = optax.tree.where(jnp.isfinite(optax.tree.norm(q)), q, state.adjoint)
        h_q, j_q = product(q)
        error, slope = optax.tree.norm(gradient) / mu, optax.tree.norm(f_y)
        residual = optax.tree.norm(optax.tree.sub(f_y, h_q))
        # Beside the steps: the residuals of the first guess and of the end, and J q.
        gradients, products = 2, info.steps + 2 + (info.steps > 0)

        given = constants(x, y) if callable(constants) else constants
        known = Constants() if given is None else given
        direction, largest = state.direction, state.largest
        if any(constant is None for constant in known):
            here = _Point(x, y, f_x, q, h_q, j_q, error)
            quotients = _quotients(losses, here, jnp.maximum(mu * slope, jnp.finfo(slope.dtype).tiny))
            # One beyond the range of F or G says nothing.
            largest = Quotients(
                *(
                    jnp.fmax(o, jnp.where(jnp.isfinite(n), n, 0))
                    for o, n in zip(largest, quotients, strict=True)
                )
            )
            norm, direction = _power(losses, x, y, product, direction)
            guesses = (norm, *largest)
            gradients, products = gradients + 2, products + 2 * _POWER_STEPS + 1
        else:
            guesses = (jnp.zeros_like(slope),) * 4
        b, l_j, l_i, l_x = (guess if k is None else k for guess, k in zip(guesses, known, strict=True))
        c = l_x + outer_lipschitz * b / mu + l_i * slope * b + l_j * slope / mu
        bound = c * error + b / mu * residual + l_j * outer_lipschitz / mu * error**2
        return BoundedEstimate(
            value, optax.tree.sub(f_x, j_q), bound, error, slope, residual / jnp.where(slope > 0, slope, 1),
            info.status, jnp.asarray(gradients, jnp.int32), products, BoundState(q, direction, largest),
        )  # fmt: skip

    return InexactHypergradient(init, estimate)


class _Point(NamedTuple):
    """Where the quotients are taken, and what is known there."""

    x: PyTree
    y: PyTree
    f_x: PyTree
    q: PyTree
    h_q: PyTree
    j_q: PyTree
    error: Scalar


def _quotients(losses: Losses, here: _Point, scale: Scalar) -> Quotients:
    """Difference quotients for L_J, L_I and L_X, at the distance that y may be from its solution."""
    u = optax.tree.random_like(jax.random.fold_in(losses.key, 2), here.y)
    norm = optax.tree.norm(u)
    resolved = jnp.sqrt(jnp.finfo(norm.dtype).eps) * jnp.maximum(optax.tree.norm(here.y), 1)
    radius = jnp.maximum(here.error, resolved)
    y = optax.tree.add_scale(here.y, radius / norm, u)
    _, (f_x, _) = losses.outer_gradients(here.x, y)
    _, product = losses.inner_products(here.x, y)
    h_q, j_q = product(here.q)
    length = optax.tree.norm(here.q)

    def gap(new: PyTree, old: PyTree) -> Float[Array, ""]:
        return optax.tree.norm(optax.tree.sub(new, old)) / radius

    return Quotients(
        gap(j_q, here.j_q) / jnp.where(length > 0, length, 1), gap(h_q, here.h_q) / scale, gap(f_x, here.f_x)
    )


def _power(
    losses: Losses, x: PyTree, y: PyTree, product: Callable[[PyTree], tuple[PyTree, PyTree]], v: PyTree
) -> tuple[Scalar, PyTree]:
    """The norm of J by power iterations from v."""

    def unit(v: PyTree) -> PyTree:
        norm = optax.tree.norm(v)
        return optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), v)

    def one(v: PyTree, _: None) -> tuple[PyTree, Scalar]:
        j_v = product(v)[1]
        new = jax.jvp(lambda x: losses.inner_gradient(x, y), (x,), (j_v,))[1]
        # J v = 0 or without a value: the direction stays for the next point.
        size = optax.tree.norm(new)
        return optax.tree.where((size > 0) & jnp.isfinite(size), unit(new), v), optax.tree.norm(j_v)

    v, norms = jax.lax.scan(one, unit(v), length=_POWER_STEPS)
    return jnp.max(norms), v
