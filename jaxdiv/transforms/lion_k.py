"""Lion-K: Lion with the sign replaced by a subgradient of any convex function κ.

With gradient g, momentum m (an average of gradients; the paper's is -m) and step size η,

    c_t     = β1 m_t + (1 - β1) g_t
    x_{t+1} = x_t + η (∇κ(-c_t) - λ x_t)                    explicit decay, or
    x_{t+1} = (x_t + η ∇κ(-c_t)) / (1 + η λ)                implicit decay
    m_{t+1} = β2 m_t + (1 - β2) g_t.

It minimizes f(x) + κ*(λ x)/λ. For κ = ‖·‖_1, which is Lion, that is f on the box ‖x‖_∞ ≤ 1/λ; for a norm κ in
general it is f where the dual norm of x is at most 1/λ. Outside, the excess shrinks by 1 - η λ a step, and
inside it stays.

References:
    Chen, Liu, Liang, Liu (2024), Lion secretly solves constrained optimization: as Lyapunov predicts, eqs. (2)-(5).
"""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from jaxdiv import convex
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.transforms import precision
from jaxdiv.transforms.kappa import Kappa, ball_kappa
from jaxdiv.transforms.proximal_weight_decay import add_proximal_weight_decay

_LION = ball_kappa(convex.linf)


class ScaleByLionKState(NamedTuple):
    """State of `scale_by_lion_k`.

    Attributes:
        mu: The momentum m, in float32 or float64.
    """

    mu: PyTree


def scale_by_lion_k(
    kappa: Kappa = _LION, *, b1: Numeric = 0.9, b2: Numeric = 0.99
) -> optax.GradientTransformation:
    """The direction of Lion-K, to be scaled by the learning rate.

    Args:
        kappa: κ, applied to each leaf; ‖·‖_1, that is Lion, by default. Leaves that need another one are told
            apart by `optax.partition`.
        b1: Weight β1 of the momentum in the direction.
        b2: Decay β2 of the momentum.

    Returns:
        A transform with one copy of the parameters as state.

    Raises:
        ValueError: If β1 or β2 leaves [0, 1].

    References:
        Chen et al. (2024).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import convex, transforms
        >>> tx = transforms.scale_by_lion_k(transforms.ball_kappa(convex.l2))
        >>> gradient = jnp.array([3.0, -4.0])
        >>> tx.update(gradient, tx.init(gradient))[0].round(3).tolist()
        [0.6000000238418579, -0.800000011920929]
    """
    checks.in_range("b1", b1, 0.0, 1.0)
    checks.in_range("b2", b2, 0.0, 1.0)

    def init(params: optax.Params) -> ScaleByLionKState:
        return ScaleByLionKState(mu=precision.zeros(params))

    def update(updates: Any, state: ScaleByLionKState, params: Any = None) -> tuple[Any, ScaleByLionKState]:
        wide = precision.widen("updates", updates)
        direction = jax.tree.map(
            lambda g, m: 0.0 - kappa.gradient(-(b1 * m + (1 - b1) * g)).astype(g.dtype), wide, state.mu
        )
        mu = jax.tree.map(lambda g, m: (b2 * m + (1 - b2) * g).astype(m.dtype), wide, state.mu)
        return optax.tree.cast_like(direction, updates), ScaleByLionKState(mu)

    return optax.GradientTransformation(init, update)


def lion_k(
    learning_rate: Numeric | optax.Schedule,
    kappa: Kappa = _LION,
    *,
    b1: Numeric = 0.9,
    b2: Numeric = 0.99,
    weight_decay: Numeric = 1e-3,
    implicit: bool = False,
) -> optax.GradientTransformation:
    """Lion-K with its decoupled weight decay.

    Args:
        learning_rate: η, a number or a schedule; 3 to 10 times smaller than for AdamW. With κ = ‖·‖_1 the last
            iterate oscillates by η, so that it should end near 0.
        kappa: κ, applied to each leaf; ‖·‖_1, that is Lion, by default.
        b1: Weight β1 of the momentum in the direction.
        b2: Decay β2 of the momentum.
        weight_decay: λ, whose inverse bounds the parameters; 3 to 10 times larger than for AdamW.
        implicit: Whether the decay is that of the new parameters.

    Returns:
        An optimizer. It needs the parameters.

    Raises:
        ValueError: If β1 or β2 leaves [0, 1].

    References:
        Chen et al. (2024).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxdiv import transforms
        >>> tx = transforms.lion_k(optax.cosine_decay_schedule(0.1, 100), weight_decay=2.0)
        >>> def step(carry, _):
        ...     x, state = carry
        ...     updates, state = tx.update(2 * (x - 3), state, x)
        ...     return (x + updates, state), None
        >>> start = jnp.array([0.0])
        >>> (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=100)
        >>> round(float(x[0]), 3)  # the unconstrained minimum is 3, the bound 1/2
        0.5
    """
    direction = scale_by_lion_k(kappa, b1=b1, b2=b2)
    if implicit:
        decay = add_proximal_weight_decay(learning_rate, weight_decay)
        return optax.chain(direction, optax.scale_by_learning_rate(learning_rate), decay)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(learning_rate))
