"""Choices between branches that stay choices under vmap."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


@jax.custom_batching.custom_vmap
def any_lane(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate itself; under `jax.vmap` whether it holds in any lane.

    ``lax.cond(any_lane(p), ...)`` stays a branch under vmap, where ``lax.cond(p, ...)`` would run both.

    Args:
        predicate: A boolean scalar.

    Returns:
        A boolean scalar, the same for all lanes.

    Example:
        >>> jax.vmap(any_lane)(jnp.array([False, True])).tolist()
        [True, True]
    """
    return predicate


@any_lane.def_vmap
def _any_lane_vmap(axis_size: int, batched: Any, predicate: Array) -> tuple[Array, bool]:
    return any_lane(jnp.any(predicate, axis=0) if batched[0] else predicate), False
