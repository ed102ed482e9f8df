"""What the commands share that print a table for people."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from scipy import stats


def terminal(width: int = 120) -> Console:
    """A console; of that width where the output is piped, where rich would take 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t), NaN for one value."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), math.nan
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean()), float(half)
