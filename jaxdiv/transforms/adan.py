"""Adan: adaptive Nesterov momentum from gradients and their differences.

With d_t = g_t - g_{t-1}, d_1 = 0, and decays b (the paper's β are 1 - b),

    m_t = b1 m_{t-1} + (1 - b1) g_t
    v_t = b2 v_{t-1} + (1 - b2) d_t
    n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 d_t)²
    u_t = (m_t/(1 - b1^t) + b2 v_t/(1 - b2^t)) / (√(n_t/(1 - b3^t)) + eps),

then θ' = θ - η u and the proximal decay θ'/(1 + η λ). `optax.scale_by_adan` (0.2.8) is another method: it has
1 - b2 in the two places where b2 multiplies, which makes the Nesterov correction eleven times smaller.

References:
    Xie, Zhou, Li, Lin, Yan (2024), Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models,
    alg. 1, with the bias corrections of the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.transforms import precision
from jaxdiv.transforms.proximal_weight_decay import add_proximal_weight_decay


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`, in float32 or float64.

    Attributes:
        step: Number t of updates, int32.
        mu: Average m of the gradients.
        nu: Average v of their differences.
        square: Average n of the squared look-ahead gradients.
        previous: The last gradient.
    """

    step: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    square: PyTree
    previous: PyTree


def scale_by_adan(
    *, b1: Numeric = 0.98, b2: Numeric = 0.92, b3: Numeric = 0.99, eps: Numeric = 1e-8
) -> optax.GradientTransformation:
    """The direction of Adan, to be scaled by the learning rate.

    Args:
        b1: Decay of the gradients' average.
        b2: Decay of the differences' average, and weight of the correction.
        b3: Decay of the squares' average.
        eps: Added to the denominator, not negative.

    Returns:
        A transform with four copies of the parameters as state.

    Raises:
        ValueError: If a decay leaves [0, 1) or eps is negative.

    References:
        Xie et al. (2024).

    Example:
        >>> from jaxdiv import transforms
        >>> tx = transforms.scale_by_adan()
        >>> update, state = tx.update(jnp.array([2.0, -3.0]), tx.init(jnp.zeros(2)))
        >>> update.round(3).tolist()
        [1.0, -1.0]
    """
    for name, decay in (("b1", b1), ("b2", b2), ("b3", b3)):
        checks.in_range(name, decay, 0.0, 1.0, open_high=True)
    checks.in_range("eps", eps, 0.0, open_high=True)

    def init(params: optax.Params) -> ScaleByAdanState:
        # One tree of zeros for each, so that they can be donated.
        return ScaleByAdanState(jnp.zeros((), jnp.int32), *(precision.zeros(params) for _ in range(4)))

    def update(updates: Any, state: ScaleByAdanState, params: Any = None) -> tuple[Any, ScaleByAdanState]:
        step = optax.safe_increment(state.step)

        def average(decay: Numeric, old: Array, new: Array) -> Array:
            return (decay * old + (1 - decay) * new).astype(old.dtype)

        def corrected(decay: Numeric, x: Array) -> Array:
            return x / (1 - jnp.asarray(decay, x.dtype) ** step)

        g = precision.widen("updates", updates)
        difference = jax.tree.map(
            lambda g, last: jnp.where(state.step == 0, 0.0, g - last), g, state.previous
        )
        mu = jax.tree.map(lambda old, g: average(b1, old, g), state.mu, g)
        nu = jax.tree.map(lambda old, d: average(b2, old, d), state.nu, difference)
        square = jax.tree.map(
            lambda old, g, d: average(b3, old, (g + b2 * d) ** 2), state.square, g, difference
        )
        direction = jax.tree.map(
            lambda m, v, n: (corrected(b1, m) + b2 * corrected(b2, v)) / (jnp.sqrt(corrected(b3, n)) + eps),
            mu,
            nu,
            square,
        )
        return optax.tree.cast_like(direction, updates), ScaleByAdanState(step, mu, nu, square, g)

    return optax.GradientTransformation(init, update)


def adan(
    learning_rate: Numeric | optax.Schedule,
    *,
    b1: Numeric = 0.98,
    b2: Numeric = 0.92,
    b3: Numeric = 0.99,
    eps: Numeric = 1e-8,
    weight_decay: Numeric = 0.0,
    proximal: bool = True,
) -> optax.GradientTransformation:
    """Adan with its weight decay.

    Args:
        learning_rate: η, a number or a schedule.
        b1: Decay of the gradients' average.
        b2: Decay of the differences' average, and weight of the correction.
        b3: Decay of the squares' average.
        eps: Added to the denominator, not negative.
        weight_decay: λ, not negative; 0.02 in most of the paper's runs.
        proximal: Whether the decay is the paper's proximal one, or that of AdamW.

    Returns:
        An optimizer. It needs the parameters. Clipping, as the authors' code has it, is
        ``optax.chain(optax.clip_by_global_norm(…), adan(…))``.

    Raises:
        ValueError: As `scale_by_adan`.

    References:
        Xie et al. (2024).

    Example:
        >>> import optax
        >>> from jaxdiv import transforms
        >>> tx, theta = transforms.adan(0.1), jnp.zeros(())
        >>> state = tx.init(theta)
        >>> for gradient in (1.0, 0.5):
        ...     update, state = tx.update(jnp.array(gradient), state, theta)
        ...     theta = theta + update
        >>> round(float(theta), 5)
        -0.17195
    """
    direction = scale_by_adan(b1=b1, b2=b2, b3=b3, eps=eps)
    if proximal:
        decay = add_proximal_weight_decay(learning_rate, weight_decay)
        return optax.chain(direction, optax.scale_by_learning_rate(learning_rate), decay)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(learning_rate))
