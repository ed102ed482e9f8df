"""Squared error, averaged over the components of each example.

    l(y, t) = (1/d) sum_j (y_j - t_j)^2

so that its mean over the batch is the usual mean squared error.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxdiv.core import checks
from jaxdiv.losses import arguments


def squared_error(
    outputs: Float[Array, "B *d"],
    targets: Float[Array, "B *d"],
    *,
    where: Bool[Array, "B *d"] | None = None,
) -> Float[Array, " B"]:
    """Per-example mean squared error.

    Args:
        outputs: Predictions [B, ...].
        targets: What was to be predicted, of the same shape.
        where: Components to include, broadcast to the shape of the outputs; each row's mean is over
            its own components.

    Returns:
        The losses [B]; NaN in a row without components.

    Raises:
        ValueError: If an argument is not floating, empty or of rank 0, or shapes do not fit.

    Example:
        >>> squared_error(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.zeros((2, 2)))
        Array([2.5, 0. ], dtype=float32)
    """
    outputs, targets = checks.floating("outputs", outputs), checks.floating("targets", targets)
    checks.same_shape(outputs=outputs, targets=targets)
    if outputs.ndim == 0:
        raise ValueError("outputs must have a batch axis; got shape ().")
    checks.not_empty("outputs", outputs)
    axes = tuple(range(1, outputs.ndim))
    included = arguments.mask(where, outputs)
    if included is not None:
        # Before the square: a NaN behind the mask must not reach the gradient.
        outputs, targets = (jnp.where(included, x, 0.0) for x in (outputs, targets))
    return jnp.mean(optax.squared_error(outputs, targets), axis=axes, where=included)
