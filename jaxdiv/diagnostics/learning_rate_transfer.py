"""Scans widths and learning rates: whether the best learning rate of a small model is that of a large one.

References:
    Yang, Hu, et al. (2022), Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer.
    Noci, Meterez, Hofmann, Orvieto (2024), Why do learning rates transfer? Reconciling optimization and scaling
    limits for deep learning.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxdiv.core.types import Key


class LearningRateTransfer(NamedTuple):
    """Final losses over widths and learning rates.

    Attributes:
        widths: As given. [w]
        learning_rates: As given. [l]
        losses: Final losses; infinite where training did not end finite. [w, l, seeds]
    """

    widths: tuple[int, ...]
    learning_rates: tuple[float, ...]
    losses: Float[np.ndarray, "w l seeds"]

    def best(self) -> Float[np.ndarray, " w"]:
        """The learning rate with the smallest median loss at each width."""
        return np.asarray(self.learning_rates)[np.argmin(np.median(self.losses, axis=2), axis=1)]

    def drift(self) -> float:
        """The slope of log best learning rate over log width: 0 where it transfers, −1 where it falls as 1/width."""
        return float(np.polyfit(np.log(self.widths), np.log(self.best()), 1)[0])

    def regret(self) -> Float[np.ndarray, " w"]:
        """What each width loses, in median loss, by the learning rate that is best at the smallest width."""
        medians = np.median(self.losses, axis=2)
        return medians[:, np.argmin(medians[0])] - medians.min(axis=1)


def learning_rate_transfer(
    train: Callable[[int, float, Key], Any],
    widths: Sequence[int],
    learning_rates: Sequence[float],
    *,
    num_seeds: int = 3,
    key: Key,
) -> LearningRateTransfer:
    """Trains a model of each width with each learning rate and seed.

    Args:
        train: ``(width, learning_rate, key) -> loss``, any code; ``jax.jit`` with a static width compiles once for
            each width.
        widths: At least two, in increasing order.
        learning_rates: In increasing order, positive.
        num_seeds: Seeds; all runs see the same keys.
        key: Random key.

    Returns:
        A `LearningRateTransfer`.

    Raises:
        ValueError: If there are fewer than two widths, no learning rate, or no seed.

    Example:
        >>> scan = learning_rate_transfer(lambda width, rate, key: abs(rate - 1 / width), (1, 2, 4), (0.25, 0.5, 1.0),
        ...                               num_seeds=1, key=jax.random.key(0))
        >>> scan.best().tolist(), round(scan.drift(), 3)
        ([1.0, 0.5, 0.25], -1.0)
    """
    if len(widths) < 2 or not len(learning_rates) or num_seeds < 1:
        raise ValueError(
            f"there must be two widths, a learning rate and a seed; got {len(widths)}, {len(learning_rates)} "
            f"and {num_seeds}."
        )
    keys = jax.random.split(key, num_seeds)
    losses = np.array(
        [[[float(train(width, rate, own)) for own in keys] for rate in learning_rates] for width in widths]
    )
    return LearningRateTransfer(
        tuple(widths), tuple(learning_rates), np.where(np.isfinite(losses), losses, np.inf)
    )
