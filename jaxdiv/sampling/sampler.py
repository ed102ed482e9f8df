"""The protocol of samplers: which examples make the next batch. Samplers run on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdiv.core.types import Key, State


class Sampler(NamedTuple):
    """Chooses batches on the host.

    The state is a pytree of numpy arrays, so that it checkpoints with the training state.

    Attributes:
        init: ``(n, key) -> state`` for a data set of n examples.
        draw: ``(state) -> (index, state)``; index [B] int32.
        record: ``(state, index, losses) -> state``; told what the drawn examples cost, losses [B].
            `train.fit` tells it at the end of each chunk, in the order of the draws.
    """

    init: Callable[[int, Key], State]
    draw: Callable[[State], tuple[Int[np.ndarray, " B"], State]]
    record: Callable[[State, Int[np.ndarray, " B"], Float[np.ndarray, " B"]], State]
