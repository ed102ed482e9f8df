"""Hard mini-batches: most of the training goes to the mini-batches of highest loss.

The data are split once into K mini-batches. Each has a recorded loss L_k, that of its last visit or a moving average
of its visits. After a first pass over all of them, a pass goes over the ⌈δK⌉ mini-batches of highest recorded loss
alone, in random order:

    mode "next_epoch"   every pass from the second on,
    mode "extra"        every second pass, in between come all.

The losses are those of the training steps themselves; a mini-batch that is not visited keeps its old one. This is one
reading of the paper's abstract, which leaves open which of the two modes is meant and whether losses are computed anew.

References:
    Can we learn better with hard samples? (2023), arXiv 2304.03486; abstract only.
"""

import math
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Key
from jaxdiv.sampling.sampler import Sampler

Mode: TypeAlias = Literal["next_epoch", "extra"]


class HardMinibatchesState(NamedTuple):
    """State of the sampler.

    Attributes:
        seed: Words of the key.
        batches: The mini-batches, as indices.
        owner: Which of them each example was dealt to.
        losses: Recorded loss of each; infinite before the first visit, so that all of them come first.
        passes: Number of the pass, from 0.
        queue: Mini-batches of this pass in the order of their visits, filled up with −1.
        position: How many of these are drawn.
    """

    seed: Int[np.ndarray, " words"]
    batches: Int[np.ndarray, "K B"]
    owner: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " K"]
    passes: Int[np.ndarray, ""]
    queue: Int[np.ndarray, " K"]
    position: Int[np.ndarray, ""]


def hard_minibatches(
    batch_size: int,
    delta: float = 0.5,
    *,
    mode: Mode = "next_epoch",
    decay: float = 0.0,
    refresh_every: int | None = None,
    shuffle: bool = True,
) -> Sampler:
    """Deals fixed mini-batches, those of high loss more often.

    Args:
        batch_size: Examples a batch, at most as many as there are. Where it does not divide their number, the last
            mini-batch is filled up with examples of the first.
        delta: δ, the share of the mini-batches that is selected. With 1 all are visited in every pass, in the order in
            which a smaller δ would visit its part of them.
        mode: Whether the selected ones replace the passes over everything, or come after each of them.
        decay: Weight of the old loss when a new one is recorded; 0 keeps the last one.
        refresh_every: In mode ``"next_epoch"``, every so many passes all are visited, so that no loss is older.
        shuffle: Whether the split is random; else it cuts the data in their order.

    Returns:
        A sampler. `train.fit` records at the ends of chunks: where these are the ends of passes too, each selection
        knows all losses of the pass before.

    Raises:
        ValueError: If `batch_size` is below 1 or above the size of the data, `delta` leaves (0, 1], `decay`
            [0, 1), or `refresh_every` is below 1.

    Note:
        Noisy labels make high losses too, and then fill the selected mini-batches.

    Example:
        >>> sampler = hard_minibatches(1, 0.5, shuffle=False)
        >>> state = sampler.init(4, jax.random.key(0))
        >>> for _ in range(4):
        ...     index, state = sampler.draw(state)
        ...     state = sampler.record(state, index, index.astype(float))
        >>> first, state = sampler.draw(state)
        >>> second, state = sampler.draw(state)
        >>> sorted([*first.tolist(), *second.tolist()])
        [2, 3]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    checks.in_range("delta", delta, 0.0, 1.0, open_low=True)
    checks.in_range("decay", decay, 0.0, 1.0, open_high=True)
    checks.one_of("mode", mode, get_args(Mode))
    if refresh_every is not None and refresh_every < 1:
        raise ValueError(f"refresh_every must be at least 1; got {refresh_every}.")

    full_every = 2 if mode == "extra" else refresh_every

    def queue(seed: np.ndarray, passes: int, losses: np.ndarray) -> np.ndarray:
        k = len(losses)
        order = np.random.default_rng([*seed.tolist(), 1, passes]).permutation(k)
        if passes and (full_every is None or passes % full_every):
            # Stable: of equal losses the lower number is taken.
            hardest = np.argsort(-losses, kind="stable")[: math.ceil(delta * k)]
            order = order[np.isin(order, hardest)]
        return np.pad(order, (0, k - len(order)), constant_values=-1).astype(np.int32)

    def init(n: int, key: Key) -> HardMinibatchesState:
        if batch_size > n:
            raise ValueError(f"batch_size must be at most the number of examples, {n}; got {batch_size}.")
        seed = np.asarray(jax.random.key_data(key))
        order = np.random.default_rng([*seed.tolist(), 0]).permutation(n) if shuffle else np.arange(n)
        k = math.ceil(n / batch_size)
        batches = np.resize(order, (k, batch_size)).astype(np.int32)
        owner = np.empty(n, np.int32)
        owner[order] = np.arange(n) // batch_size
        losses = np.full(k, np.inf)
        return HardMinibatchesState(
            seed, batches, owner, losses, np.array(0), queue(seed, 0, losses), np.array(0)
        )

    def draw(state: HardMinibatchesState) -> tuple[np.ndarray, HardMinibatchesState]:
        position = int(state.position)
        if position == len(state.queue) or state.queue[position] < 0:
            passes, position = int(state.passes) + 1, 0
            state = state._replace(passes=np.array(passes), queue=queue(state.seed, passes, state.losses))
        index = state.batches[state.queue[position]].copy()
        return index, state._replace(position=np.array(position + 1))

    def record(
        state: HardMinibatchesState, index: Int[np.ndarray, " B"], losses: Float[np.ndarray, " B"]
    ) -> HardMinibatchesState:
        # The first example is a mini-batch's own, also in the last one, which is filled up.
        k = state.owner[index[0]]
        new, old = float(np.mean(losses)), state.losses[k]
        recorded = state.losses.copy()
        recorded[k] = new if np.isinf(old) else decay * old + (1 - decay) * new
        return state._replace(losses=recorded)

    return Sampler(init, draw, record)
