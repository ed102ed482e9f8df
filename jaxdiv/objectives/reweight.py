"""A weight link: multiplies the examples' weights by a function of the record."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core.types import Key, Params
from jaxdiv.objectives.record import Link, Record, stateless


def reweight(fn: Callable[[Record], Float[Array, " B"]]) -> Link:
    """Multiplies the weights by ``fn(record)``, which no gradient passes.

    Args:
        fn: Gives non-negative factors [B] from the record, e.g. from its losses, outputs or extras.

    Returns:
        A stateless link; it stands between the losses and the reduction.

    Raises:
        ValueError: If `fn` does not give one factor per example.

    Example:
        The focal weights (1 - p_y)^2 of the cross entropy (Lin et al. 2017, eq. (4)):

        >>> from jaxdiv import objectives
        >>> focal = objectives.reweight(lambda record: (1 - jnp.exp(-record.losses["ce"])) ** 2)
    """

    def update(params: Params, record: Record, key: Key | None) -> Record:
        factors = jax.lax.stop_gradient(fn(record))
        if jnp.shape(factors) != record.weights.shape:
            raise ValueError(
                f"link reweight needs one factor per example, shape {record.weights.shape}; "
                f"got {jnp.shape(factors)}."
            )
        # The factor of padding may be NaN.
        weights = jnp.where(record.weights == 0, 0.0, record.weights * factors)
        return record._replace(weights=weights)

    return stateless(update)
