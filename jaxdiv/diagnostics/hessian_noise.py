"""The variance of the noise in the Hessian of a batch, from products with random vectors.

With the data cut into batches of B, H the mean of their Hessians H_b and v a random unit vector,

    E ‖(H_b − H) v‖² = E ‖H_b − H‖_F² / P = P σ² / 𝔟,     𝔟 = (1/B − 1/N)⁻¹,

since a noise matrix of P² entries of variance σ²/𝔟 has the squared Frobenius norm P² σ²/𝔟.

References:
    Granziol, Zohren, Roberts (2022), Learning rates as a function of batch size: a random matrix theory approach to
    neural network training.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdiv import linalg
from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batch_hessian import effective_batch
from jaxdiv.diagnostics.batches import BatchLoss


def hessian_noise(
    loss_fn: BatchLoss, params: Params, batch: PyTree, *, batch_size: int, num_probes: int = 4, key: Key
) -> Scalar:
    """Estimates σ², the variance of an entry of the Hessian over single examples.

    Args:
        loss_fn: ``(params, batch) -> scalar``, a mean over examples.
        params: Parameters, floating, P in all.
        batch: All the data, N rows, in random order.
        batch_size: B, a divisor of N less than N.
        num_probes: Random vectors; each costs a product with the Hessian of every batch.
        key: Random key.

    Returns:
        σ², float32 or wider.

    Raises:
        ValueError: If B does not divide N or leaves a single batch.

    Example:
        >>> loss = lambda w, x: jnp.mean(x) * jnp.sum(w**2) / 2   # Hessian x I: P entries of P² vary
        >>> x = jnp.array([1.0, 3.0])
        >>> print(hessian_noise(loss, jnp.ones(4), x, batch_size=1, key=jax.random.key(0)))
        0.5
    """
    params = batches.widened(loss_fn, params, batch)
    probes = linalg.rademacher(params, num_probes, key=key)
    size = optax.tree.size(params)

    def products(chunk: PyTree, key: Key) -> PyTree:
        return jax.lax.map(linalg.hessian_operator(lambda w: loss_fn(w, chunk), params), probes)

    found = batches.over_chunks(products, batch, batch_size, key)
    count = jax.tree.leaves(found)[0].shape[0]
    if count < 2:
        raise ValueError(f"batch_size must leave at least two batches; got {batch_size} of as many examples.")

    def square(leaf: Float[Array, "batches probes ..."]) -> Scalar:
        return jnp.sum(jnp.square(leaf - jnp.mean(leaf, axis=0)))

    # A probe of random signs has the squared norm P.
    total = sum(square(leaf) for leaf in jax.tree.leaves(found)) / (count * num_probes * size)
    return total * effective_batch(batch_size, count * batch_size) / size
