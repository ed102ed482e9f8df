"""Training steps: an objective, an oracle and an optax transform, composed."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdiv.core import strong
from jaxdiv.core.types import Batch, Key, Params, Scalar, State
from jaxdiv.objectives import Objective
from jaxdiv.oracles import Oracle

Metrics: TypeAlias = dict[str, Any]
"""``"value"``, ``"terms"`` and ``"metrics"`` by name, and ``"losses"`` [B]: the sum of the named losses."""


class TrainState(NamedTuple):
    """Everything a step needs and nothing else.

    Attributes:
        params: The parameters.
        loss_state: State of the objective.
        oracle_state: State of the oracle.
        opt_state: State of the optax transform.
        key: The one key; each step folds in its count.
        step: Number of steps taken, int32.
    """

    params: Params
    loss_state: State
    oracle_state: State
    opt_state: State
    key: Key
    step: Int[Array, ""]


def _is_inexact(leaf: Any) -> bool:
    # Not eqx.is_inexact_array, to which the numpy arrays of a state fetched to the host are none.
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


Init: TypeAlias = Callable[[Params, Batch, Key], TrainState]
Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(objective: Objective, oracle: Oracle, tx: optax.GradientTransformation) -> tuple[Init, Step]:
    """Composes an objective, an oracle and a transform into a pure training step.

    Args:
        objective: What is minimized.
        oracle: How its gradient is obtained.
        tx: How the parameters move. It gets the extra arguments `value`, `grad` and `value_fn`, so optax's
            line searches work.

    Returns:
        ``(init, step)`` with ``init(params, batch, key) -> TrainState``, which reads only the batch's shapes,
        and ``step(state, batch) -> (state, metrics)``. Neither is compiled: wrap `step` in `jax.jit`, or
        hand it to `fit`. Only inexact leaves of the parameters are differentiated and moved.

    Example:
        >>> import jax, optax
        >>> from jaxdiv import objectives, oracles, train
        >>> objective = objectives.chain(
        ...     objectives.forward(lambda params, state, x, key: (x @ params, state)),
        ...     objectives.loss(optax.softmax_cross_entropy_with_integer_labels, name="ce"),
        ...     objectives.mean(),
        ... )
        >>> init, step = train.make_step(objective, oracles.plain(), optax.adam(0.1))
        >>> batch = {"inputs": jnp.eye(4), "targets": jnp.arange(4) % 3}
        >>> state = init(jnp.zeros((4, 3)), batch, jax.random.key(0))
        >>> for _ in range(20):
        ...     state, metrics = jax.jit(step)(state, batch)
        >>> bool(metrics["value"] < 0.1)
        True
    """
    tx_extra = optax.with_extra_args_support(tx)

    def init(params: Params, batch: Batch, key: Key) -> TrainState:
        params = jax.tree.map(jnp.asarray, params)
        moving, _ = eqx.partition(params, _is_inexact)
        if not jax.tree.leaves(moving):
            raise ValueError(
                "params must hold at least one floating leaf to train; "
                f"got {jax.tree.map(lambda leaf: leaf.dtype, params)}."
            )
        init_key, key = jax.random.split(key)
        state = TrainState(
            params=params,
            loss_state=objective.init(params, batch, init_key),
            oracle_state=oracle.init(moving),
            opt_state=tx_extra.init(moving),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )
        return strong(state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        moving, fixed = eqx.partition(state.params, _is_inexact)

        def loss_fn(moving: Params, loss_state: State, batch: Batch, key: Key) -> Any:
            return objective.apply(eqx.combine(moving, fixed), loss_state, batch, key)

        def value_fn(moving: Params) -> Scalar:
            return loss_fn(moving, state.loss_state, batch, key)[0]

        (value, aux), gradient, oracle_state, loss_state = oracle.value_and_grad(
            loss_fn, moving, state.oracle_state, state.loss_state, batch, key
        )
        updates, opt_state = tx_extra.update(
            gradient, state.opt_state, moving, value=value, grad=gradient, value_fn=value_fn
        )
        params = eqx.combine(optax.apply_updates(moving, updates), fixed)
        new_state = TrainState(params, loss_state, oracle_state, opt_state, state.key, state.step + 1)
        losses = list(aux["losses"].values())
        metrics = {"value": value, "terms": aux["terms"], "metrics": aux["metrics"]}
        if losses:
            metrics["losses"] = sum(losses[1:], start=losses[0])
        return new_state, metrics

    return init, step
