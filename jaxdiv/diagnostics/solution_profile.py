"""A profile of a trained model: sharpness, norms, ranks of its kernels, and what is left of it after pruning.

Optimizers that reach the same training loss reach different solutions; the profile says how they differ. With σ the
singular values of a kernel as a matrix [.., out],

    stable rank ‖W‖_F² / ‖W‖_2² = Σ σ² / σ_1²,        effective rank exp(−Σ p_k log p_k),  p = σ / Σ σ.

References:
    Pascanu et al. (2025), Optimizers qualitatively alter solutions and we should leverage this. Roy, Vetterli (2007),
    The effective rank: a measure of effective dimensionality.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.diagnostics import batches, hessian, layers
from jaxdiv.diagnostics.batches import BatchLoss


class SolutionProfile(NamedTuple):
    """What a solution looks like.

    Attributes:
        loss: On the batch.
        largest_eigenvalue: Of the Hessian.
        trace: Of the Hessian, estimated.
        l1: Sum of absolute parameters.
        squared_l2: Sum of squared parameters.
        stable_ranks: Of each kernel, by its path in the tree.
        effective_ranks: The same.
        pruned: The metric with the smallest weights set to 0, at each level. [k]
    """

    loss: Scalar
    largest_eigenvalue: Scalar
    trace: Scalar
    l1: Scalar
    squared_l2: Scalar
    stable_ranks: dict[str, Scalar]
    effective_ranks: dict[str, Scalar]
    pruned: Float[Array, " k"]


def solution_profile(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    *,
    metric: Callable[[Params], Scalar] | None = None,
    sparsities: Sequence[float] = (0.0, 0.5, 0.8, 0.9, 0.95),
    num_steps: int = 20,
    num_probes: int = 16,
    key: Key,
) -> SolutionProfile:
    """Measures a solution, to be compared with others of the same training loss.

    Args:
        loss_fn: ``(params, batch) -> scalar``, in evaluation mode.
        params: Parameters, floating. Kernels are the leaves of rank 2 and more, with the outputs last.
        batch: What the loss needs beside them.
        metric: Measured after pruning, e.g. the accuracy on a test set; the loss on the batch by default.
        sparsities: Shares [k] of the kernels' entries to set to 0, the smallest of all kernels together; entries
            of one size go together.
        num_steps: Lanczos steps.
        num_probes: Of the trace.
        key: Random key.

    Returns:
        A `SolutionProfile`. The rank of features is `effective_rank` of a batch of them.

    Raises:
        ValueError: If there is no kernel or a sparsity is not in [0, 1].

    References:
        Pascanu et al. (2025).

    Example:
        >>> loss = lambda w, x: jnp.mean((x @ w["kernel"] - 1) ** 2)
        >>> found = solution_profile(loss, {"kernel": jnp.eye(3)}, jnp.ones((2, 3)), key=jax.random.key(0))
        >>> {name: round(float(rank), 4) for name, rank in found.stable_ranks.items()}
        {'kernel': 3.0}
    """
    params = batches.widened(loss_fn, params, batch)
    checks.in_range("sparsities", np.asarray(sparsities), 0.0, 1.0)
    kernels = {
        layers.leaf_name(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if leaf.ndim >= 2
    }
    if not kernels:
        raise ValueError("params must hold a kernel, a leaf of rank 2 or more; got none.")
    if metric is None:

        def metric(params: Params) -> Scalar:
            return loss_fn(params, batch)

    flat = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in kernels.values()])
    order = jnp.sort(flat)

    def pruned(sparsity: Scalar) -> Scalar:
        count = jnp.round(sparsity * flat.size).astype(jnp.int32)
        # The largest that goes; none at sparsity 0.
        threshold = jnp.where(count > 0, order[jnp.maximum(count - 1, 0)], -1)
        kept = jax.tree.map(
            lambda leaf: jnp.where(jnp.abs(leaf) > threshold, leaf, 0) if leaf.ndim >= 2 else leaf, params
        )
        return metric(kept)

    first, second = jax.random.split(key)
    steps = min(num_steps, sum(leaf.size for leaf in jax.tree.leaves(params)))
    top = hessian.hessian_eigenvalues(loss_fn, params, batch, num_steps=steps, key=first).values[0]
    trace, _ = hessian.hessian_trace(loss_fn, params, batch, num_probes=num_probes, key=second)
    leaves = jax.tree.leaves(params)
    return SolutionProfile(
        loss=loss_fn(params, batch),
        largest_eigenvalue=top,
        trace=trace,
        l1=jnp.sum(jnp.stack([jnp.sum(jnp.abs(leaf)) for leaf in leaves])),
        squared_l2=jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in leaves])),
        stable_ranks={name: stable_rank(leaf) for name, leaf in kernels.items()},
        effective_ranks={name: effective_rank(leaf) for name, leaf in kernels.items()},
        pruned=jax.lax.map(pruned, jnp.asarray(sparsities, order.dtype)),
    )


def stable_rank(kernel: Float[Array, "... out"]) -> Scalar:
    """‖W‖_F² / ‖W‖_2² of a kernel as a matrix with its last axis as columns; NaN for zeros.

    Raises:
        ValueError: If the kernel is not floating or has less than two axes.

    Example:
        >>> print(stable_rank(jnp.diag(jnp.array([2.0, 1.0]))))
        1.25
    """
    s = _singular_values(kernel)
    return jnp.sum((s / s[0]) ** 2)


def effective_rank(kernel: Float[Array, "... out"]) -> Scalar:
    """Exponential of the entropy of the singular values over their sum; NaN for zeros.

    Raises:
        ValueError: If the kernel is not floating or has less than two axes.

    Example:
        >>> print(effective_rank(jnp.eye(4)).round(4))
        4.0
    """
    s = _singular_values(kernel)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(s / jnp.sum(s))))


def _singular_values(kernel: Float[Array, "... out"]) -> Float[Array, " r"]:
    kernel = checks.floating("kernel", kernel)
    if kernel.ndim < 2:
        raise ValueError(f"kernel must have at least two axes; got shape {kernel.shape}.")
    rows = int(np.prod(kernel.shape[:-1]))
    return jnp.linalg.svd(kernel.reshape(rows, kernel.shape[-1]), compute_uv=False)
