"""The protocol of oracles: how a value and a gradient are obtained."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxdiv.core.types import Aux, Batch, Key, LossFn, Params, Scalar, State

Evaluation: TypeAlias = tuple[tuple[Scalar, Aux], Params, State, State]
"""``((value, aux), gradient, oracle_state, loss_state)``."""


class Oracle(NamedTuple):
    """Obtains a value and a gradient from a loss; oracles wrap oracles.

    The loss state advances exactly once a call, from the evaluation at the unperturbed parameters.

    Attributes:
        init: ``(params) -> oracle_state``.
        value_and_grad: ``(loss_fn, params, oracle_state, loss_state, batch, key)
            -> ((value, aux), gradient, oracle_state, loss_state)``.
    """

    init: Callable[[Params], State]
    value_and_grad: Callable[[LossFn, Params, State, State, Batch, Key], Evaluation]
