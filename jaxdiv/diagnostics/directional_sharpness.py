"""Directional sharpness: the curvature of the loss along an update, and how far the update could lower the loss.

For an update direction u and v = u / ‖u‖,

    S(w; v) = vᵀ ∇²L(w) v,     L(w + t v) ≈ L(w) + t ⟨∇L, v⟩ + (t²/2) S,

lowest at t = −⟨∇L, v⟩ / S, lower than L(w) by ⟨∇L, v⟩² / (2 S) if S > 0. The gradient's own direction may be far
sharper than that of its signs or of the clipped gradient: few coordinates carry most of gradient and curvature.

References:
    Pan, Li (2023), Toward understanding why Adam converges faster than SGD for transformers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv import core
from jaxdiv.core.types import Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batches import BatchLoss
from jaxdiv.linalg import vectors


class DirectionalSharpness(NamedTuple):
    """The quadratic model of the loss along a unit vector v.

    Attributes:
        sharpness: vᵀ H v.
        slope: ⟨∇L, v⟩, negative for a direction of descent.
        step: Length of the step along v to the lowest point; infinite, with the sign that goes down, where the
            curvature is not positive.
        decrease: How far the loss falls there; infinite where the curvature is not positive and the slope not 0.
    """

    sharpness: Scalar
    slope: Scalar
    step: Scalar
    decrease: Scalar


def directional_sharpness(
    loss_fn: BatchLoss, params: Params, batch: PyTree, direction: PyTree
) -> DirectionalSharpness:
    """Curvature and slope of the loss along a direction, by one Hessian-vector product.

    Args:
        loss_fn: ``(params, batch) -> scalar``; dropout and augmentation as in the gradient that gave the direction.
        params: Parameters w, floating.
        batch: What the loss needs beside them.
        direction: An update u, such as the negative gradient or what an optax transform returns. Its length
            does not matter.

    Returns:
        A `DirectionalSharpness`, float32 or wider; NaN for a direction of zeros.

    Raises:
        ValueError: If the loss is not a scalar or the direction does not match the parameters.

    References:
        Pan, Li (2023).

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2) / 2
        >>> w, curvature = jnp.ones(2), jnp.array([1.0, 9.0])
        >>> [round(float(directional_sharpness(loss, w, curvature, u).sharpness), 3)
        ...  for u in (-jax.grad(loss)(w, curvature), -jnp.ones(2))]
        [8.902, 5.0]
    """
    params = batches.widened(loss_fn, params, batch)
    direction = vectors.widened("direction", direction)
    vectors.same_space("direction", direction, "params", params)
    norm = core.safe_norm(jnp.stack([core.safe_norm(leaf) for leaf in jax.tree.leaves(direction)]))
    unit = jax.tree.map(lambda u, w: (u / norm).astype(w.dtype), direction, params)
    gradient, curved = jax.jvp(jax.grad(lambda w: loss_fn(w, batch)), (params,), (unit,))
    slope, sharpness = optax.tree.vdot(gradient, unit), optax.tree.vdot(unit, curved)
    convex = sharpness > 0
    positive = jnp.where(convex, sharpness, 1)
    flat = jnp.where(slope == 0, 0, jnp.inf)
    step = jnp.where(convex, -slope / positive, -jnp.sign(slope) * flat)
    decrease = jnp.where(convex, slope**2 / (2 * positive), flat)
    undefined = jnp.isnan(slope) | jnp.isnan(sharpness)
    return DirectionalSharpness(
        sharpness, slope, jnp.where(undefined, jnp.nan, step), jnp.where(undefined, jnp.nan, decrease)
    )
