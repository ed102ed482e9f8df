"""A weight link: fuses two losses by a ratio that a network learns for each example.

    α_i = σ(f_ω(Δ_i)),    first loss ← α_i · first loss,    second loss ← (1 - α_i) · second loss

with features Δ_i of the record, which are constants. The gradient by ω is ``α_i (1 - α_i)`` times the first loss
less the second, so that descent on the fused loss itself drives α to whichever of the two is smaller: ω is for an
outer loss, such as the held-out one after a step along the fused loss (`jaxdiv.bilevel.unrolled`).

References:
    Hu, Wu, Li, Ma, Chen, Yan, Wang, Liu (2024), Less or More From Teacher: Exploiting Trilateral Geometry For
    Knowledge Distillation, section 3 (which of its two losses α multiplies is a convention).
"""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Key, Params
from jaxdiv.objectives.record import Link, Record, raised, stateless


def learned_fusion(
    apply: Apply,
    features: Callable[[Record], PyTree],
    *,
    losses: tuple[str, str],
    where: Callable[[Params], Params],
    name: str = "ratio",
) -> Link:
    """Multiplies one of the record's losses by ``sigmoid(network(features))`` and another by one minus that.

    Args:
        apply: The network, ``(params, model_state, inputs, key) -> (outputs, model_state)``, without state of its
            own (it is called with ``()``). Its outputs are one number per example, [B] or [B, 1].
        features: Gives the network's inputs, leaves [B, ...], from the record; no gradient flows through them.
        losses: Names of the loss that the ratio multiplies and of the one that gets the rest.
        where: Picks the network's parameters from the chain's.
        name: Name under which the ratios [B] are left among the extras, e.g. for `metric`.

    Returns:
        A stateless link; it stands between the losses and the reduction.

    Raises:
        ValueError: If a loss is missing, the name is taken, or the network does not give one number per example.

    Example:
        One ratio for all examples, the sigmoid of a single number:

        >>> import jax.numpy as jnp
        >>> from jaxdiv import objectives
        >>> fusion = objectives.learned_fusion(
        ...     lambda params, state, x, key: (jnp.full(x.shape[0], params), state),
        ...     lambda record: record.outputs["logits"],
        ...     losses=("kd", "ce"), where=lambda params: params["ratio"],
        ... )
    """
    first, second = losses

    def update(params: Params, record: Record, key: Key | None) -> Record:
        missing = [loss for loss in losses if loss not in record.losses]
        if missing:
            raise ValueError(
                f"link learned_fusion needs the losses {first!r} and {second!r}; the record holds "
                f"{sorted(record.losses)}; put objectives.loss(..., name={missing[0]!r}) before it."
            )
        if name in {"inputs", "targets", *record.outputs, *record.extras}:
            raise ValueError(f"link learned_fusion: a field {name!r} exists already; give another name=.")
        inputs = jax.lax.stop_gradient(raised(features(record)))
        outputs, _ = apply(where(params), (), inputs, key)
        scores = checks.floating("link learned_fusion: the network's output", outputs)
        if scores.shape not in {record.weights.shape, (*record.weights.shape, 1)}:
            raise ValueError(
                f"link learned_fusion needs one number per example, shape {record.weights.shape}, from its "
                f"network; got {scores.shape}."
            )
        ratio = jax.nn.sigmoid(scores.reshape(record.weights.shape))
        fused = {first: ratio * record.losses[first], second: (1 - ratio) * record.losses[second]}
        return record._replace(losses={**record.losses, **fused}, extras={**record.extras, name: ratio})

    return stateless(update)
