"""Cosine power annealing: between a cosine and an exponential decay.

With E steps e = 1 … E, of which the first W warm up, and with b ≥ 1 the order,

    c_e = (1 + cos(π (e − W) / (E − W))) / 2,        q_e = (b^{c_e} − 1) / (b^{c_1} − 1)     for e > W,
                                                    q_e = e / W                             for e ≤ W,
    value_e = min_value + (init_value − min_value) q_e,

c_1 being 1 where there is a warm-up, so that the curve joins it at the top, and its own first value (a little under
1) where there is none: the powers b^{c_e + 1} are rescaled to their range over the whole schedule. For b → 1 that
is the cosine c_e / c_1; the larger b, the faster the start and the longer the tail.

References:
    Hundt, Jain, Hager (2019), sharpDARTS: Faster and More Accurate Differentiable Architecture Search.
"""

import math

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def _power(cosine: Float[Array, ""] | float, order: Numeric) -> Float[Array, ""]:
    """(b^c − 1) / log b, which is c at b = 1."""
    rate = jnp.log(order)
    near = rate < 1e-4
    # There the series, so that neither value nor slope in b is 0/0.
    series = cosine * (1 + cosine * rate / 2 * (1 + cosine * rate / 3))
    rate = jnp.where(near, 1.0, rate)
    return jnp.where(near, series, jnp.expm1(cosine * rate) / rate)


def cosine_power_schedule(
    init_value: Numeric,
    decay_steps: int,
    *,
    min_value: Numeric = 0.0,
    order: Numeric = 2.0,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Anneals from `init_value` to `min_value` by powers of a cosine.

    Args:
        init_value: The largest value, reached at the first step or at the end of the warm-up.
        decay_steps: Number E of steps, the warm-up among them. The last one, and all that follow, have `min_value`.
        min_value: The smallest value.
        order: b ≥ 1; 1 is cosine annealing. The paper's runs have 2 on CIFAR-10 and 10 on ImageNet.
        warmup_steps: Number W of steps that rise linearly from `min_value`, without it, to `init_value`.

    Returns:
        A schedule ``count -> value`` that counts from 0, the paper's first epoch. Made for epochs, it takes their
        number in place of the count.

    Raises:
        ValueError: If the order is less than 1, or fewer than two steps are left after the warm-up.

    References:
        Hundt, Jain, Hager (2019).

    Example:
        >>> from jaxdiv import transforms
        >>> schedule = transforms.cosine_power_schedule(0.1, 5, order=10.0)
        >>> [round(float(schedule(count)), 4) for count in range(6)]
        [0.1, 0.05, 0.0173, 0.0035, 0.0, 0.0]
    """
    checks.in_range("order", order, 1.0, open_high=True)
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0; got {warmup_steps}.")
    if decay_steps < warmup_steps + 2:
        raise ValueError(
            f"decay_steps must be at least warmup_steps + 2 = {warmup_steps + 2}, since the warm-up is a part of them; "
            f"got {decay_steps}."
        )
    span = decay_steps - warmup_steps
    first = 1.0 if warmup_steps else math.cos(math.pi / (2 * span)) ** 2

    def schedule(count: Numeric) -> Float[Array, ""]:
        left = jnp.clip(decay_steps - 1 - jnp.asarray(count), 0, span)
        # sin² of what is left is (1 + cos)/2 of what has passed, and exactly 0 at the end.
        cosine = jnp.sin(jnp.pi * left / (2 * span)) ** 2
        share = _power(cosine, order) / _power(first, order)
        if warmup_steps:
            risen = (jnp.asarray(count) + 1) / warmup_steps
            share = jnp.where(risen <= 1, risen, share)
        return min_value + (init_value - min_value) * share

    return schedule
