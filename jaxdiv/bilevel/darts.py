"""Weights of the operations that an architecture search mixes: DARTS' softmax and sharpDARTS' Max-W.

With w = softmax(α) over all operations that compete, a mixed operation is Σ_i m_i o_i(x) with

    softmax    m_i = w_i
    max_w      m_i = 1 − (max_j w_j − w_i).

Max-W gives the best operation the weight 1 and the others less, so that the best one is trained as it will stand when
it stands alone. The max is a constant to the gradient, hence ∂L/∂α_j = Σ_i (∂L/∂m_i) w_i (δ_ij − w_j) in both kinds.
If it is not, the best weight is the constant 1 and the best operation's output tells α nothing.

The search itself is `make_step` on the problem whose outer variable is α and whose inner one are the weights of the
operations: with `first_order` or `finite_difference` it is first or second order DARTS.

References:
    Liu, Simonyan, Yang (2019), DARTS: Differentiable Architecture Search, eq. (2).
    Hundt, Jain, Hager (2019), sharpDARTS: Faster and More Accurate Differentiable Architecture Search.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks

KINDS = ("softmax", "max_w")


def mix_weights(
    alpha: Float[Array, "..."],
    *,
    kind: Literal["softmax", "max_w"] = "softmax",
    stop_max: bool = True,
    axis: int | Sequence[int] = -1,
) -> Float[Array, "..."]:
    """Weights with which the outputs of competing operations are summed.

    Args:
        alpha: Architecture parameters.
        kind: ``"softmax"`` (DARTS) or ``"max_w"`` (sharpDARTS).
        stop_max: Whether Max-W's maximum is a constant to the gradient, as the paper intends; without, as in the
            released mixed operation, the best operation's output gives α no gradient.
        axis: The axes along which operations compete; several where an edge is one of a grid, such as all that join
            sizes of one layer to sizes of the next.

    Returns:
        Weights of the shape and dtype of `alpha`; softmax weights sum to 1 along `axis`, Max-W's lie in (0, 1] with
        1 at the largest alpha. They do not change if a constant is added to alpha.

    Raises:
        ValueError: If the kind is unknown, alpha is not floating or has no such axes.

    References:
        Hundt, Jain, Hager (2019).

    Example:
        >>> from jaxdiv import bilevel
        >>> [round(w, 3) for w in bilevel.mix_weights(jnp.array([2.0, 1.0, 0.0]), kind="max_w").tolist()]
        [1.0, 0.579, 0.425]
    """
    checks.one_of("kind", kind, KINDS)
    values = checks.floating("alpha", alpha)
    along = checks.axes("alpha", values, axis)
    weights = jax.nn.softmax(values, axis=along)
    if kind == "max_w":
        best = jnp.max(weights, axis=along, keepdims=True)
        weights = 1 - ((jax.lax.stop_gradient(best) if stop_max else best) - weights)
    return weights.astype(jnp.asarray(alpha).dtype)
