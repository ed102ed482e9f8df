"""Full-batch training, the same for several seeds, as the small claims need it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from jaxdiv import nn, objectives, oracles, train
from jaxdiv.core.types import Batch, Key, Params

PLAIN = oracles.plain()


def stack(make: Callable[[int], PyTree], seeds: int) -> PyTree:
    """The trees of the seeds 0, 1, … stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(make, range(seeds)))


def models(make: Callable[[nnx.Rngs], nnx.Module], seeds: int) -> nn.Functional:
    """A model as a pure function, with one row of first parameters per seed."""
    model = nn.functional(make(nnx.Rngs(0)))
    return model._replace(params=stack(lambda seed: nn.functional(make(nnx.Rngs(seed))).params, seeds))


def each_seed(function: Callable[..., PyTree], seeds: int) -> Callable[..., PyTree]:
    """Compiles ``function(key, *arguments)`` and calls it for each row of the stacked arguments in turn."""

    @jax.jit
    def mapped(*arguments: PyTree) -> PyTree:
        keys = jax.random.split(jax.random.key(0), seeds)
        return jax.lax.map(lambda own: function(*own), (keys, *arguments))

    return mapped


def fit(
    objective: objectives.Objective,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    tx: optax.GradientTransformation,
    steps: int,
    oracle: oracles.Oracle = PLAIN,
    watch: Callable[[train.TrainState], Any] = lambda state: None,
) -> tuple[train.TrainState, Any]:
    """Takes `steps` full-batch steps; what `watch` saw before each of them is stacked beside the state."""
    init, step = train.make_step(objective, oracle, tx)

    def body(state: train.TrainState, _: None) -> tuple[train.TrainState, Any]:
        return step(state, batch)[0], watch(state)

    return jax.lax.scan(body, init(params, batch, key), length=steps)
