"""TRAM: SAM whose radius is how far the model's outputs have moved.

With z the model's outputs on the batch at the parameters θ and z' those of a reference,

    g_TRAM = grad L(θ + ε),    ε = d g / ||g||,    d = scale · mean_i D( z'_i , z_i )

and g the gradient at θ. D is KL(softmax z' || softmax z) unless another divergence is given; the mean runs over the
examples (under the batch's weights) and over any axes between batch and classes. The reference is

    TRAM-θ:  z' = f(x; θ_ref),       θ_ref <- decay θ_ref + (1 - decay) θ   after d is known;
    TRAM-x:  z' = f(x + ζ; θ),       ζ ~ N(0, sigma²).

Decay 0 makes the previous iterate the reference, decay 1 the first one (the pretrained model), what lies between an
average of the past. Where the outputs do not move the radius is 0 and the result is the plain gradient.

References:
    Sherborne, Saphra, Dasigi, Peng (2024), TRAM: Bridging Trust Regions and Sharpness Aware Minimization,
    section 3 (there the adaptive geometry has η = 0).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv import core, divergences, objectives
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Batch, Key, LossFn, Numeric, Params, Scalar, State
from jaxdiv.oracles.oracle import Evaluation, Oracle
from jaxdiv.oracles.outputs import ModelState, evaluate, mean_over_batch, no_state
from jaxdiv.oracles.sam import within

Distance: TypeAlias = str | divergences.FDivergence | Callable[[Array, Array], Array]
"""A divergence of ``(reference outputs, outputs)``: an f-divergence of logits or its name, or a function that gives
values [B, ...] or a scalar of the whole batch."""


class TramState(NamedTuple):
    """State of TRAM-θ.

    Attributes:
        reference: The reference parameters θ_ref, in float32 or wider.
        base: State of the base oracle.
    """

    reference: Params
    base: State


def tram(
    base: Oracle,
    apply: Apply,
    *,
    divergence: Distance = "kl",
    decay: Numeric = 0.0,
    scale: Numeric = 1.0,
    geometry: core.Geometry = "l2",
    output: str = "logits",
    model_state: ModelState = no_state,
) -> Oracle:
    """Asks the base oracle within a radius given by the outputs' distance from those of earlier parameters.

    Args:
        base: The oracle to ask, e.g. ``plain()``.
        apply: The model, ``(params, model_state, inputs, key) -> (outputs, model_state)``. It runs in evaluation mode,
            so that dropout does not count as movement, and sees the floating leaves of the parameters alone.
        divergence: D; a function may take any outputs, e.g. `jaxdiv.losses.squared_error`.
        decay: Of the reference, in [0, 1].
        scale: Factor on the radius, >= 0. The radius of a mean KL is small where outputs hardly move between two
            steps.
        geometry: Shape of the ball, see `jaxdiv.core.perturb`.
        output: Which output to compare, where the model has several.
        model_state: Picks the model's stored state out of the objective's; none by default.

    Returns:
        An oracle that costs two evaluations of `base` and two forward passes of the model, which sees the inputs of
        the batch, before any link changes them. Value, aux and loss state are those at the unperturbed parameters.

    Raises:
        ValueError: If an option leaves its range, or outputs and divergence do not fit.

    References:
        Sherborne et al. (2024).

    Example:
        >>> from jaxdiv import oracles
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> oracle = oracles.tram(oracles.plain(), apply, decay=0.99)
    """
    checks.in_range("decay", decay, 0.0, 1.0)
    checks.in_range("scale", scale, 0.0)
    distance = _distance(divergence)

    def init(params: Params) -> TramState:
        # A copy, since the training state may be donated.
        def widen(leaf: Any) -> Array:
            leaf = jnp.array(leaf)
            inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
            return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if inexact else leaf

        return TramState(jax.tree.map(widen, params), base.init(params))

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: TramState,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        def outputs(params: Params, inputs: PyTree) -> Float[Array, "B ..."]:
            return evaluate("tram", apply, output, params, model_state(loss_state), inputs)

        record = objectives.from_batch(batch)
        reference = jax.tree.map(lambda r, w: r.astype(jnp.result_type(w)), oracle_state.reference, params)
        past, present = outputs(reference, record.inputs), outputs(params, record.inputs)
        radius = scale * distance("tram", past, present, record.weights)
        result, gradient, base_state, new_state = within(
            base, radius, geometry, loss_fn, params, oracle_state.base, loss_state, batch, key
        )
        reference = jax.tree.map(
            lambda r, w: (decay * r + (1 - decay) * jnp.asarray(w, r.dtype)).astype(r.dtype),
            oracle_state.reference,
            params,
        )
        return result, gradient, TramState(reference, base_state), new_state

    return Oracle(init, value_and_grad)


def tram_x(
    base: Oracle,
    apply: Apply,
    *,
    divergence: Distance = "kl",
    sigma: Numeric = 0.1,
    scale: Numeric = 1.0,
    geometry: core.Geometry = "l2",
    output: str = "logits",
    model_state: ModelState = no_state,
) -> Oracle:
    """Asks the base oracle within a radius given by how far noise on the inputs moves the outputs.

    Args:
        base: The oracle to ask, e.g. ``plain()``.
        apply: The model, as in `tram`.
        divergence: D, as in `tram`.
        sigma: Standard deviation of the noise on the floating inputs, >= 0.
        scale: Factor on the radius, >= 0.
        geometry: Shape of the ball, see `jaxdiv.core.perturb`.
        output: Which output to compare, where the model has several.
        model_state: Picks the model's stored state out of the objective's; none by default.

    Returns:
        An oracle of the base's state that costs two evaluations of `base` and two forward passes of the model.

    Raises:
        ValueError: If an option leaves its range, outputs and divergence do not fit, or no input is floating.

    References:
        Sherborne et al. (2024).

    Example:
        >>> from jaxdiv import oracles
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> oracle = oracles.tram_x(oracles.plain(), apply, sigma=0.1)
    """
    checks.in_range("sigma", sigma, 0.0)
    checks.in_range("scale", scale, 0.0)
    distance = _distance(divergence)

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        def outputs(inputs: PyTree) -> Float[Array, "B ..."]:
            return evaluate("tram_x", apply, output, params, model_state(loss_state), inputs)

        record = objectives.from_batch(batch)
        # A stream of its own, besides the one of the loss.
        noisy = _noisy(record.inputs, sigma, jax.random.fold_in(key, 0x7A3))
        radius = scale * distance("tram_x", outputs(noisy), outputs(record.inputs), record.weights)
        return within(base, radius, geometry, loss_fn, params, oracle_state, loss_state, batch, key)

    return Oracle(base.init, value_and_grad)


def _distance(divergence: Distance) -> Callable[[str, Array, Array, Float[Array, " B"]], Scalar]:
    """The divergence as ``(oracle, reference outputs, outputs, weights) -> scalar``."""
    named = divergences.get(divergence) if isinstance(divergence, str) else divergence
    function = named.on_logits if isinstance(named, divergences.FDivergence) else named

    def distance(oracle: str, past: Array, present: Array, weights: Float[Array, " B"]) -> Scalar:
        values = jnp.asarray(function(past, present))
        return values if values.ndim == 0 else mean_over_batch(oracle, values, weights)

    return distance


def _noisy(inputs: PyTree, sigma: Numeric, key: Key) -> PyTree:
    leaves, treedef = jax.tree.flatten(inputs)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        raise ValueError(
            f"tram_x needs a floating input to perturb; got {[leaf.dtype for leaf in leaves]}; "
            "give it embeddings."
        )
    for i in floats:
        noise = jax.random.normal(jax.random.fold_in(key, i), leaves[i].shape, leaves[i].dtype)
        leaves[i] = (leaves[i] + sigma * noise).astype(noise.dtype)
    return jax.tree.unflatten(treedef, leaves)
