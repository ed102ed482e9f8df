"""Weight decay as a proximal step: what is to be decayed is the point that the step has reached.

    θ⁺ = argmin_x ‖x - (θ + u)‖²/2 + (η λ/2) ‖x‖² = (θ + u)/(1 + η λ)

for the increment u of a step of size η. It never turns a weight around, however large η λ is, where the
decoupled decay θ (1 - η λ) + u does past η λ = 1. To the first order in η λ the two agree.

References:
    Xie, Zhou, Li, Lin, Yan (2024), Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models,
    alg. 1, line 7. Chen et al. (2024), Lion secretly solves constrained optimization, sec. 4 (implicit decay).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.transforms import precision


class ProximalWeightDecayState(NamedTuple):
    """State of `add_proximal_weight_decay`.

    Attributes:
        step: Number of updates, int32; it drives the schedule.
    """

    step: Int[Array, ""]


def add_proximal_weight_decay(
    learning_rate: Numeric | optax.Schedule, weight_decay: Numeric
) -> optax.GradientTransformation:
    """Decays the weights after the step; the last link of a chain.

    Args:
        learning_rate: η of the step before, a number or the same schedule.
        weight_decay: λ, not negative.

    Returns:
        A transform of the increment u, the scaling by -η included, into θ⁺ - θ. It needs the parameters.

    Raises:
        ValueError: If the weight decay is negative or, in an update, the parameters are missing.

    References:
        Xie et al. (2024).

    Example:
        >>> import optax
        >>> from jaxdiv import transforms
        >>> tx = optax.chain(optax.sgd(0.5), transforms.add_proximal_weight_decay(0.5, 2.0))
        >>> theta = jnp.array(3.0)
        >>> increment, _ = tx.update(jnp.array(2.0), tx.init(theta), theta)
        >>> float(theta + increment)
        1.0
    """
    checks.in_range("weight_decay", weight_decay, 0.0, open_high=True)

    def init(params: optax.Params) -> ProximalWeightDecayState:
        return ProximalWeightDecayState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: ProximalWeightDecayState, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be passed to the update of a weight decay; got None.")
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        decay = rate * weight_decay
        wide = jax.tree.map(
            # θ⁺ - θ without the difference of near numbers.
            lambda u, theta: ((u - decay * theta) / (1 + decay)).astype(u.dtype),
            precision.widen("updates", updates),
            precision.widen("params", params),
        )
        state = ProximalWeightDecayState(optax.safe_increment(state.step))
        return optax.tree.cast_like(wide, updates), state

    return optax.GradientTransformation(init, update)
