"""What the oracles share that look at a model's outputs besides its loss."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Params, Scalar, State
from jaxdiv.objectives.record import weighted_mean

ModelState: TypeAlias = Callable[[State], State]
"""Picks the model's stored state out of the objective's, e.g. ``lambda state: state[0]``."""


def no_state(loss_state: State) -> State:
    """The state of a model that has none."""
    return ()


def evaluate(
    oracle: str, apply: Apply, output: str, params: Params, model_state: State, inputs: PyTree
) -> Float[Array, "B ..."]:
    """One output of the model in evaluation mode, in float32 or wider.

    Raises:
        ValueError: If the model has no such output, or it is not floating.
    """
    outputs, _ = apply(params, model_state, inputs, None)
    if isinstance(outputs, Mapping):
        outputs = checks.lookup(f"oracle {oracle}: output", output, outputs)
    return checks.floating(f"oracle {oracle}: the model's output", outputs)


def mean_over_batch(oracle: str, values: Any, weights: Float[Array, " B"]) -> Scalar:
    """Mean of values [B, ...] over the trailing axes, then over the batch under its weights.

    Raises:
        ValueError: If the values have no axis for the batch.
    """
    values = checks.floating(f"oracle {oracle}: the values", values)
    if values.shape[:1] != weights.shape:
        raise ValueError(
            f"oracle {oracle} needs one value or row per example, first axis {weights.shape[0]}; "
            f"got shape {values.shape}."
        )
    return weighted_mean(jnp.mean(values, axis=tuple(range(1, values.ndim))), weights)


def widest(params: Params) -> jnp.dtype:
    """The dtype of statistics over the parameters: that of the widest leaf, float32 at least."""
    dtypes = [leaf.dtype for leaf in map(jnp.asarray, jax.tree.leaves(params))]
    return jnp.result_type(jnp.float32, *(d for d in dtypes if jnp.issubdtype(d, jnp.inexact)))
