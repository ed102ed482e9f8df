"""Measurements along the segment between two models, of all layers together or of one layer alone.

    w_α = (1 − α) w_a + α w_b,      barrier = max_α L(w_α) − [(1 − α) L(w_a) + α L(w_b)].

In robust fine-tuning w_a is the zero-shot model and w_b the fine-tuned one. A layer alone moves from w_a to w_b with
all other layers at w_b; the layer whose rewinding to α = 0 changes the loss most is the straggler, in the reading
taken here of what the paper calls so.

References:
    Wortsman et al. (2022), Robust fine-tuning of zero-shot models. Frankle, Dziugaite, Roy, Carbin (2020), Linear
    mode connectivity and the lottery ticket hypothesis. In search of the successful interpolation: on the role of
    sharpness in CLIP generalization (2024).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Params, Scalar
from jaxdiv.diagnostics import layers
from jaxdiv.linalg import vectors


def interpolation_curve(
    metric: Callable[[Params], PyTree], params_a: Params, params_b: Params, alphas: Float[Array, " k"]
) -> Float[PyTree, "k ..."]:
    """Measures the models on the segment, one after the other.

    Args:
        metric: Anything of a model, such as its loss or a tuple of accuracies. Batch statistics that it uses
            should be recomputed for each model.
        params_a: Parameters at α = 0.
        params_b: Parameters at α = 1.
        alphas: Where to measure [k]; values outside [0, 1] extrapolate.

    Returns:
        What `metric` returns, with a first axis k. At α = 0 and α = 1 the end points are measured exactly.

    Raises:
        ValueError: If the two trees differ or the alphas are not a vector.

    Example:
        >>> interpolation_curve(lambda w: jnp.sum(w**2), jnp.zeros(2), jnp.ones(2), jnp.array([0.0, 0.5, 1.0]))
        Array([0. , 0.5, 2. ], dtype=float32)
    """
    vectors.same_space("params_b", params_b, "params_a", params_a)
    alphas = checks.floating("alphas", alphas)
    checks.rank("alphas", alphas, 1)
    return jax.lax.map(lambda alpha: metric(_between(params_a, params_b, alpha)), alphas)


def layer_interpolation(
    metric: Callable[[Params], PyTree],
    params_a: Params,
    params_b: Params,
    alphas: Float[Array, " k"],
    *,
    labels: PyTree | None = None,
) -> dict[str, Float[PyTree, "k ..."]]:
    """Measures the models in which one layer lies on the segment and all others are at its end.

    Args:
        metric: Anything of a model.
        params_a: Parameters at α = 0.
        params_b: Parameters at α = 1, which the other layers keep.
        alphas: Where to measure [k]; 0 rewinds the layer.
        labels: Names of layers, a prefix of the tree of parameters; by default those of `layer_labels`.

    Returns:
        For each layer, what `metric` returns with a first axis k.

    Raises:
        ValueError: If the trees differ, the labels do not fit, or the alphas are not a vector.

    Example:
        >>> a, b = {"in": jnp.zeros(2), "out": jnp.zeros(1)}, {"in": jnp.ones(2), "out": jnp.ones(1)}
        >>> loss = lambda w: jnp.sum(w["in"]) + 10 * jnp.sum(w["out"])
        >>> {name: curve.tolist() for name, curve in layer_interpolation(loss, a, b, jnp.array([0.0, 1.0])).items()}
        {'in': [10.0, 12.0], 'out': [2.0, 12.0]}
    """
    vectors.same_space("params_b", params_b, "params_a", params_a)
    alphas = checks.floating("alphas", alphas)
    checks.rank("alphas", alphas, 1)
    names = layers.of_leaves(labels, params_a)
    found = list(dict.fromkeys(names))
    leaves_a, structure = jax.tree.flatten(params_a)
    leaves_b = jax.tree.leaves(params_b)
    # One compiled metric for all layers: which one moves is data.
    moves = jnp.array([[name == layer for name in names] for layer in found])

    def of_layer(moving: Array) -> PyTree:
        def of_alpha(alpha: Array) -> PyTree:
            mixed = [
                _between(a, b, jnp.where(on, alpha, 1))
                for a, b, on in zip(leaves_a, leaves_b, moving, strict=True)
            ]
            return metric(jax.tree.unflatten(structure, mixed))

        return jax.lax.map(of_alpha, alphas)

    curves = jax.lax.map(of_layer, moves)
    return {layer: jax.tree.map(lambda x, i=i: x[i], curves) for i, layer in enumerate(found)}


def barrier(losses: Float[Array, " k"], alphas: Float[Array, " k"]) -> Scalar:
    """How far a curve of losses rises above the chord of its first and last point.

    Args:
        losses: Losses along the segment [k], e.g. from `interpolation_curve`.
        alphas: Where they were measured [k], in increasing order, with the end points of the segment.

    Returns:
        The largest rise, >= 0 as the ends have none: 0 for a convex loss, up to rounding.

    Raises:
        ValueError: If the two are not vectors of one length.

    Example:
        >>> print(barrier(jnp.array([1.0, 3.0, 2.0]), jnp.array([0.0, 0.5, 1.0])))
        1.5
    """
    losses, alphas = checks.floating("losses", losses), checks.floating("alphas", alphas)
    checks.rank("losses", losses, 1)
    checks.same_shape(losses=losses, alphas=alphas)
    share = (alphas - alphas[0]) / (alphas[-1] - alphas[0])
    return jnp.max(losses - ((1 - share) * losses[0] + share * losses[-1]))


def _between(a: PyTree, b: PyTree, alpha: Numeric) -> PyTree:
    """(1 − α) a + α b in the dtype of a, exact at both ends."""

    def of_leaf(x: Array, y: Array) -> Array:
        wide = jnp.promote_types(jnp.result_type(x), jnp.float32)
        x_wide, y_wide = jnp.asarray(x, wide), jnp.asarray(y, wide)
        weight = jnp.asarray(alpha, wide)
        return ((1 - weight) * x_wide + weight * y_wide).astype(jnp.result_type(x))

    return jax.tree.map(of_leaf, a, b)
