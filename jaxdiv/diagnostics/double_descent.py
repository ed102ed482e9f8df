"""Scans model sizes for double descent: a test error that rises to a peak and falls again.

References:
    Belkin, Hsu, Ma, Mandal (2019), Reconciling modern machine-learning practice and the classical bias-variance
    trade-off. Liu, Flanigan (2023), Understanding the role of optimization in double descent.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxdiv.core.types import Key


class DoubleDescent(NamedTuple):
    """Errors over sizes.

    Attributes:
        sizes: As given. [k]
        train: Training errors. [k, seeds]
        test: Test errors. [k, seeds]
    """

    sizes: tuple[int, ...]
    train: Float[np.ndarray, "k seeds"]
    test: Float[np.ndarray, "k seeds"]

    def peak(self) -> tuple[int, float]:
        """The size with the highest median test error, and that error over the median of the largest size.

        The ratio is 1 where the largest size is the worst; heavy tails over seeds are why it is of medians.
        """
        medians = np.median(self.test, axis=1)
        worst = int(np.argmax(medians))
        return self.sizes[worst], float(medians[worst] / medians[-1])


def double_descent(
    train: Callable[[int, Key], tuple[Any, Any]], sizes: Sequence[int], *, num_seeds: int = 5, key: Key
) -> DoubleDescent:
    """Trains a model of each size with each seed.

    Args:
        train: ``(size, key) -> (train_error, test_error)``, any code; ``jax.jit`` with a static size compiles once
            for each size.
        sizes: Model sizes in increasing order, such as widths or numbers of features.
        num_seeds: Seeds; all sizes see the same keys, so that data drawn from them are the same.
        key: Random key.

    Returns:
        A `DoubleDescent`.

    Raises:
        ValueError: If there is no size or no seed, or an error is not a scalar.

    Example:
        >>> scan = double_descent(lambda size, key: (0.0, 1 / abs(size - 2.5)), (1, 2, 4), num_seeds=1,
        ...                       key=jax.random.key(0))
        >>> scan.peak()
        (2, 3.0)
    """
    if not len(sizes) or num_seeds < 1:
        raise ValueError(f"there must be a size and a seed; got {len(sizes)} sizes and {num_seeds} seeds.")
    keys = jax.random.split(key, num_seeds)
    errors = np.array([[[float(error) for error in train(size, own)] for own in keys] for size in sizes])
    return DoubleDescent(tuple(sizes), errors[..., 0], errors[..., 1])
