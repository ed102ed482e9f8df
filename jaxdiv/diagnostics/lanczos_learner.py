"""Learning rate and momentum from a short Lanczos run on the Hessian of a batch.

With Ritz values λ_1 ≥ … ≥ λ_n > 0, heavy-ball momentum on the quadratic is fastest at [Polyak]

    η = (2 / (√λ_1 + √λ_n))²,      β = ((√λ_1 − √λ_n) / (√λ_1 + √λ_n))².

λ_n is the smallest positive Ritz value, the reading taken here of the paper's learner.

References:
    Granziol, Zohren, Roberts (2022), Learning rates as a function of batch size: a random matrix theory approach to
    neural network training. Polyak (1964), Some methods of speeding up the convergence of iteration methods.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv import linalg
from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batches import BatchLoss


class LanczosLearner(NamedTuple):
    """What a short Lanczos run suggests.

    Attributes:
        learning_rate: η of heavy-ball momentum.
        momentum: β.
        largest: λ_1.
        smallest: λ_n, the smallest positive Ritz value.
    """

    learning_rate: Scalar
    momentum: Scalar
    largest: Scalar
    smallest: Scalar


def lanczos_learner(
    loss_fn: BatchLoss, params: Params, batch: PyTree, *, num_steps: int = 10, key: Key
) -> LanczosLearner:
    """Suggests a learning rate and a momentum for the current parameters.

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        params: Parameters, floating.
        batch: A batch of the size that training uses, since its largest eigenvalue depends on it.
        num_steps: Hessian-vector products, at most the number of parameters.
        key: Random key of the first vector.

    Returns:
        A `LanczosLearner` for ``optax.sgd(learning_rate, momentum)``; NaN where no Ritz value is positive.

    Raises:
        ValueError: If the loss is not a scalar or `num_steps` is out of range.

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2) / 2
        >>> found = lanczos_learner(loss, jnp.ones(2), jnp.array([1.0, 9.0]), num_steps=2, key=jax.random.key(0))
        >>> [round(float(x), 3) for x in found]
        [0.25, 0.25, 9.0, 1.0]
    """
    params = batches.widened(loss_fn, params, batch)
    start = optax.tree.random_like(key, params, jax.random.normal)
    hessian = linalg.hessian_operator(lambda w: loss_fn(w, batch), params)
    # NaN beyond an exhausted Krylov space, which no comparison lets through.
    values = linalg.eigsh(hessian, start, k=num_steps, num_steps=num_steps).values
    largest = values[0]
    smallest = jnp.min(jnp.where(values > jnp.finfo(values.dtype).eps * largest, values, jnp.inf))
    top, bottom = jnp.sqrt(jnp.where(largest > 0, largest, jnp.nan)), jnp.sqrt(smallest)
    return LanczosLearner(
        (2 / (top + bottom)) ** 2, ((top - bottom) / (top + bottom)) ** 2, largest, smallest
    )
