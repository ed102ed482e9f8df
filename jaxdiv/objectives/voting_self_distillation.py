"""Voting self-distillation: a model learns from the mean vote of what it was some updates ago.

With θ_1 … θ_M the parameters kept from earlier updates, z the logits and τ the temperature, an example adds

    weight · τ² KL( p_T ‖ softmax(z(θ) / τ) ),    p_T = (1/M) Σ_m softmax(z(θ_m) / (s τ)),

to the losses. All see the same minibatch; the teachers are constants and run in evaluation mode. A sharpening s < 1
makes each vote more decided before the votes are counted. Until M sets of parameters are kept, the loss is 0.

In differentiable architecture search θ holds the weights and the architecture parameters α, and the loss stands beside
the training loss of the supernet, not in the validation loss that moves α. It flattens the supernet's loss as a
function of α, so that less is lost when α becomes one-hot.

References:
    Zhu, Li, Liu, Wang (2023), Improving Differentiable Architecture Search via Self-Distillation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv import losses
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Key, Numeric, Params
from jaxdiv.objectives.record import Link, Option, Record, resolve, select


class VotingState(NamedTuple):
    """State of the link.

    Attributes:
        teachers: Parameters and model state of M earlier updates, leaves [M, ...].
        updates: Number of updates.
    """

    teachers: PyTree
    updates: Int[Array, ""]


def voting_self_distillation(
    apply: Apply,
    *,
    interval: int,
    num_teachers: int = 3,
    temperature: Numeric = 2.0,
    sharpening: Numeric = 1.0,
    weight: Option = 1.0,
    name: str = "self_distillation",
    output: str = "logits",
) -> Link:
    """Adds the divergence from the mean vote of earlier copies of the model to the losses.

    Args:
        apply: The model that the forward link runs, ``(params, model_state, inputs, key) -> (outputs, model_state)``.
        interval: Every `interval`-th update keeps the parameters that it starts from; the updates of an epoch.
        num_teachers: Number M of copies that vote, the latest ones. The state takes M times the parameters.
        temperature: τ > 0, of student and teachers.
        sharpening: s > 0, a factor on the teachers' temperature.
        weight: Of the loss: a number, a traced scalar, or an optax schedule of this link's updates.
        name: Name of the loss.
        output: The output that holds the logits.

    Returns:
        A loss link; it stands after `forward` and before the reduction. What it does is a function of its state and
        the record, so that an oracle may evaluate it at other parameters than the present ones.

    Raises:
        ValueError: If a count is below 1, temperature or sharpening is not positive, the output is missing or not
            floating, or the name is taken.

    References:
        Zhu, Li, Liu, Wang (2023).

    Example:
        >>> import jax
        >>> from jaxdiv import objectives
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> objective = objectives.chain(
        ...     objectives.forward(apply),
        ...     objectives.voting_self_distillation(apply, interval=1, num_teachers=1),
        ...     objectives.mean(),
        ... )
        >>> batch, key = {"inputs": jnp.eye(3)}, jax.random.key(0)
        >>> state = objective.init(jnp.eye(3), batch, key)
        >>> values = []
        >>> for scale in (1.0, 1.0, 2.0):
        ...     value, (state, _) = objective.apply(scale * jnp.eye(3), state, batch, key)
        ...     values.append(round(float(value), 3))
        >>> values
        [0.0, 0.0, 0.125]
    """
    for option, count in (("interval", interval), ("num_teachers", num_teachers)):
        if count < 1:
            raise ValueError(f"{option} must be at least 1; got {count}.")
    for option, value in (("temperature", temperature), ("sharpening", sharpening)):
        checks.in_range(option, value, 0.0, open_low=True, open_high=True)

    def init(params: Params, record: Record, key: Key) -> VotingState:
        select("voting_self_distillation", record, output)

        def empty(leaf: Any) -> Array:
            return jnp.zeros((num_teachers, *leaf.shape), leaf.dtype)

        teachers = jax.tree.map(empty, (jax.tree.map(jnp.asarray, params), record.model_state))
        return VotingState(teachers, jnp.zeros((), jnp.int32))

    def vote(teachers: PyTree, like: PyTree, inputs: PyTree) -> Float[Array, "B C"]:
        """Logits of the mean vote at the temperature τ."""

        def logits_of(teacher: PyTree) -> Array:
            params, model_state = jax.tree.map(lambda kept, own: kept.astype(own.dtype), teacher, like)
            outputs, _ = apply(params, model_state, inputs, None)
            return outputs[output] if isinstance(outputs, Mapping) else outputs

        logits = checks.floating("link voting_self_distillation: logits", jax.vmap(logits_of)(teachers))
        votes = jax.nn.log_softmax(logits / (sharpening * temperature), axis=-1)
        return temperature * (jax.nn.logsumexp(votes, axis=0) - jnp.log(num_teachers))

    def update(
        params: Params, state: VotingState, record: Record, key: Key | None
    ) -> tuple[Record, VotingState]:
        student = select("voting_self_distillation", record, output)
        if name in record.losses:
            raise ValueError(
                f"link voting_self_distillation: a loss {name!r} exists already; give another name=."
            )
        present = jax.lax.stop_gradient((jax.tree.map(jnp.asarray, params), record.model_state))
        complete = state.updates >= num_teachers * interval
        teacher = vote(*jax.lax.stop_gradient((state.teachers, present, record.inputs)))
        # Kept apart, since what a model makes of parameters that are not there yet may be NaN.
        teacher = jnp.where(complete, teacher, 0.0)
        values = losses.kd(student, teacher, temperature=temperature)
        values = resolve(weight, state.updates) * jnp.where(complete, values, 0.0)
        # An update that keeps nothing writes outside of the ring.
        kept = (state.updates + 1) % interval == 0
        slot = jnp.where(kept, state.updates // interval % num_teachers, num_teachers)
        teachers = jax.tree.map(
            lambda ring, own: ring.at[slot].set(own.astype(ring.dtype), mode="drop"), state.teachers, present
        )
        record = record._replace(losses={**record.losses, name: values})
        return record, VotingState(teachers, state.updates + 1)

    return Link(init, update)
