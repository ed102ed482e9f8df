"""AdaGrad-Norm: one adaptive step size for all coordinates.

    v_k² = v_{k−1}² + ‖g_k‖²,        u_k = g_k / v_k,

with the norm over all leaves together. `optax.scale_by_rss` is the same coordinate by coordinate.

References:
    Ward, Wu, Bottou (2020), AdaGrad stepsizes: Sharp convergence over nonconvex landscapes, algorithm 1.
    Lau, Liu, Kolar (2024), AdAdaGrad: Adaptive batch size schemes for adaptive gradient methods, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.linalg import vectors


class ScaleByAdagradNormState(NamedTuple):
    """State of the transform.

    Attributes:
        norm: v, the root of the sum of the squared norms so far and of v_0².
    """

    norm: Scalar


def scale_by_adagrad_norm(initial_accumulator_value: Numeric = 1e-2) -> optax.GradientTransformation:
    """Divides the gradient by the root of the sum of all squared gradient norms so far.

    Args:
        initial_accumulator_value: v_0² > 0; the paper's value.

    Returns:
        A transform; the update has the dtypes of the gradient, the state is one number.

    Raises:
        ValueError: If a concrete `initial_accumulator_value` is not positive.

    Note:
        The root is kept, not the sum, so that squares neither overflow nor vanish.

    References:
        Ward, Wu, Bottou (2020); Lau, Liu, Kolar (2024), algorithm 1.

    Example:
        >>> tx = scale_by_adagrad_norm(16.0)
        >>> update, state = tx.update(jnp.array([3.0, 0.0]), tx.init(jnp.zeros(2)))
        >>> [round(float(u), 4) for u in update]
        [0.6, 0.0]
    """
    checks.in_range("initial_accumulator_value", initial_accumulator_value, 0.0, open_low=True)

    def init(params: optax.Params) -> ScaleByAdagradNormState:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return ScaleByAdagradNormState(jnp.sqrt(jnp.asarray(initial_accumulator_value, dtype)))

    def update(
        updates: optax.Updates, state: ScaleByAdagradNormState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdagradNormState]:
        del params
        dtype = state.norm.dtype
        wide = optax.tree.cast(vectors.widened("updates", updates), dtype)
        norm = state.norm
        for leaf in jax.tree.leaves(wide):
            largest = jnp.maximum(norm, jnp.max(jnp.abs(leaf), initial=0))
            norm = largest * jnp.sqrt((norm / largest) ** 2 + jnp.sum((leaf / largest) ** 2))
        scaled = optax.tree.scale(1 / norm, wide)
        return vectors.cast_like(scaled, jax.tree.map(jnp.asarray, updates)), ScaleByAdagradNormState(norm)

    return optax.GradientTransformation(init, update)
