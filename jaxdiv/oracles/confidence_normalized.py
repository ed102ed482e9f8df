"""Gradients of a cross-entropy divided by the mean misfit, which turns large steps into perceptron steps.

With losses ℓ_i = -log p_i and misfits w_i = 1 - p_i = 1 - e^{-ℓ_i}, a base oracle's direction g becomes

    g / ((1/n) Σ_i w_i).

For logistic regression on margins a_i that is θ ← θ + γ Σ w_i a_i/Σ w_i, which for γ → ∞ is the perceptron on the
mean of the misclassified examples. On separable data, with ‖a_i‖ ≤ R and margin μ, all are classified from θ = 0
after at most (R² + 1.114 n/γ)/μ² steps, whereas those of plain gradient descent grow with n even for large γ.

References:
    Tyurin (2025), From logistic regression to the perceptron algorithm: exploring gradient descent with large step
    sizes. Which normalizer the paper has is read from its abstract and guarantees; the bound above holds for this.
"""

import jax
import jax.numpy as jnp

from jaxdiv.core import checks
from jaxdiv.core.types import Batch, Key, LossFn, Params, State
from jaxdiv.oracles.oracle import Evaluation, Oracle


def confidence_normalized(base: Oracle, loss: str = "ce") -> Oracle:
    """Divides the direction of another oracle by the mean misfit.

    Args:
        base: The oracle that gives the direction.
        loss: Name of the per-example cross-entropy, binary or of several classes, from which the misfits follow.

    Returns:
        An oracle of the cost of its base. Its result is a displacement, not the gradient of the value; other terms
        are divided as well. Examples count by ``batch["weights"]`` if there are any. Where no misfit is left in the
        losses' precision, the direction stays as it is.

    Raises:
        ValueError: If the loss has no per-example loss of that name.

    References:
        Tyurin (2025).

    Example:
        >>> from jaxdiv import oracles
        >>> def loss_fn(theta, state, batch, key):
        ...     losses = jax.nn.softplus(-theta * batch["inputs"])
        ...     return losses.mean(), (state, {"terms": {}, "losses": {"ce": losses}, "metrics": {}})
        >>> oracle = oracles.confidence_normalized(oracles.plain())
        >>> batch = {"inputs": jnp.array([1.0, -4.0])}
        >>> _, direction, _, _ = oracle.value_and_grad(loss_fn, jnp.array(100.0), (), (), batch, jax.random.key(0))
        >>> float(direction)
        4.0
    """

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        (value, aux), direction, oracle_state, loss_state = base.value_and_grad(
            loss_fn, params, oracle_state, loss_state, batch, key
        )
        misfits = -jnp.expm1(-checks.lookup("loss", loss, aux["losses"]))
        mean = jnp.average(misfits, weights=batch.get("weights"))
        # Its derivative, where all are certain, would be 0/0 as well.
        mean = jnp.where(mean == 0, 1.0, mean)

        def divide(d: jax.Array) -> jax.Array:
            wide = jnp.promote_types(d.dtype, jnp.float32)
            return (d.astype(wide) / mean).astype(d.dtype)

        return (value, aux), jax.tree.map(divide, direction), oracle_state, loss_state

    return Oracle(init=base.init, value_and_grad=value_and_grad)
