"""SAF: a model is held to what it predicted some visits ago, which keeps its path out of sharp minima.

With z the logits of an example and z_past those of `lag` visits of that example ago, a constant, an example adds

    weight · T² KL( softmax(z_past / T) || softmax(z / T) )

to the losses, whose gradient by z is ``weight · T (softmax(z / T) - softmax(z_past / T))``; until an example has been
visited `lag` times it adds 0. The divergence measures how fast the loss falls along the path of the updates, which is
what SAM's sharpness is to first order when the path follows the gradient; it needs no second gradient.

References:
    Du, Zhou, Feng, Tan, Zhou (2022), Sharpness-Aware Training for Free, section 3.2 (its factor T² is that of the
    authors' implementation).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiv import losses
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params
from jaxdiv.objectives import memory as memories
from jaxdiv.objectives.memory import Memory
from jaxdiv.objectives.record import Link, Option, Record, require_index, resolve, select


class SafState(NamedTuple):
    """State of the link.

    Attributes:
        memory: Past logits of each example.
        updates: Number of updates.
    """

    memory: Memory
    updates: Int[Array, ""]


def saf(
    num_samples: int,
    *,
    weight: Option = 0.3,
    temperature: Numeric = 5.0,
    lag: int = 3,
    dtype: jnp.dtype = jnp.float32,
    name: str = "saf",
    output: str = "logits",
) -> Link:
    """Adds the divergence from the model's own logits of `lag` visits ago to the losses.

    Args:
        num_samples: Size N of the data set that ``batch["index"]`` points into.
        weight: Of the loss: a number, a traced scalar, or an optax schedule of this link's updates. The paper starts
            it after five epochs.
        temperature: T > 0.
        lag: How many visits ago; 3 epochs where an example is visited once an epoch. The memory takes N x lag x C
            values.
        dtype: Of the memory; float16 halves it.
        name: Name of the loss.
        output: The output that holds the logits.

    Returns:
        A loss link; it stands after `forward` and before the reduction. In evaluation (``key=None``) it adds 0, since
        held-out examples have no past. The past may be that of another augmentation of the example; inputs mixed
        from several examples have none.

    Raises:
        ValueError: If the batch has no index, the output is missing, the name is taken, or the temperature is not
            positive.

    References:
        Du et al. (2022).

    Example:
        >>> from jaxdiv import losses, objectives
        >>> objective = objectives.chain(
        ...     objectives.forward(lambda params, state, x, key: (x @ params, state)),
        ...     objectives.loss(losses.cross_entropy, name="ce"),
        ...     objectives.saf(1000, lag=2),
        ...     objectives.mean(),
        ... )
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True, open_high=True)

    def init(params: Params, record: Record, key: Key) -> SafState:
        logits = select("saf", record, output)
        return SafState(memories.empty(num_samples, lag, logits.shape[1:], dtype), jnp.zeros((), jnp.int32))

    def update(params: Params, state: SafState, record: Record, key: Key | None) -> tuple[Record, SafState]:
        logits = checks.floating("link saf: logits", select("saf", record, output))
        if name in record.losses:
            raise ValueError(f"link saf: a loss {name!r} exists already; give another name=.")
        if key is None:
            values = jnp.zeros(record.weights.shape, logits.dtype)
            return record._replace(losses={**record.losses, name: values}), state
        index = require_index("saf", record)
        past, known = memories.read(state.memory, index)
        # An index out of range spoils its row, but padding may bear any index.
        known &= record.weights != 0
        past = jnp.where(jnp.expand_dims(known, range(1, past.ndim)), past.astype(logits.dtype), 0.0)
        values = losses.kd(logits, past, temperature=temperature)
        values = resolve(weight, state.updates) * jnp.where(known, values, 0.0)
        memory = memories.write(state.memory, index, jax.lax.stop_gradient(logits), record.weights)
        return record._replace(losses={**record.losses, name: values}), SafState(memory, state.updates + 1)

    return Link(init, update)
