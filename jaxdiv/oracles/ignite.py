"""IGNITE: the gradient of the loss under a bound on how much the weights can change the mean prediction.

With L the loss and G(β) = mean_i g_β(x_i) the mean prediction of the model on the batch, not its loss,

    min_β L(β)   subject to   rho ||grad G(β)|| <= epsilon,

where rho ||grad G|| is to first order the largest rise of G within a distance rho of β. A step takes

    g = grad L(β) + λ (rho / r) (grad G(β + r d / n) - d),      d = grad G(β),  n = ||d||,
    λ <- max(0, λ + learning_rate (rho n - epsilon))   after it,

whose second part is a finite difference of λ rho Hess G(β) d / n, the gradient of λ rho ||grad G||. A learning rate of
0 keeps λ fixed (IGNITE-2).

References:
    Dao, Phung, Phan, Hoang (2024), Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques,
    section 4 (the multiplier is kept from below 0 here).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv import core, objectives
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Batch, Key, LossFn, Numeric, Params, Scalar, State
from jaxdiv.oracles.oracle import Evaluation, Oracle
from jaxdiv.oracles.outputs import ModelState, evaluate, mean_over_batch, no_state, widest


class IgniteState(NamedTuple):
    """State of the oracle.

    Attributes:
        multiplier: λ.
        base: State of the base oracle.
    """

    multiplier: Scalar
    base: State


def ignite(
    base: Oracle,
    apply: Apply,
    *,
    rho: Numeric = 0.05,
    radius: Numeric = 0.05,
    multiplier: Numeric = 1e-3,
    learning_rate: Numeric = 1e-3,
    epsilon: Numeric = 1e-3,
    output: str = "logits",
    model_state: ModelState = no_state,
) -> Oracle:
    """Adds the gradient of the surrogate's sharpness to the base oracle's, with a multiplier that is learned.

    Args:
        base: The oracle that gives the gradient of the loss, e.g. ``plain()``.
        apply: The model, ``(params, model_state, inputs, key) -> (outputs, model_state)``. It runs in evaluation mode
            and sees the floating leaves of the parameters alone.
        rho: Radius of the sharpness, >= 0.
        radius: r, the step of the finite difference, positive and finite.
        multiplier: First λ, >= 0.
        learning_rate: Of λ, >= 0; 0 keeps it.
        epsilon: Bound on ``rho * norm``.
        output: The output that holds the predictions; all its entries are averaged.
        model_state: Picks the model's stored state out of the objective's; none by default.

    Returns:
        An oracle that costs one evaluation of `base` and two gradients of the model's mean output on the inputs of
        the batch. Value, aux and loss state are the base's. Its result is a gradient of the loss alone only where λ
        is 0.

    Raises:
        ValueError: If an option leaves its range, or the model has no such output.

    Note:
        The difference of two gradients loses digits where `radius` is small against the parameters' norm: in float32
        keep it above 1e-3 of that norm.

    References:
        Dao et al. (2024).

    Example:
        >>> from jaxdiv import oracles
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> oracle = oracles.ignite(oracles.plain(), apply, multiplier=0.5, learning_rate=0.0)
    """
    for name, value in (("rho", rho), ("multiplier", multiplier), ("learning_rate", learning_rate)):
        checks.in_range(name, value, 0.0)
    checks.in_range("radius", radius, 0.0, open_low=True, open_high=True)

    def init(params: Params) -> IgniteState:
        first = jax.lax.convert_element_type(jnp.asarray(multiplier), widest(params))
        return IgniteState(first, base.init(params))

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: IgniteState,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        record = objectives.from_batch(batch)

        def mean_prediction(params: Params) -> Scalar:
            values = evaluate("ignite", apply, output, params, model_state(loss_state), record.inputs)
            return mean_over_batch("ignite", values, record.weights)

        result, gradient, base_state, new_state = base.value_and_grad(
            loss_fn, params, oracle_state.base, loss_state, batch, key
        )
        direction = jax.grad(mean_prediction)(params)
        moved = jax.grad(mean_prediction)(core.perturb(params, direction, radius))
        factor = oracle_state.multiplier * rho / radius

        def combine(g: Array, there: Array, here: Array) -> Array:
            wide = jnp.promote_types(g.dtype, jnp.float32)
            return (g.astype(wide) + factor * (there.astype(wide) - here.astype(wide))).astype(g.dtype)

        gradient = jax.tree.map(combine, gradient, moved, direction)
        norm = _norm(direction)
        raised = oracle_state.multiplier + learning_rate * (rho * norm - epsilon)
        new = jnp.maximum(raised, 0.0).astype(oracle_state.multiplier.dtype)
        return result, gradient, IgniteState(new, base_state), new_state

    return Oracle(init, value_and_grad)


def _norm(tree: Params) -> Scalar:
    norms = [core.safe_norm(leaf) for leaf in jax.tree.leaves(tree)]
    return core.safe_norm(jnp.stack(norms))
