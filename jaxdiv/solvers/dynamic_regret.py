r"""Regret of online plays against comparators that may move, and how far those moved.

    R_t = Σ_{s<=t} f_s(x_s) - f_s(u_s),    P_t = Σ_{1<s<=t} ‖u_s - u_{s-1}‖

With one comparator for all rounds R is the static regret and P is 0.

References:
    Zinkevich (2003), Online convex programming and generalized infinitesimal gradient ascent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks, safe_norm


class Regret(NamedTuple):
    """What `dynamic_regret` gives.

    Attributes:
        regret: R, after each round. [T]
        path_length: P, after each round. [T]
    """

    regret: Float[Array, " T"]
    path_length: Float[Array, " T"]


def dynamic_regret(
    losses: Float[Array, " T"], comparator_losses: Float[Array, " T"], comparators: PyTree
) -> Regret:
    """Cumulative regret and path length.

    Args:
        losses: f_t(x_t) of the plays. [T]
        comparator_losses: f_t(u_t). [T]
        comparators: u_t, a pytree whose leaves have the rounds first.

    Returns:
        Both after each round, in float32 or float64.

    Raises:
        ValueError: If the losses are not floating vectors of one length, or a comparator has another number of rounds.

    References:
        Zinkevich (2003), Online convex programming and generalized infinitesimal gradient ascent.

    Example:
        >>> out = dynamic_regret(jnp.array([3.0, 1.0]), jnp.zeros(2), jnp.array([[0.0], [2.0]]))
        >>> out.regret.tolist(), out.path_length.tolist()
        ([3.0, 4.0], [0.0, 2.0])
    """
    losses = checks.floating("losses", losses)
    comparator_losses = checks.floating("comparator_losses", comparator_losses)
    checks.rank("losses", losses, 1)
    checks.same_shape(losses=losses, comparator_losses=comparator_losses)

    def moves(leaf: Array) -> Array:
        leaf = checks.floating("comparators", leaf)
        if leaf.ndim == 0 or leaf.shape[0] != losses.size:
            raise ValueError(
                f"comparators must have {losses.size} rounds on their first axis; got {leaf.shape}."
            )
        return safe_norm(jnp.diff(leaf.reshape(losses.size, -1), axis=0), axis=1)

    steps = safe_norm(jnp.stack([moves(leaf) for leaf in jax.tree.leaves(comparators)]), axis=0)
    path = jnp.concatenate([jnp.zeros(min(1, losses.size), steps.dtype), jnp.cumsum(steps)])
    return Regret(jnp.cumsum(losses - comparator_losses), path)
