"""Layer-wise sharpness: the worst-case sharpness with only one layer free to move.

    S_ℓ^ρ(w) = E_chunk [ max_{‖δ ⊘ c‖_p ≤ ρ, δ = 0 outside ℓ} L(w + δ) − L(w) ],      c = |w| or 1.

At the same relative radius layers compare, since adaptive balls do not see the scale of a layer.

References:
    In search of the successful interpolation: on the role of sharpness in CLIP generalization (2024).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdiv.core.types import Key, Numeric, Params, Scalar
from jaxdiv.diagnostics import layers
from jaxdiv.diagnostics.batches import BatchLoss
from jaxdiv.diagnostics.sharpness_worst import Ball, sharpness_worst


def layerwise_sharpness(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    rho: Numeric,
    *,
    labels: PyTree | None = None,
    geometry: Ball = "adaptive_linf",
    m: int | None = None,
    steps: int = 20,
    key: Key,
) -> dict[str, Scalar]:
    """Largest rise of the loss when one layer moves inside its ball, for each layer.

    Args:
        loss_fn: ``(params, batch) -> scalar``, in evaluation mode.
        params: Parameters w, floating.
        batch: Arrays with one row per example.
        rho: Radius ρ >= 0.
        labels: Names of layers, a prefix of the tree of `params`; by default those of `layer_labels`.
        geometry: As in `sharpness_worst`.
        m: Examples in a chunk, as in `sharpness_worst`.
        steps: Ascent steps for each layer.
        key: Random key.

    Returns:
        The sharpness of each layer, each at most that of all layers together.

    Raises:
        ValueError: If the labels do not fit, or `sharpness_worst` refuses an option.

    Example:
        >>> loss = lambda w, x: x * (jnp.sum(w["in"]) + 3 * jnp.sum(w["out"]))
        >>> w = {"in": jnp.ones(2), "out": jnp.ones(1)}
        >>> found = layerwise_sharpness(loss, w, jnp.ones(()), 0.1, key=jax.random.key(0))
        >>> {name: round(float(value), 4) for name, value in found.items()}
        {'in': 0.2, 'out': 0.3}
    """
    names = layers.of_leaves(labels, params)
    structure = jax.tree.structure(params)
    found = list(dict.fromkeys(names))

    def of_layer(moving: Array) -> Scalar:
        where = jax.tree.unflatten(structure, list(moving))
        return sharpness_worst(
            loss_fn, params, batch, rho, geometry=geometry, m=m, steps=steps, where=where, key=key
        )

    values = jax.lax.map(of_layer, jnp.array([[float(name == layer) for name in names] for layer in found]))
    return {layer: values[i] for i, layer in enumerate(found)}
