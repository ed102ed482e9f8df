"""The plain oracle: the gradient itself, by one reverse pass."""

import jax

from jaxdiv.core.types import Batch, Key, LossFn, Params, State
from jaxdiv.oracles.oracle import Evaluation, Oracle


def plain() -> Oracle:
    """Evaluates the loss and its gradient once.

    Returns:
        A stateless oracle that costs one gradient evaluation.

    Example:
        >>> import jax
        >>> from jaxdiv import oracles
        >>> loss_fn = lambda params, state, batch, key: (params**2, (state, {"terms": {}}))
        >>> _, gradient, _, _ = oracles.plain().value_and_grad(loss_fn, 3.0, (), (), {}, jax.random.key(0))
        >>> float(gradient)
        6.0
    """

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        (value, (loss_state, aux)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            params, loss_state, batch, key
        )
        return (value, aux), gradient, oracle_state, loss_state

    return Oracle(init=lambda params: (), value_and_grad=value_and_grad)
