"""MESA: a model is held to the predictions of the average of what it was, at the cost of one more forward pass.

With θ_ema the exponential average of the parameters before the present ones, z the logits and T the temperature,
an example adds

    weight · T² KL( softmax(z(θ_ema) / T) || softmax(z(θ) / T) ),    θ_ema <- decay θ_ema + (1 - decay) θ after it

to the losses. The average is a constant and runs in evaluation mode on the same inputs. It is SAF without a memory of
the examples: the average stands for the model of some epochs ago.

References:
    Du, Zhou, Feng, Tan, Zhou (2022), Sharpness-Aware Training for Free, section 3.3 (there the average counts the
    present parameters already; with a decay near 1 this is a step's difference).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiv import losses
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Key, Numeric, Params
from jaxdiv.objectives.record import Link, Option, Record, resolve, select


class MesaState(NamedTuple):
    """State of the link.

    Attributes:
        average: The averaged parameters, in float32 or wider.
        updates: Number of updates.
    """

    average: Params
    updates: Int[Array, ""]


def mesa(
    apply: Apply,
    *,
    weight: Option = 0.8,
    temperature: Numeric = 5.0,
    decay: Option = 0.9998,
    name: str = "mesa",
    output: str = "logits",
) -> Link:
    """Adds the divergence from the predictions of the averaged parameters to the losses.

    Args:
        apply: The model that the forward link runs, ``(params, model_state, inputs, key) -> (outputs, model_state)``.
            The average runs on the present stored statistics.
        weight: Of the loss: a number, a traced scalar, or an optax schedule of this link's updates.
        temperature: T > 0.
        decay: Of the average, in [0, 1], or a schedule of it; 0 is the previous update's model, 1 the first one.
        name: Name of the loss.
        output: The output that holds the logits.

    Returns:
        A loss link; it stands after `forward` and before the reduction. What it does is a function of its state and
        the record, so that an oracle may evaluate it at other parameters than the present ones. In evaluation it
        adds the same loss and leaves the average as it is.

    Raises:
        ValueError: If an option leaves its range, the output is missing, or the name is taken.

    References:
        Du et al. (2022).

    Example:
        >>> from jaxdiv import losses, objectives
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> objective = objectives.chain(
        ...     objectives.forward(apply),
        ...     objectives.loss(losses.cross_entropy, name="ce"),
        ...     objectives.mesa(apply, decay=0.99),
        ...     objectives.mean(),
        ... )
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True, open_high=True)
    if not callable(decay):
        checks.in_range("decay", decay, 0.0, 1.0)

    def init(params: Params, record: Record, key: Key) -> MesaState:
        select("mesa", record, output)

        def widen(leaf: Any) -> Array:
            # A copy, since the training state may be donated.
            leaf = jnp.array(leaf)
            half = leaf.dtype in (jnp.bfloat16, jnp.float16)
            return jax.lax.convert_element_type(leaf, jnp.float32 if half else leaf.dtype)

        return MesaState(jax.tree.map(widen, params), jnp.zeros((), jnp.int32))

    def update(params: Params, state: MesaState, record: Record, key: Key | None) -> tuple[Record, MesaState]:
        student = select("mesa", record, output)
        if name in record.losses:
            raise ValueError(f"link mesa: a loss {name!r} exists already; give another name=.")
        present = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, params))
        average = jax.tree.map(lambda kept, own: kept.astype(own.dtype), state.average, present)
        outputs, _ = jax.lax.stop_gradient(apply(average, record.model_state, record.inputs, None))
        teacher = outputs[output] if isinstance(outputs, Mapping) else outputs
        values = losses.kd(student, jax.lax.stop_gradient(teacher), temperature=temperature)
        values = resolve(weight, state.updates) * values
        share = resolve(decay, state.updates)

        def advance(kept: Array, own: Array) -> Array:
            inexact = jnp.issubdtype(kept.dtype, jnp.inexact)
            # In the average's dtype: 1 - decay is below the resolution of bfloat16.
            moved = share * kept + (1 - share) * own.astype(kept.dtype)
            return moved.astype(kept.dtype) if inexact else own

        record = record._replace(losses={**record.losses, name: values})
        return record, MesaState(jax.tree.map(advance, state.average, present), state.updates + 1)

    return Link(init, update)
