"""UDIM: the base oracle's gradient, and that of how differently a model treats its batch and a perturbed copy of it.

1. The inputs climb the loss and its sharpness, each example by steps of one length:

    x̃ <- x̃ + step_size · normalize( ∂/∂x̃ [ L(θ; x̃) + rho ||∂L/∂θ(θ; x̃)|| ] )

2. For the linear head z = h W + b with features h, each example has the gradients

    ∂l_i/∂W = h_i ⊗ δ_i,    ∂l_i/∂b = δ_i,    δ_i = ∂l_i/∂z_i,

   a_i on x and ã_i on x̃, and the inconsistency is

    I(θ) = gradient_variance_gap(a, ã) + mean_i ||h̃_i ⊗ δ̃_i||² / (dim h · dim z) + mean_i ||δ̃_i||² / dim z.

3. The result is the base's direction plus weight · ∂I/∂θ, x̃ a constant. With SAM of the same rho as base it is UDIM.

References:
    Shin, Bae, Na, Kim, Moon (2024), Unknown Domain Inconsistency Minimization for Domain Generalization, section 4
    (input variant; I as in the authors' implementation, the normalization per example).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv import core, objectives
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Batch, Key, LossFn, Numeric, Params, Scalar, State
from jaxdiv.losses.gradient_variance_gap import gradient_variance_gap
from jaxdiv.objectives.record import of_present, raised
from jaxdiv.oracles.oracle import Evaluation, Oracle
from jaxdiv.oracles.outputs import ModelState, no_state


def udim(
    base: Oracle,
    apply: Apply,
    loss: Callable[..., Float[Array, " B"]],
    *,
    rho: Numeric = 0.05,
    weight: Numeric = 1.0,
    step_size: Numeric = 1.0,
    steps: int = 1,
    features: str = "features",
    output: str = "logits",
    model_state: ModelState = no_state,
) -> Oracle:
    """Adds the gradient of the inconsistency between the batch and its perturbed copy to the base oracle's.

    Args:
        base: The oracle that is asked on the batch as it is; ``sam(plain(), rho=rho)`` in the paper.
        apply: The model, ``(params, model_state, inputs, key) -> (outputs, model_state)`` with the head's input and
            output among the outputs. It runs in evaluation mode and sees the floating leaves of the parameters alone.
        loss: The loss ``(outputs, targets) -> [B]`` whose gradient by the head is meant, twice differentiable.
        rho: Weight of the sharpness in the perturbation of the inputs, >= 0.
        weight: λ, of the inconsistency.
        step_size: Length of a step of each example, in units of the inputs, >= 0.
        steps: Number of steps.
        features: The output that holds the head's inputs [B, ...].
        output: The output that holds the head's outputs [B, C].
        model_state: Picks the model's stored state out of the objective's; none by default.

    Returns:
        An oracle of the base's state. It costs one evaluation of `base`; for each step one gradient of the loss by the
        parameters and one by the inputs with its derivative along it; and one gradient of the model on both batches.
        Value, aux and loss state are the base's.

    Raises:
        ValueError: If an option leaves its range, no input is floating, or the model lacks an output.

    References:
        Shin et al. (2024).

    Example:
        >>> from flax import nnx
        >>> from jaxdiv import losses, nn, oracles
        >>> model = nn.functional(nn.MLP((64, 32, 10), features=True, rngs=nnx.Rngs(0)))
        >>> base = oracles.sam(oracles.plain(), rho=0.05)
        >>> oracle = oracles.udim(base, model.apply, losses.cross_entropy, weight=10.0)
    """
    for name, value in (("rho", rho), ("step_size", step_size)):
        checks.in_range(name, value, 0.0)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        record = objectives.from_batch(batch)

        def of_inputs(params: Params, inputs: PyTree) -> Scalar:
            return loss_fn(params, loss_state, {**batch, "inputs": inputs}, key)[0]

        def head_gradients(params: Params, inputs: PyTree) -> tuple[Array, Array]:
            outputs, _ = apply(params, model_state(loss_state), inputs, None)
            h, z = (checks.lookup("oracle udim: output", name, outputs) for name in (features, output))
            h, z = (checks.floating("oracle udim: the model's output", x) for x in (h, z))
            slopes = jax.grad(lambda z: jnp.sum(loss(z, raised(record.targets))))(z)
            return h.reshape(h.shape[0], -1), slopes.reshape(z.shape[0], -1)

        def inconsistency(params: Params, perturbed: PyTree) -> Scalar:
            here, there = (_tensors(*head_gradients(params, x)) for x in (record.inputs, perturbed))

            def measure(weights: Float[Array, " B"]) -> Scalar:
                gap = gradient_variance_gap(
                    jnp.concatenate(here, 1), jnp.concatenate(there, 1), weights=weights
                )
                shares = weights / jnp.sum(weights)
                return gap + sum((shares @ jnp.mean(g**2, 1) for g in there), start=jnp.zeros_like(gap))

            return of_present(measure, record.weights)

        result, gradient, oracle_state, new_state = base.value_and_grad(
            loss_fn, params, oracle_state, loss_state, batch, key
        )
        perturbed = record.inputs
        for _ in range(steps):
            perturbed = _climb(of_inputs, params, perturbed, rho, step_size)
        slope = jax.grad(inconsistency)(params, perturbed)
        gradient = jax.tree.map(
            lambda g, s: (core.widen(g) + weight * core.widen(s)).astype(jnp.result_type(g)), gradient, slope
        )
        return result, gradient, oracle_state, new_state

    return Oracle(base.init, value_and_grad)


def _tensors(h: Float[Array, "B h"], slopes: Float[Array, "B C"]) -> tuple[Array, Array]:
    """Per-example gradients by the head's kernel [B, h C] and bias [B, C]."""
    kernel = h[:, :, None] * slopes[:, None, :]
    return kernel.reshape(h.shape[0], -1), slopes


def _climb(
    loss: Callable[[Params, PyTree], Scalar],
    params: Params,
    inputs: PyTree,
    rho: Numeric,
    step_size: Numeric,
) -> PyTree:
    """One step of the inputs up L + rho ||∂L/∂θ||, of the same length for each example."""
    leaves, treedef = jax.tree.flatten(inputs)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        raise ValueError(f"udim needs a floating input to perturb; got {[leaf.dtype for leaf in leaves]}.")

    def of_floats(params: Params, moved: list[Array]) -> Scalar:
        merged = list(leaves)
        for i, leaf in zip(floats, moved, strict=True):
            merged[i] = leaf
        return loss(params, jax.tree.unflatten(treedef, merged))

    start = [leaves[i] for i in floats]
    ascent = core.perturbation(params, jax.grad(of_floats)(params, start), rho)
    # ∂/∂x ||∂L/∂θ|| is the derivative of ∂L/∂x along the unit gradient by θ.
    by_inputs: Any = jax.grad(of_floats, 1)
    slope, turn = jax.jvp(lambda p: by_inputs(p, start), (params,), (ascent,))
    total = [core.widen(s) + core.widen(t) for s, t in zip(slope, turn, strict=True)]
    flat = [g.reshape(g.shape[0], -1) for g in total]
    norms = core.safe_norm(jnp.concatenate(flat, 1), axis=1)
    norms = jnp.where(norms == 0, 1.0, norms)
    for i, g in zip(floats, total, strict=True):
        unit = g / norms.reshape(-1, *(1,) * (g.ndim - 1))
        leaves[i] = (leaves[i] + step_size * unit).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, leaves)
