"""Random reshuffling: every example once before any comes again."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxdiv.core.types import Key
from jaxdiv.sampling.sampler import Sampler


class ShuffleState(NamedTuple):
    """State of the sampler.

    Attributes:
        seed: Words of the key.
        epoch: Which permutation is being dealt.
        position: How much of it is dealt.
        order: The permutation.
    """

    seed: Int[np.ndarray, " words"]
    epoch: Int[np.ndarray, ""]
    position: Int[np.ndarray, ""]
    order: Int[np.ndarray, " n"]


def _permutation(seed: np.ndarray, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([*seed.tolist(), epoch]).permutation(n).astype(np.int32)


def shuffle(batch_size: int) -> Sampler:
    """Deals the data in random order, reshuffled each time it is used up.

    Args:
        batch_size: Examples a batch. A batch that meets the end of a permutation is completed from the next
            one, so that all have one size and every example is dealt equally often.

    Returns:
        A sampler. With ``batch_size`` equal to the size of the data, every batch is the whole of it.

    Raises:
        ValueError: If `batch_size` is below 1 or above the size of the data.

    Example:
        >>> import jax
        >>> from jaxdiv import sampling
        >>> sampler = sampling.shuffle(2)
        >>> state = sampler.init(4, jax.random.key(0))
        >>> first, state = sampler.draw(state)
        >>> second, state = sampler.draw(state)
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")

    def init(n: int, key: Key) -> ShuffleState:
        if batch_size > n:
            raise ValueError(f"batch_size must be at most the number of examples, {n}; got {batch_size}.")
        seed = np.asarray(jax.random.key_data(key))
        return ShuffleState(seed, np.array(0), np.array(0), _permutation(seed, 0, n))

    def draw(state: ShuffleState) -> tuple[np.ndarray, ShuffleState]:
        end = int(state.position) + batch_size
        # A copy, so that a caller who writes into it does not change the state.
        index = state.order[int(state.position) : end].copy()
        n = len(state.order)
        if end >= n:
            epoch = int(state.epoch) + 1
            order = _permutation(state.seed, epoch, n)
            index = np.concatenate([index, order[: end - n]])
            state = state._replace(epoch=np.array(epoch), order=order)
            end -= n
        return index, state._replace(position=np.array(end))

    return Sampler(init, draw, record=lambda state, index, losses: state)
