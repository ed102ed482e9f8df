"""The transport problems of the benchmark `experiments.bench.ot`, and their errors as we measure them.

Everything is numpy, so that the inputs and the judgment are the same for each library.
"""

import math
import os
from typing import NamedTuple

import jax
import numpy as np

from jaxdiv.testing import data

# Entropic strength of the small-epsilon problems: 1 / eta of Tang et al. (2024), with costs of at most 1.
EPSILON = 1 / 1200
# Numbers of a plan that are held at a time when an error is measured.
BLOCK = 2**24


class Matrix(NamedTuple):
    """A problem given by its cost matrix, in float64."""

    name: str
    cost: np.ndarray
    a: np.ndarray
    b: np.ndarray
    epsilon: float
    tol: float

    def error(self, plan: np.ndarray) -> float:
        """``|P1 - a|_1 + |P^T 1 - b|_1``, infinite where the plan holds anything but numbers."""
        error = np.abs(plan.sum(1) - self.a).sum() + np.abs(plan.sum(0) - self.b).sum()
        return float(error) if np.isfinite(error) else math.inf


class Clouds(NamedTuple):
    """Uniform weights on points in float32, one pair of clouds [n, d] or many [lanes, n, d]."""

    name: str
    x: np.ndarray
    y: np.ndarray
    epsilon: float
    tol: float
    gradient: bool = False

    @property
    def lanes(self) -> int:
        """How many pairs of clouds; 0 for one that is no batch."""
        return len(self.x) if self.x.ndim == 3 else 0

    def error(self, log_plan: tuple[np.ndarray, np.ndarray]) -> float:
        """The largest L1 error over the lanes, of the plan ``exp(u_i + v_j - C_ij / epsilon)``."""
        arrays = (self.x, self.y, *log_plan)
        lanes = arrays if self.lanes else tuple(z[None] for z in arrays)
        errors = [
            self._lane_error(*(z.astype(np.float64) for z in lane)) for lane in zip(*lanes, strict=True)
        ]
        return max(error if np.isfinite(error) else math.inf for error in errors)

    def _lane_error(self, x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
        columns, error, rows = np.zeros(len(y)), 0.0, max(BLOCK // len(y), 1)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            plan = np.exp(u[part, None] + v - squared_distances(x[part], y) / self.epsilon)
            error += np.abs(plan.sum(1) - 1 / len(x)).sum()
            columns += plan.sum(0)
        return float(error + np.abs(columns - 1 / len(y)).sum())


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``|x_i - y_j|^2`` [n, m]."""
    return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T, 0)


def random_costs(n: int, weights: str, seed: int) -> Matrix:
    """Costs U[0, 1]; weights U(0, 1) normalized, or uniform as in the assignment of Tang et al."""
    rng = np.random.default_rng(seed)
    cost = rng.random((n, n))
    a, b = (rng.random(n) if weights == "random" else np.ones(n) for _ in range(2))
    return Matrix(f"{weights} weights, n = {n}", cost, a / a.sum(), b / b.sum(), EPSILON, 1e-8)


def images(norm: str, seed: int) -> Matrix:
    """Two images as distributions on 28 x 28 pixels, with "L1" or "squared L2" distances of at most 1.

    MNIST from the folder that JAXDIV_DATA names, else scikit-learn's digits, enlarged.
    """
    folder = os.environ.get("JAXDIV_DATA")
    if folder:
        source, pixels = "MNIST", data.mnist(folder, seed)["train"]["inputs"][:2]
    else:
        small = data.digits(seed)["train"]["inputs"][:2].reshape(2, 8, 8)
        source, pixels = "digits", np.asarray(jax.image.resize(small, (2, 28, 28), "linear"))
    a, b = pixels.reshape(2, -1).astype(np.float64) + 0.01
    grid = np.stack(np.meshgrid(np.arange(28.0), np.arange(28.0)), -1).reshape(-1, 2)
    apart = np.abs(grid[:, None] - grid)
    cost = apart.sum(-1) if norm == "L1" else (apart**2).sum(-1)
    return Matrix(f"{source} pair, {norm}", cost / cost.max(), a / a.sum(), b / b.sum(), EPSILON, 1e-8)


def clouds(n: int, seed: int, *, dimension: int = 10, gradient: bool = False, lanes: int = 0) -> Clouds:
    """Normal x and ``0.7 normal + 0.5``, with epsilon = 0.05 times the mean cost.

    Lanes differ in size, from half to twice as large, under one epsilon: the costs of the last, and what it
    asks of the iterations, are 16 times those of the first.
    """
    rng = np.random.default_rng(seed)
    shape = (max(lanes, 1), n, dimension)
    x, y = rng.normal(size=shape), 0.7 * rng.normal(size=shape) + 0.5
    epsilon = 0.05 * float(squared_distances(x[0, :1000], y[0, :1000]).mean())
    if lanes:
        sizes = np.geomspace(0.5, 2, lanes)[:, None, None]
        x, y = sizes * x, sizes * y
    else:
        x, y = x[0], y[0]
    name = (f"vmap of {lanes}, " if lanes else "") + f"n = {n}" + (", gradient" if gradient else "")
    return Clouds(name, x.astype(np.float32), y.astype(np.float32), epsilon, 1e-3, gradient)
