"""Largest eigenvalues and trace of the Hessian of a loss, in units of the weights if asked for.

With c = 1 or c = |w| elementwise, both are of diag(c) H diag(c), H = ∂²L(w): the adaptive ones do not change when a
rescaling of the weights keeps the function. At a critical point they give sharpness to second order in ρ,

    max_{‖δ ⊘ c‖_2 ≤ ρ} L(w + δ) − L(w) ≈ (ρ²/2) λ_max,     E_{δ ~ N(0, ρ² diag(c²))} [L(w + δ) − L(w)] ≈ (ρ²/2) tr.

References:
    Andriushchenko, Croce, Müller, Hein, Flammarion (2023), A modern look at the relationship between sharpness and
    generalization.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv import linalg
from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batches import BatchLoss
from jaxdiv.linalg.vectors import Matvec


def hessian_eigenvalues(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    *,
    k: int = 1,
    adaptive: bool = False,
    num_steps: int | None = None,
    which: str = "largest",
    key: Key,
) -> linalg.Eigenpairs:
    """Extreme eigenvalues of the Hessian by one Lanczos run.

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        params: Parameters w, floating, n in all.
        batch: What the loss needs beside them.
        k: Number of eigenvalues.
        adaptive: Whether c = |w|.
        num_steps: Hessian-vector products; ``min(n, 2 k + 20)`` by default.
        which: ``"largest"``, ``"smallest"`` or ``"magnitude"``.
        key: Random key of the first vector.

    Returns:
        The pairs, with residuals that bound the error of each value; ``.values[0]`` is the sharpness.

    Raises:
        ValueError: If the loss is not a scalar, or `linalg.eigsh` refuses an option.

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2) / 2
        >>> print(hessian_eigenvalues(loss, jnp.ones(3), jnp.arange(3.0), key=jax.random.key(0)).values.round(4))
        [2.]
    """
    params = batches.widened(loss_fn, params, batch)
    start = optax.tree.random_like(key, params, jax.random.normal)
    matvec = _operator(loss_fn, params, batch, adaptive)
    return linalg.eigsh(matvec, start, k=k, num_steps=num_steps, which=which)


def hessian_trace(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    *,
    adaptive: bool = False,
    num_probes: int = 32,
    key: Key,
) -> tuple[Scalar, Scalar]:
    """Trace of the Hessian by Hutchinson's estimator.

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        params: Parameters w, floating.
        batch: What the loss needs beside them.
        adaptive: Whether c = |w|.
        num_probes: Hessian-vector products.
        key: Random key of the probes.

    Returns:
        The unbiased estimate and its standard error (NaN from a single probe).

    Raises:
        ValueError: If the loss is not a scalar or there is no probe.

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2) / 2
        >>> print(hessian_trace(loss, jnp.ones(3), jnp.arange(3.0), key=jax.random.key(0))[0].round(4))
        3.0
    """
    params = batches.widened(loss_fn, params, batch)
    probes = linalg.rademacher(params, num_probes, key=key)
    return linalg.hutchinson_trace(_operator(loss_fn, params, batch, adaptive), probes)


def _operator(loss_fn: BatchLoss, params: Params, batch: PyTree, adaptive: bool) -> Matvec:
    """``v -> c H (c v)``."""
    hessian = linalg.hessian_operator(lambda w: loss_fn(w, batch), params)
    if not adaptive:
        return hessian
    scale = batches.scale(params, adaptive)

    def product(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, scale, hessian(jax.tree.map(jnp.multiply, scale, v)))

    return product
