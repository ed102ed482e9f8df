"""The forward link: runs the model once and puts its outputs into the record."""

from collections.abc import Mapping

from flax import nnx

from jaxdiv import nn
from jaxdiv.core.types import Apply, Key, Params, State
from jaxdiv.objectives.record import Link, Record


def forward(model: Apply | nnx.Module, *, model_state: State = ()) -> Link:
    """Runs the model on the record's inputs.

    Args:
        model: ``apply(params, model_state, inputs, key) -> (outputs, model_state)``, or a flax nnx module,
            whose parameters are then ``nnx.state(module, nnx.Param)`` (see `jaxdiv.nn.functional`).
        model_state: First state of a functional model, e.g. batch statistics; a module brings its own.

    Returns:
        A link whose state is the model state. An array from the model becomes ``{"logits": array}``.
        In evaluation (``key=None``) the model runs without dropout and on stored statistics.

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
        if model_state != ():
            raise ValueError("model_state must not be given for an nnx module; the module brings its own.")
        apply, _, model_state = nn.functional(model)
    else:
        apply = model

    def init(params: Params, record: Record, key: Key) -> State:
        return model_state

    def update(params: Params, state: State, record: Record, key: Key | None) -> tuple[Record, State]:
        outputs, state = apply(params, state, record.inputs, key)
        named = dict(outputs) if isinstance(outputs, Mapping) else {"logits": outputs}
        return record._replace(outputs={**record.outputs, **named}, model_state=state), state

    return Link(init, update)
