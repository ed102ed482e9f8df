"""TGeo-KD: distillation whose ratio to the hard labels is learned per example from trilateral geometry.

    L_i = α_i τ² KL(T_i^τ ‖ S_i^τ) + (1 - α_i) CE(S_i, y_i),    α_i = σ(f_ω(Δ_i))

with the edges Δ_i between student, teacher, truth and the teacher's class mean (`losses.trilateral_features`). The
two levels are

    min_ω  CE of held-out examples at θ*(ω),    θ*(ω) ∈ argmin_θ mean_i L_i(θ, ω)

and the paper looks one step of gradient descent ahead: ``θ' = θ - η ∇_θ L(θ, ω)`` stands for θ*.

References:
    Hu, Wu, Li, Ma, Chen, Yan, Wang, Liu (2024), Less or More From Teacher: Exploiting Trilateral Geometry For
    Knowledge Distillation, section 3.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv import losses
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Key, Numeric, Params
from jaxdiv.objectives.learned_fusion import learned_fusion
from jaxdiv.objectives.loss import loss
from jaxdiv.objectives.record import Link, Record, select


class TGeoKDState(NamedTuple):
    """State of the link.

    Attributes:
        class_predictions: The teacher's mean prediction of each class [C, C].
        counts: States of the two loss links.
    """

    class_predictions: Float[Array, "C C"]
    counts: tuple[Any, Any]


def tgeo_kd(
    apply: Apply,
    class_predictions: Float[Array, "C C"],
    *,
    where: Callable[[Params], Params],
    temperature: Numeric = 4.0,
    output: str = "logits",
    target: str = "teacher",
) -> Link:
    """Adds the losses ``"kd"`` and ``"ce"``, fused by a learned ratio of each example.

    Args:
        apply: The fusion network, see `learned_fusion`; its inputs are the features [B, 5 C].
        class_predictions: The teacher's mean prediction of each class over the training set [C, C], see
            `losses.class_mean_predictions`.
        where: Picks the fusion network's parameters from the chain's, such as ``lambda params: params[0]`` of the
            pair (outer, inner).
        temperature: τ > 0 of the distillation loss.
        output: The student's logits.
        target: The teacher's logits, as `teacher` leaves them.

    Returns:
        A link that stands after `forward` and `teacher` and before the reduction, a mean (with a sum the
        look-ahead is as many times longer as there are examples). The ratios are left among the extras as
        ``"ratio"``.

    Raises:
        ValueError: If a field is missing, the targets are no labels, the table is not [C, C], or the network does
            not give one number per example.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxdiv import nn, objectives
        >>> student = nn.functional(nn.MLP((64, 32, 10), rngs=nnx.Rngs(0)))
        >>> fusion = nn.functional(nn.MLP((50, 16, 16, 1), rngs=nnx.Rngs(1)))
        >>> objective = objectives.chain(
        ...     objectives.forward(lambda params, *rest: student.apply(params[1], *rest)),
        ...     objectives.teacher(student.apply, student.params),
        ...     objectives.tgeo_kd(fusion.apply, jnp.full((10, 10), 0.1), where=lambda params: params[0]),
        ...     objectives.mean(),
        ... )
        >>> batch = {"inputs": jnp.ones((2, 64)), "targets": jnp.zeros(2, jnp.int32)}
        >>> params = (fusion.params, student.params)
        >>> state = objective.init(params, batch, jax.random.key(0))
        >>> sorted(objective.apply(params, state, batch, None)[1][1]["terms"])
        ['ce', 'kd']
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    distill = loss(
        functools.partial(losses.kd, temperature=temperature), name="kd", output=output, target=target
    )
    classify = loss(losses.cross_entropy, name="ce", output=output)

    def init(params: Params, record: Record, key: Key) -> TGeoKDState:
        # A copy, since the training state may be donated.
        table = jnp.array(checks.floating("link tgeo_kd: class_predictions", class_predictions))
        return TGeoKDState(table, (distill.init(params, record, key), classify.init(params, record, key)))

    def update(
        params: Params, state: TGeoKDState, record: Record, key: Key | None
    ) -> tuple[Record, TGeoKDState]:
        table = state.class_predictions
        classes = jnp.shape(select("tgeo_kd", record, output))[-1]
        if table.shape != (classes, classes):
            raise ValueError(
                f"link tgeo_kd needs class_predictions of shape {(classes, classes)}; got {table.shape}."
            )

        def features(record: Record) -> Float[Array, "B F"]:
            student, teacher, labels = (
                select("tgeo_kd", record, name) for name in (output, target, "targets")
            )
            labels = checks.integers("link tgeo_kd: targets", labels)
            return losses.trilateral_features(student, teacher, labels, table[labels])

        record, distilled = distill.update(params, state.counts[0], record, key)
        record, classified = classify.update(params, state.counts[1], record, key)
        fuse = learned_fusion(apply, features, losses=("kd", "ce"), where=where)
        record, _ = fuse.update(params, (), record, key)
        return record, TGeoKDState(table, (distilled, classified))

    return Link(init, update)
