"""A link that reports a number without minimizing it."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from jaxdiv.core.types import Key, Params
from jaxdiv.objectives.record import Link, Record, select, stateless, weighted_mean


def metric(
    fn: Callable[[Any, Any], Array], *, name: str, output: str = "logits", target: str = "targets"
) -> Link:
    """Reports ``fn(output, target)`` under ``aux["metrics"][name]``.

    Args:
        fn: Gives a scalar, or values [B] that are averaged under the weights.
        name: Name of the metric.
        output: What it looks at: a key of the outputs, or anything `select` finds.
        target: What it is compared with.

    Returns:
        A stateless link; it may stand anywhere after what it looks at.

    Example:
        >>> from jaxdiv import objectives
        >>> accuracy = objectives.metric(lambda z, y: 1.0 * (z.argmax(-1) == y), name="accuracy")
    """

    def update(params: Params, record: Record, key: Key | None) -> Record:
        link = f"metric({name!r})"
        value = jax.lax.stop_gradient(fn(select(link, record, output), select(link, record, target)))
        if value.ndim:
            value = weighted_mean(value, record.weights)
        return record._replace(
            extras={**record.extras, "metrics": {**record.extras.get("metrics", {}), name: value}}
        )

    return stateless(update)
