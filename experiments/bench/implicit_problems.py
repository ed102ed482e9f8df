"""The regressions of the implicit bench, their inner solver, and their exact hypergradients.

The inner problem is min_y mean loss(X y, t) + Σ_j e^θ_j y_j² / 2, the outer one the mean loss on validation data. With
H the inner Hessian at the root y and g the outer gradient there, the hypergradient is −e^θ ∘ y ∘ H⁻¹ g.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import implicit

Data = tuple[Any, Any]
"""Features [n, d] and targets [n]."""

# The mean of a target given the score z, and its derivative.
MEANS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "ridge": lambda z: (z, np.ones_like(z)),
    "logistic": lambda z: (p := 1 / (1 + np.exp(-z)), p * (1 - p)),
}
PENALTIES = {"ridge": {"strong": -1.0, "weak": -5.0}, "logistic": {"strong": -3.0, "weak": -7.0}}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A regression and its log penalties; arrays in float64."""

    kind: str
    name: str
    theta: np.ndarray
    train: Data
    valid: Data


def problem(kind: str, strength: str, rows: int, features: int, seed: int) -> Problem:
    """Gaussian features, neighbours correlated by a half, and targets from a linear score of variance about 4."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows + rows // 4, features))
    for j in range(1, features):
        x[:, j] = 0.5 * x[:, j - 1] + np.sqrt(0.75) * x[:, j]
    z = x @ rng.normal(size=features) * 2 / np.sqrt(features)
    if kind == "ridge":
        t = z + rng.normal(size=len(z))
    else:
        t = (rng.uniform(size=len(z)) < MEANS[kind](z)[0]).astype(float)
    theta = np.full(features, PENALTIES[kind][strength])
    return Problem(kind, f"{kind}, {strength} penalty", theta, (x[:rows], t[:rows]), (x[rows:], t[rows:]))


def loss(kind: str) -> Callable[[jax.Array, Data], jax.Array]:
    """The mean loss of coefficients on data."""

    def of(y: jax.Array, data: Data) -> jax.Array:
        x, t = data
        z = x @ y
        return jnp.mean((z - t) ** 2 / 2 if kind == "ridge" else jax.nn.softplus(z) - t * z)

    return of


def condition(kind: str) -> Callable[..., Any]:
    """The optimality function ``(y, theta, data)``."""
    fit = loss(kind)
    return implicit.stationarity(lambda y, theta, data: fit(y, data) + jnp.sum(jnp.exp(theta) * y**2) / 2)


def descend(case: Problem, steps: int) -> Callable[..., jax.Array]:
    """The inner solver ``(init, theta, data)``: gradient descent with the step that suits the largest curvature."""
    gradient = condition(case.kind)
    x = case.train[0]
    curvature = np.linalg.norm(x, 2) ** 2 / len(x) * MEANS[case.kind](np.zeros(1))[1][0]
    rate = float(1 / (curvature + np.exp(case.theta.max())))

    def solver(init: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
        move = lambda y, _: (y - rate * gradient(y, theta, data), None)  # noqa: E731
        return jax.lax.scan(move, init, None, steps)[0]

    return solver


def exact(case: Problem, theta: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The root by Newton's method from y, and the hypergradient, with dense float64 matrices."""
    (x, t), (xv, tv), lam = case.train, case.valid, np.exp(theta)
    step = np.full_like(y, np.inf)
    while not np.linalg.norm(step) < 1e-6 * np.linalg.norm(y):  # the error after it is its square
        mean, slope = MEANS[case.kind](x @ y)
        hessian = (x.T * slope) @ x / len(t) + np.diag(lam)
        step = np.linalg.solve(hessian, x.T @ (mean - t) / len(t) + lam * y)
        y = y - step
    hessian = (x.T * MEANS[case.kind](x @ y)[1]) @ x / len(t) + np.diag(lam)
    outer = xv.T @ (MEANS[case.kind](xv @ y)[0] - tv) / len(tv)
    return y, -lam * y * np.linalg.solve(hessian, outer)


@functools.cache
def route(case: Problem, steps: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Penalties, roots and hypergradients along a descent of at most 0.1 a step in the log penalties."""
    points, theta, y = [], case.theta, np.zeros_like(case.theta)
    for _ in range(steps):
        y, gradient = exact(case, theta, y)
        points.append((theta, y, gradient))
        theta = theta - 0.1 * gradient / np.abs(gradient).max()
    return points
