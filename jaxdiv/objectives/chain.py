"""Chains of links: losses with memory, built as optax builds optimizers.

A chain passes one record through its links, in the order

    input links - forward - target links - loss links - weight links - reduction - regularizers

and returns the sum of the record's terms.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxdiv.core.types import Aux, Batch, Key, Params, Scalar, State
from jaxdiv.objectives.record import Link, from_batch


class Objective(NamedTuple):
    """A loss with memory, the loss-side twin of `optax.GradientTransformation`.

    Attributes:
        init: ``(params, batch, key) -> state``; only the batch's shapes and dtypes are read.
        apply: ``(params, state, batch, key) -> (value, (state, aux))``; ``key=None`` is evaluation, which
            leaves the state as it is.
    """

    init: Callable[[Params, Batch, Key], State]
    apply: Callable[[Params, State, Batch, Key | None], tuple[Scalar, tuple[State, Aux]]]


def chain(*links: Link) -> Objective:
    """Chains links into an objective.

    Args:
        *links: The links in the order in which the record passes them.

    Returns:
        The objective. Its state is a tuple with one entry per link.

    Raises:
        ValueError: If there are no links, or per-example losses reach the end without a reduction.

    Example:
        >>> import jax, optax
        >>> from jaxdiv import objectives
        >>> objective = objectives.chain(
        ...     objectives.forward(lambda params, state, x, key: (x @ params, state)),
        ...     objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
        ...     objectives.mean(),
        ... )
        >>> params = jnp.zeros((4, 3))
        >>> batch = {"inputs": jnp.ones((8, 4)), "targets": jnp.zeros(8, jnp.int32)}
        >>> state = objective.init(params, batch, jax.random.key(0))
        >>> value, (state, aux) = objective.apply(params, state, batch, jax.random.key(1))
        >>> round(float(value), 4), list(aux["terms"])
        (1.0986, ['ce'])
    """
    if not links:
        raise ValueError("chain must get at least one link; got none.")

    def init(params: Params, batch: Batch, key: Key) -> State:
        record = jax.eval_shape(from_batch, dict(batch))
        states = []
        for position, link in enumerate(links):
            states.append(link.init(params, record, jax.random.fold_in(key, position)))
            record, _ = jax.eval_shape(link.update, params, states[-1], record, key)
        return tuple(states)

    def apply(
        params: Params, state: State, batch: Batch, key: Key | None
    ) -> tuple[Scalar, tuple[State, Aux]]:
        record = from_batch(batch)
        states = []
        for position, (link, link_state) in enumerate(zip(links, state, strict=True)):
            link_key = None if key is None else jax.random.fold_in(key, position)
            record, link_state = link.update(params, link_state, record, link_key)
            states.append(link_state)
        pending = sorted(set(record.losses) - set(record.extras.get("reduced", {})))
        if pending:
            raise ValueError(
                f"chain ended with the losses {pending} not reduced; add a reduction such as "
                "objectives.mean() after them (one of your own gets them from objectives.take_losses)."
            )
        if not record.terms:
            raise ValueError(
                "chain ended without a term to minimize; "
                "add a loss and a reduction such as objectives.mean() after it."
            )
        aux = Aux(terms=record.terms, losses=record.losses, metrics=record.extras.get("metrics", {}))
        value = functools.reduce(operator.add, record.terms.values())
        return value, (state if key is None else tuple(states), aux)

    return Objective(init, apply)
