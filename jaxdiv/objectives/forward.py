"""The forward link: runs the model once and puts its outputs into the record."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiv import nn
from jaxdiv.core.types import Apply, Key, Params, State
from jaxdiv.objectives.record import Link, Record


def _first(leaf: Any) -> jax.Array:
    # A copy, since the training state may be donated, and of a final dtype, since Python numbers have none.
    leaf = jnp.array(leaf)
    return (
        leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jax.lax.convert_element_type(leaf, leaf.dtype)
    )


def forward(model: Apply | nnx.Module, *, model_state: State = ()) -> Link:
    """Runs the model on the record's inputs.

    Args:
        model: ``apply(params, model_state, inputs, key) -> (outputs, model_state)``, or a flax nnx module,
            whose parameters are then ``nnx.state(module, nnx.Param)`` (see `jaxdiv.nn.functional`).
        model_state: First state of a functional model, e.g. batch statistics; a module brings its own.

    Returns:
        A link whose state is the model state. An array from the model becomes ``{"logits": array}``.
        In evaluation (``key=None``) the model runs without dropout and on stored statistics. Statistics
        of a batch count its padding, which stands in as copies of the first present row.

    Raises:
        ValueError: If both a module and a `model_state` are given.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxdiv import objectives
        >>> module = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> link = objectives.forward(module)
        >>> record = objectives.from_batch({"inputs": jnp.ones((2, 4))})
        >>> record, _ = link.update(nnx.state(module, nnx.Param), (), record, None)
        >>> record.outputs["logits"].shape
        (2, 3)
    """
    if isinstance(model, nnx.Module):
        if jax.tree.leaves(model_state):
            raise ValueError("model_state must not be given for an nnx module; the module brings its own.")
        apply, _, model_state = nn.functional(model)
    else:
        apply = model

    def init(params: Params, record: Record, key: Key) -> State:
        return jax.tree.map(_first, model_state)

    def update(params: Params, state: State, record: Record, key: Key | None) -> tuple[Record, State]:
        outputs, state = apply(params, state, record.inputs, key)
        named = dict(outputs) if isinstance(outputs, Mapping) else {"logits": outputs}
        return record._replace(outputs={**record.outputs, **named}, model_state=state), state

    return Link(init, update)
