"""A target link: the predictions of a fixed teacher."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv.core.types import Apply, Key, Params, State
from jaxdiv.objectives.record import Link, Record


class TeacherState(NamedTuple):
    """The teacher, in the state so that it shards, donates and checkpoints.

    Attributes:
        params: The teacher's parameters.
        model_state: Its stored statistics.
    """

    params: Params
    model_state: State


def teacher(
    apply: Apply,
    params: Params,
    model_state: State = (),
    *,
    name: str = "teacher",
    output: str = "logits",
) -> Link:
    """Runs a fixed teacher in evaluation mode on the record's inputs and keeps its output as an extra.

    Args:
        apply: The teacher, ``(params, model_state, inputs, key) -> (outputs, model_state)``.
        params: Its parameters; they get no gradient.
        model_state: Its stored statistics.
        name: Name under which the output is found, e.g. by ``loss(..., target="teacher")``.
        output: Which output to keep, where the teacher has several.

    Returns:
        A link that keeps a copy of the teacher in its state. Placed after `mixup` it sees the mixed
        inputs. No gradient passes its output, neither to its parameters nor to the inputs.

    Raises:
        ValueError: If the teacher has no such output, or the name is taken.

    Example:
        >>> from jaxdiv import objectives
        >>> link = objectives.teacher(lambda params, state, x, key: (x @ params, state), jnp.eye(3))
        >>> state = link.init(None, None, None)
        >>> record, _ = link.update(None, state, objectives.from_batch({"inputs": jnp.ones((2, 3))}), None)
        >>> record.extras["teacher"].shape
        (2, 3)
    """

    def init(student: Params, record: Record, key: Key) -> TeacherState:
        # A copy, since the training state may be donated.
        return TeacherState(*jax.tree.map(jnp.array, (params, model_state)))

    def update(
        student: Params, state: TeacherState, record: Record, key: Key | None
    ) -> tuple[Record, TeacherState]:
        outputs, _ = apply(jax.lax.stop_gradient(state.params), state.model_state, record.inputs, None)
        if isinstance(outputs, Mapping):
            if output not in outputs:
                raise ValueError(
                    f"link teacher({name!r}) needs the output {output!r}; the teacher has {sorted(outputs)}."
                )
            outputs = outputs[output]
        if name in {"inputs", "targets", *record.outputs, *record.extras}:
            raise ValueError(
                f"link teacher({name!r}): a field of this name exists already; give another name=."
            )
        return record._replace(extras={**record.extras, name: jax.lax.stop_gradient(outputs)}), state

    return Link(init, update)
