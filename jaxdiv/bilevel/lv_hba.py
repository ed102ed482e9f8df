"""LV-HBA: single-loop first-order steps on the proximal Lagrangian value function of a constrained inner problem.

With g(x, y) ≤ 0 the inner constraint, the value function

    v(x, y, z) = min_{θ ∈ Y} max_{λ ≥ 0} G(x, θ) + λᵀ g(x, θ) + |θ − y|² / 2γ₁ − |λ − z|² / 2γ₂

is smooth even where G is convex without being strictly so, and y solves the inner problem where (x, y) is feasible and
G(x, y) ≤ v(x, y, z). A step moves the saddle point, then descends F / c + G − v with a growing penalty c:

    θ ← Proj_Y(θ − η (∂G/∂y(x, θ) + ∂g/∂yᵀ λ + (θ − y) / γ₁)),    λ ← max(0, λ + η (g(x, θ) − (λ − z) / γ₂)),
    d_x = ∂F/∂x / c + ∂G/∂x(x, y) − ∂G/∂x(x, θ) − ∂g/∂x(x, θ)ᵀ λ,
    d_y = ∂F/∂y / c + ∂G/∂y(x, y) − (y − θ) / γ₁,    d_z = −(λ − z) / γ₂,
    (x, y) ← Proj_C((x, y) − α (d_x, d_y)),    z ← clip(z − β d_z, 0, r),    C = {g(x, y) ≤ 0}.

θ and λ move simultaneously. For equations g(x, y) = 0, λ is free and z is clipped to [−r, r].

References:
    Yao, Yu, Zeng, Zhang (2024), Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm, algorithm 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.penalty import combine, copy, inner_projection, positive, power, terms
from jaxdiv.bilevel.problem import Problem
from jaxdiv.bilevel.sampler import Sampler, full_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.objectives.record import Option, resolve

GROWTH = power(0.3)


class LvHbaState(NamedTuple):
    """What LV-HBA remembers.

    Attributes:
        saddle: θ, like y, and the multipliers λ [l].
        z: Center of the multipliers [l].
        inner_tx: State of the transform of the pair (θ, λ).
        outer_tx: State of the transform of the pair (x, y).
        center_tx: State of the transform of z.
    """

    saddle: tuple[PyTree, Float[Array, " l"]]
    z: Float[Array, " l"]
    inner_tx: PyTree
    outer_tx: PyTree
    center_tx: PyTree


def lv_hba(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    center_tx: optax.GradientTransformation | None = None,
    penalty: Option = GROWTH,
    gamma1: Numeric = 10.0,
    gamma2: Numeric = 10.0,
    bound: Numeric = 1000.0,
    equality: bool | Bool[Array, " l"] = False,
    inner_steps: int = 1,
    extragradient: bool = False,
    project_inner: Callable[[PyTree], PyTree] | None = None,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """The proximal Lagrangian value function based Hessian-free bilevel algorithm.

    Args:
        problem: The problem. With a constraint it must have the projection of the pair onto C, for a coupling that is
            linear in both `convex.project_halfspace` or `convex.project_affine`. Without a constraint the method is
            `meha`.
        inner_tx: Moves the pair (θ, λ): η. A forward step on a saddle turns outward unless
            η ≤ min(1/γ₁, 1/γ₂) / L², with L the Lipschitz constant of its direction.
        outer_tx: Moves the pair (x, y), jointly: α, small relative to η.
        center_tx: Moves z: β; like `inner_tx` by default.
        penalty: c > 0, a number or a schedule. The paper's are c₀ (k + 1)^p with 0 < p < 1/2, by default c₀ = 1 and
            p = 0.3; the bias falls as 1/c.
        gamma1: γ₁ > 0, proximal parameter of θ; the paper's experiments take 10.
        gamma2: γ₂ > 0, that of λ.
        bound: r > 0, largest entry of z.
        equality: Whether the constraint is g(x, y) = 0; for some of its entries alone, a mask.
        inner_steps: Steps of (θ, λ) before each joint one. Static.
        extragradient: Whether each of them is taken along the direction at a trial step's end, which allows
            η up to 1 / L, at twice the gradients. Static.
        project_inner: Projection of θ onto Y; by default none, but without a constraint the second part of the
            problem's own.
        sampler: Draws the examples of a step, for each step of (θ, λ) and for the joint one; all by default.

    Returns:
        ``(init, step)``; a step takes ``inner_steps + 3`` gradients, or ``2 * inner_steps + 3``. In
        ``metrics["hypergradient"]`` is the norm of d_x, in ``metrics["penalty"]`` c, by which it must be multiplied to
        compare with other algorithms.

    Raises:
        ValueError: If an option is out of range, there is a constraint without projection or, by `init`, its values
            are not a floating vector or do not fit `equality`.

    References:
        Yao, Yu, Zeng, Zhang (2024), algorithm 1.

    Example:
        y is as near to 2 x as y ≤ 2 − x allows:

        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> def project(x, y):
        ...     excess = jnp.maximum(x + y - 2, 0) / 2
        ...     return x - excess, y - excess
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: 0.5 * (y - 2 * x) ** 2,
        ...     lambda x, y, batch: 0.5 * (x - 2) ** 2 + 0.5 * (y - 1.5) ** 2,
        ...     constraint=lambda x, y: jnp.array([x + y - 2]),
        ...     project=project,
        ... )
        >>> init, step = bilevel.lv_hba(problem, optax.sgd(0.05), optax.sgd(0.01), gamma1=1.0, gamma2=1.0)
        >>> state = init(1.0, 1.0, bilevel.Data(), jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, bilevel.Data()), state, length=20000)
        >>> state.outer.round(2), state.inner.round(2)
        (Array(1.25, dtype=float32), Array(0.75, dtype=float32))
    """
    positive("penalty", penalty)
    for name, value in (("gamma1", gamma1), ("gamma2", gamma2), ("bound", bound)):
        checks.in_range(name, value, 0.0, open_low=True)
    checks.in_range("inner_steps", inner_steps, 1)
    if problem.constraint is None:
        project = inner_projection(problem, project_inner)
    elif problem.project is None:
        raise ValueError(
            "problem must have the projection onto its constraint's set; got none; pass project= to problem."
        )
    else:
        # The pair's projection belongs to C, θ only to Y.
        project = inner_projection(problem._replace(project=None), project_inner)
    center_tx = inner_tx if center_tx is None else center_tx

    def constraint(x: PyTree, y: PyTree) -> Float[Array, " l"]:
        if problem.constraint is None:
            return jnp.zeros(0, jax.tree.leaves(y)[0].dtype)
        return problem.constraint(x, y)

    def start(draws: Draws, x: PyTree, y: PyTree) -> LvHbaState:
        values = jax.eval_shape(constraint, x, y)
        if values.ndim != 1 or not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(
                f"constraint must return a floating vector [l]; got {values.dtype} of shape {values.shape}; "
                "stack its values."
            )
        if jnp.shape(equality) not in ((), values.shape):
            raise ValueError(
                f"equality must be True, False or a mask of shape {values.shape}, one entry for each value of the "
                f"constraint; got shape {jnp.shape(equality)}."
            )
        z = jnp.zeros(values.shape, values.dtype)
        return LvHbaState(copy((y, z)), z, inner_tx.init((y, z)), outer_tx.init((x, y)), center_tx.init(z))

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: LvHbaState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, LvHbaState, Info]:
        z, c = extra.z, resolve(penalty, step)

        def direction(i: Int[Array, ""], theta: PyTree, lam: Array) -> tuple[PyTree, Array]:
            values, pull = jax.vjp(lambda at: constraint(x, at), theta)
            gradient = optax.tree.add(draws(i).inner_gradient(x, theta), pull(lam)[0])
            return combine(gradient, 1 / gamma1, optax.tree.sub(theta, y)), (lam - z) / gamma2 - values

        def one(carry: tuple[Any, PyTree], i: Int[Array, ""]) -> tuple[tuple[Any, PyTree], None]:
            saddle, tx_state = carry

            def move(along: Any) -> tuple[Any, PyTree]:
                (theta, lam), state = apply(inner_tx, along, tx_state, saddle)
                new = (project(x, theta), jnp.maximum(lam, jnp.where(equality, -jnp.inf, 0.0))), state
                return jax.tree.map(lambda new, old: new.astype(old.dtype), new, carry)

            along = direction(i, *saddle)
            if extragradient:
                along = direction(i, *move(along)[0])
            return move(along), None

        (saddle, inner_state), _ = jax.lax.scan(one, (extra.saddle, extra.inner_tx), jnp.arange(inner_steps))
        theta, lam = saddle

        at = terms(draws(inner_steps), x, y, theta)
        pulled = jax.vjp(lambda at: constraint(at, theta), x)[1](lam)[0]
        d_x = combine(optax.tree.sub(at.inner[0], pulled), 1 / c, at.outer[0])
        d_y = combine(combine(at.inner[1], -1 / gamma1, optax.tree.sub(y, theta)), 1 / c, at.outer[1])
        (x, y), outer_state = apply(outer_tx, (d_x, d_y), extra.outer_tx, (x, y))
        z, center_state = apply(center_tx, (z - lam) / gamma2, extra.center_tx, z)
        z = jnp.clip(z, jnp.where(equality, -bound, 0.0), bound)
        gradients = (2 if extragradient else 1) * inner_steps + 3
        info = report(at.value, d_x, gradients=gradients, gap=at.gap, penalty=jnp.asarray(c))
        return x, y, LvHbaState(saddle, z, inner_state, outer_state, center_state), info

    return algorithm(problem, sampler, start, advance, constrained=True)
