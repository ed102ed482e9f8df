"""Training on minibatches in a given order, as the claims on oracles need it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiv import objectives, oracles, train
from jaxdiv.core.types import Batch, Key, Params

PLAIN = oracles.plain()


def epochs(seed: int, *, examples: int, batch: int, count: int) -> np.ndarray:
    """Rows of each minibatch, int32 [steps, batch]: every epoch a permutation of its own, its rest left out."""
    rng, per_epoch = np.random.default_rng(seed), examples // batch
    rows = [rng.permutation(examples)[: per_epoch * batch] for _ in range(count)]
    return np.concatenate(rows).reshape(-1, batch).astype(np.int32)


def fit(
    objective: objectives.Objective,
    params: Params,
    data: Batch,
    key: Key,
    *,
    tx: optax.GradientTransformation,
    order: np.ndarray,
    oracle: oracles.Oracle = PLAIN,
) -> train.TrainState:
    """Takes one step on each row of `order`; the batch's index is that row."""
    init, step = train.make_step(objective, oracle, tx)

    def gather(rows):
        return {"index": rows, **{name: jnp.asarray(entry)[rows] for name, entry in data.items()}}

    def body(state, rows):
        return step(state, gather(rows))[0], None

    return jax.lax.scan(body, init(params, gather(order[0]), key), order)[0]
