"""Hyperparameters with bounds as a vector without any, which gradient steps may move freely.

A coordinate λ ∈ R stands for the value

    low + (high − low) sigmoid(λ)     in (low, high)
    low + softplus(λ)                 in (low, ∞)
    high − softplus(λ)                in (−∞, high)
    λ                                 in (−∞, ∞)

and, for a discrete hyperparameter, for the floor of that; its derivative is 0.

References:
    MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks; the maps as in the authors'
    implementation, https://github.com/asteroidhouse/self-tuning-networks.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


class Range(NamedTuple):
    """Bounds of a hyperparameter.

    Attributes:
        low: Lower bound, not attained by continuous values.
        high: Upper bound, not attained: the largest discrete value is ``high - 1``.
        discrete: Whether the values are the integers low, …, high - 1.
    """

    low: Numeric = -np.inf
    high: Numeric = np.inf
    discrete: bool = False


class HparamSpace(NamedTuple):
    """Two maps between values by name and unconstrained vectors.

    Attributes:
        names: Names in the order of the vector's coordinates.
        constrain: ``[..., h] -> {name: [...]}``, the values that a vector stands for.
        unconstrain: ``{name: [...]} -> [..., h]``, its inverse; a discrete value goes to the middle of the
            interval that is rounded to it. Raises ValueError for values out of range.
    """

    names: tuple[str, ...]
    constrain: Callable[[Float[Array, "... h"]], dict[str, Float[Array, "..."]]]
    unconstrain: Callable[[Mapping[str, Array | Numeric]], Float[Array, "... h"]]


def _infinite(bound: Numeric) -> bool:
    # Which of the four maps applies is static, so a traced bound counts as finite.
    return checks.concrete(bound) and bool(np.isinf(bound))


def _constrain(of: Range, x: Array) -> Array:
    if _infinite(of.low) and _infinite(of.high):
        value = x
    elif _infinite(of.high):
        value = of.low + jax.nn.softplus(x)
    elif _infinite(of.low):
        value = of.high - jax.nn.softplus(x)
    else:
        value = of.low + (of.high - of.low) * jax.nn.sigmoid(x)
    return jnp.floor(value) if of.discrete else value


def inverse_softplus(x: Array | Numeric) -> Array:
    """The number whose softplus is x > 0; −∞ at 0."""
    return x + jnp.log(-jnp.expm1(-x))


def _unconstrain(of: Range, value: Array) -> Array:
    if of.discrete:
        value = value + 0.5
    if _infinite(of.low) and _infinite(of.high):
        return value
    if _infinite(of.high):
        return inverse_softplus(value - of.low)
    if _infinite(of.low):
        return inverse_softplus(of.high - value)
    return jnp.log(value - of.low) - jnp.log(of.high - value)


def hparam_space(ranges: Mapping[str, Range]) -> HparamSpace:
    """Makes the maps between hyperparameters in their ranges and an unconstrained vector.

    Args:
        ranges: The range of each hyperparameter, in the order of the vector's coordinates. Bounds may be
            traced, except that a bound at infinity must not be.

    Returns:
        Names and the two maps, pure functions that broadcast over leading axes.

    Raises:
        ValueError: If there is no range, one is empty, or a discrete one has a bound that is no integer.

    Note:
        Far out, a vector's value is rounded to the bound itself: in float32 sigmoid(17) is 1. Where the bound
        is no sensible value (dropout 1), choose a narrower range (the authors end dropout at 0.9).

    Example:
        >>> space = hparam_space({"dropout": Range(0, 0.9), "decay": Range(0), "holes": Range(0, 4, True)})
        >>> vector = space.unconstrain({"dropout": 0.45, "decay": 1.0, "holes": 2})
        >>> vector.shape
        (3,)
        >>> {name: round(float(value), 4) for name, value in space.constrain(vector).items()}
        {'dropout': 0.45, 'decay': 1.0, 'holes': 2.0}
    """
    ranges = {name: Range(*given) for name, given in ranges.items()}
    if not ranges:
        raise ValueError("ranges must name at least one hyperparameter; got none.")
    for name, of in ranges.items():
        if checks.concrete(of.low) and checks.concrete(of.high) and not of.low < of.high:
            raise ValueError(f"ranges[{name!r}] must have low < high; got {of.low} and {of.high}.")
        for bound in (of.low, of.high):
            whole = _infinite(bound) or not checks.concrete(bound) or float(bound).is_integer()
            if of.discrete and not whole:
                raise ValueError(
                    f"ranges[{name!r}] is discrete, so its bounds must be integers; got {bound}."
                )

    def constrain(vector: Float[Array, "... h"]) -> dict[str, Float[Array, "..."]]:
        vector = checks.floating("vector", vector)
        if vector.ndim < 1 or vector.shape[-1] != len(ranges):
            raise ValueError(
                f"vector must have one entry for each of {', '.join(ranges)} on its last axis; "
                f"got shape {vector.shape}."
            )
        return {name: _constrain(of, vector[..., i]) for i, (name, of) in enumerate(ranges.items())}

    def unconstrain(values: Mapping[str, Array | Numeric]) -> Float[Array, "... h"]:
        if set(values) != set(ranges):
            raise ValueError(f"values must be given for {', '.join(ranges)}; got {', '.join(values)}.")
        columns = []
        for name, of in ranges.items():
            value = jnp.asarray(values[name])
            value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
            if checks.concrete(of.low) and checks.concrete(of.high):
                checks.in_range(
                    name, value, float(of.low), float(of.high), open_low=not of.discrete, open_high=True
                )
            columns.append(_unconstrain(of, value))
        return jnp.stack(jnp.broadcast_arrays(*columns), axis=-1)

    return HparamSpace(tuple(ranges), constrain, unconstrain)
