"""PS-KD: the model's own past predictions progressively soften its targets.

At the t-th update the target of an example x of label y is

    y_t = (1 - alpha_t) y + alpha_t P_past(x),   P_past = softmax of the logits `lag` visits ago,

with alpha_t growing linearly to alpha_T; until an example has a past, its target stays y. The cross entropy
to y_t then rescales the gradient of the hard-target one by
``1 - alpha_t (1 - P_past,y) / (1 - P_t,y)`` in the sum of absolute values over the classes (where
``P_t,i >= alpha_t P_past,i`` for every i other than y): examples that the model has come to know are
weighted down, those on which it got worse are not.

References:
    Kim, Ji, Yoon, Hwang (2021), Self-Knowledge Distillation with Progressive Refinement of Targets,
    eqs. (3)-(5).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Params
from jaxdiv.objectives import memory as memories
from jaxdiv.objectives.memory import Memory
from jaxdiv.objectives.record import Link, Option, Record, require_index, resolve, select
from jaxdiv.objectives.targets import as_distributions


class PSKDState(NamedTuple):
    """State of the link.

    Attributes:
        memory: Past predictions of each example.
        updates: Number of updates.
    """

    memory: Memory
    updates: Int[Array, ""]


def ps_kd(
    num_samples: int,
    *,
    alpha: Option = 0.8,
    lag: int = 1,
    dtype: jnp.dtype = jnp.float32,
    output: str = "logits",
) -> Link:
    """Mixes the targets with the model's own predictions of `lag` visits ago.

    Args:
        num_samples: Size N of the data set that ``batch["index"]`` points into.
        alpha: Weight of the past, in [0, 1]. The paper grows it linearly to 0.8 over the training:
            ``optax.linear_schedule(0.0, 0.8, num_updates)``.
        lag: How many visits ago; 1 where an example is visited once an epoch. The memory takes
            N x lag x C values.
        dtype: Of the memory; float16 halves it.
        output: The output that holds the logits.

    Returns:
        A target link; it stands after `forward` and before the loss. In evaluation (``key=None``) the
        targets stay hard, since held-out examples have no past.

    Raises:
        ValueError: If the batch has no index, output or targets are missing, the targets are neither
            labels nor distributions, or alpha leaves [0, 1].

    Example:
        >>> import optax
        >>> from jaxdiv import objectives
        >>> link = objectives.ps_kd(1000, alpha=optax.linear_schedule(0.0, 0.8, 600))
    """
    if not callable(alpha):
        checks.in_range("alpha", alpha, 0.0, 1.0)

    def init(params: Params, record: Record, key: Key) -> PSKDState:
        logits = select("ps_kd", record, output)
        return PSKDState(memories.empty(num_samples, lag, logits.shape[1:], dtype), jnp.zeros((), jnp.int32))

    def update(params: Params, state: PSKDState, record: Record, key: Key | None) -> tuple[Record, PSKDState]:
        logits = jax.lax.stop_gradient(select("ps_kd", record, output))
        targets = as_distributions("ps_kd", select("ps_kd", record, "targets"), logits)
        if key is None:
            return record._replace(targets=targets), state
        index = require_index("ps_kd", record)
        past, known = memories.read(state.memory, index)
        # An index out of range spoils its row, but padding may bear any index.
        known &= record.weights != 0
        mixed = optax.incremental_update(past.astype(targets.dtype), targets, resolve(alpha, state.updates))
        targets = jnp.where(jnp.expand_dims(known, range(1, targets.ndim)), mixed, targets)
        predictions = jax.nn.softmax(logits.astype(targets.dtype), axis=-1)
        new_memory = memories.write(state.memory, index, predictions, record.weights)
        return record._replace(targets=targets), PSKDState(new_memory, state.updates + 1)

    return Link(init, update)
