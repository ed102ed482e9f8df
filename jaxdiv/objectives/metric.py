"""A link that reports a number without minimizing it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv.core.types import Key, Params
from jaxdiv.objectives.record import Link, Record, raised, select, stateless, weighted_mean


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

    Raises:
        ValueError: If a field is missing, the name is taken, or `fn` gives neither a scalar nor [B].

    Example:
        >>> from jaxdiv import objectives
        >>> accuracy = objectives.metric(lambda z, y: 1.0 * (z.argmax(-1) == y), name="accuracy")
    """

    def update(params: Params, record: Record, key: Key | None) -> Record:
        link = f"metric({name!r})"
        values = jnp.asarray(fn(*(raised(select(link, record, field)) for field in (output, target))))
        if values.shape not in ((), record.weights.shape):
            raise ValueError(
                f"link {link} must give a scalar or one value per example, shape {record.weights.shape}; "
                f"got {values.shape}."
            )
        metrics = record.extras.get("metrics", {})
        if name in metrics:
            raise ValueError(f"link {link}: a metric of this name exists already; give another name=.")
        value = weighted_mean(values, record.weights) if values.ndim else values
        value = jax.lax.stop_gradient(value.astype(jnp.promote_types(value.dtype, jnp.float32)))
        return record._replace(extras={**record.extras, "metrics": {**metrics, name: value}})

    return stateless(update)
