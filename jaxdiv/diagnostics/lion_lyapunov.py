"""The Lyapunov function of Lion-K, which falls along its trajectories.

For the flow, with the paper's momentum m = -mu and α, γ, ε ≥ 0, ε γ ≤ 1,

    ṁ = -α ∇f(x) - γ m,        ẋ = ∇κ(m - ε (α ∇f(x) + γ m)) - λ x,

    H(x, m) = α f(x) + (γ/λ) κ*(λx) + (1 - ε γ)/(1 + ε λ) (κ*(λx) + κ(m) - λ ⟨m, x⟩)

does not increase where κ*(λx) is finite. The last bracket is the Fenchel-Young gap: never negative, and 0 where
λx is a subgradient of κ at m, as at a stationary point. Steps of size η with β1, β2 are that flow's with
α = γ = (1 - β2)/η and ε γ = 1 - β1.

References:
    Chen, Liu, Liang, Liu (2024), Lion secretly solves constrained optimization: as Lyapunov predicts, theorem 3.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Params, Scalar
from jaxdiv.transforms import precision
from jaxdiv.transforms.kappa import Kappa


class LionLyapunov(NamedTuple):
    """What `lion_lyapunov` reports.

    Attributes:
        value: H.
        penalty: κ*(λx)/λ, what Lion-K adds to the loss: +inf where its implied constraint is violated.
        gap: The Fenchel-Young gap.
    """

    value: Scalar
    penalty: Scalar
    gap: Scalar


def lion_lyapunov(
    value: Numeric,
    params: Params,
    mu: PyTree,
    kappa: Kappa,
    *,
    weight_decay: Numeric,
    alpha: Numeric = 1.0,
    gamma: Numeric = 1.0,
    epsilon: Numeric = 0.0,
) -> LionLyapunov:
    """The Lyapunov function at one point of a run, to be watched.

    Args:
        value: The loss f(x).
        params: x, a pytree.
        mu: The momentum in the sign of the transform's state, an average of gradients.
        kappa: The κ of the run.
        weight_decay: λ, above 0.
        alpha: Rate at which the gradient enters the momentum.
        gamma: Rate at which the momentum forgets.
        epsilon: Look-ahead of the step, ε γ ≤ 1.

    Returns:
        H, the implied penalty and the gap, scalars in float32 or float64.

    Raises:
        ValueError: If λ or γ is not above 0, α or ε is negative, ε γ exceeds 1, or a leaf is not floating point.

    References:
        Chen et al. (2024), theorem 3.1.

    Example:
        >>> from jaxdiv import convex, diagnostics, transforms
        >>> report = diagnostics.lion_lyapunov(
        ...     1.0, jnp.array([0.5]), jnp.array([-2.0]), transforms.ball_kappa(convex.linf), weight_decay=2.0
        ... )
        >>> [float(x) for x in report]
        [1.0, 0.0, 0.0]
    """
    checks.in_range("weight_decay", weight_decay, 0.0, open_low=True, open_high=True)
    checks.in_range("gamma", gamma, 0.0, open_low=True, open_high=True)
    checks.in_range("alpha", alpha, 0.0, open_high=True)
    checks.in_range("epsilon", epsilon, 0.0, open_high=True)
    if checks.concrete(epsilon) and checks.concrete(gamma):
        checks.in_range("epsilon * gamma", epsilon * gamma, 0.0, 1.0)
    xs, momenta = (
        jax.tree.leaves(precision.widen(name, tree)) for name, tree in (("params", params), ("mu", mu))
    )
    conjugate = jnp.sum(jnp.stack([kappa.conjugate(weight_decay * x) for x in xs]))
    pairs = zip(xs, momenta, strict=True)
    # κ(m) − λ⟨m, x⟩ with m = −mu.
    rest = jnp.sum(jnp.stack([kappa.value(-mu) + weight_decay * jnp.sum(mu * x) for x, mu in pairs]))
    gap = conjugate + rest
    weight = (1 - epsilon * gamma) / (1 + epsilon * weight_decay)
    # At ε γ = 1 the gap does not count, and 0 · inf must not be NaN.
    counted = jnp.where(weight == 0, 0.0, weight * jnp.where(weight == 0, 0.0, gap))
    penalty = conjugate / weight_decay
    return LionLyapunov(alpha * value + gamma * penalty + counted, penalty, gap)
