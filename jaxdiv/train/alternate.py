"""Steps for several players that train in turn."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from jaxdiv.core.types import Batch
from jaxdiv.train.step import Metrics, Step, TrainState

Players: TypeAlias = dict[str, TrainState]


def alternate(
    players: Mapping[str, tuple[Step, int]],
) -> Callable[[Players, Batch], tuple[Players, Metrics]]:
    """Makes one step in which each player takes its own steps in turn.

    Args:
        players: For each name, in the order of play, a step of `make_step` and how often it is taken.

    Returns:
        ``step(states, batch) -> (states, metrics)`` over a dict of the players' states, fit for `fit`. A
        player's objective finds the others' current parameters as ``record.extras["shared"][name]``, which
        its gradient takes as constants; each player's own `init` wants a batch that holds them under
        ``batch["shared"]``. The repeated steps of one player see the same batch with new keys. Metrics are
        those of the last step of each player, its names prefixed ``"player/"``; the value is the sum of the
        players' values.

    Raises:
        ValueError: If there is no player, or a count below 1.

    Example:
        Two players of f(x, y) = x^2 / 2 + x y, of which x descends and y ascends:

        >>> import jax, optax
        >>> import jax.numpy as jnp
        >>> from jaxdiv import objectives, oracles, train
        >>> def player(value):
        ...     def update(params, record, key):
        ...         return record._replace(terms={"f": value(params, **record.extras["shared"])})
        ...     objective = objectives.chain(objectives.stateless(update))
        ...     return train.make_step(objective, oracles.plain(), optax.sgd(0.1))
        >>> init_x, step_x = player(lambda x, y: x**2 / 2 + x * y)
        >>> init_y, step_y = player(lambda y, x: -x * y)
        >>> batch, key = {"inputs": jnp.zeros(1)}, jax.random.key(0)
        >>> states = {
        ...     "x": init_x(1.0, {**batch, "shared": {"y": 0.0}}, key),
        ...     "y": init_y(0.0, {**batch, "shared": {"x": 1.0}}, key),
        ... }
        >>> step = train.alternate({"y": (step_y, 1), "x": (step_x, 2)})
        >>> states, metrics = jax.jit(step)(states, batch)
        >>> [round(float(states[name].params), 3) for name in ("y", "x")]
        [0.1, 0.791]
    """
    if not players:
        raise ValueError("players must name at least one player; got none.")
    for name, (_, count) in players.items():
        if count < 1:
            raise ValueError(f"player {name!r} must take at least 1 step; got {count}.")

    def step(states: Players, batch: Batch) -> tuple[Players, Metrics]:
        missing = sorted(set(players) - set(states))
        if missing:
            raise ValueError(
                f"states must hold every player's state; {missing} are missing of {list(players)}."
            )
        states = dict(states)
        metrics: dict[str, Any] = {"value": 0.0, "terms": {}, "metrics": {}}
        for name, (player_step, count) in players.items():
            shared = dict(batch.get("shared", {}))
            shared |= {other: state.params for other, state in states.items() if other != name}
            own_batch = {**batch, "shared": shared}

            def turn(
                state: TrainState, _: None, take: Step = player_step, batch: Batch = own_batch
            ) -> tuple[TrainState, Metrics]:
                return take(state, batch)

            states[name], stacked = jax.lax.scan(turn, states[name], length=count)
            last = jax.tree.map(lambda leaf: leaf[-1], stacked)
            metrics["value"] = metrics["value"] + last["value"]
            for group in ("terms", "metrics"):
                metrics[group] |= {f"{name}/{key}": value for key, value in last[group].items()}
        return states, metrics

    return step
