"""Groups of outliers with opposing signals: whose losses move most over a step, in opposite directions.

Between two steps let Δℓ_i be the change of the loss of example i. The k examples with the largest and the k with the
smallest Δℓ oppose each other where the cosine of their mean gradients is near −1; over consecutive steps their
mean Δℓ then alternate in sign against each other.

References:
    Rosenfeld, Risteski (2024), Outliers with opposing signals have an outsized effect on neural network optimization.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.core.types import Params, Scalar
from jaxdiv.linalg import vectors


class OpposingSignals(NamedTuple):
    """Two groups of examples over one step.

    Attributes:
        up: Indices of the examples whose loss rose most, in order. [k]
        down: Those whose loss fell most, in order. [k]
        change: Δℓ of all examples. [B]
        cosine: Between the groups' mean gradients before the step.
    """

    up: Int[Array, " k"]
    down: Int[Array, " k"]
    change: Float[Array, " B"]
    cosine: Scalar


def loss_change_outliers(
    before: Float[Array, " B"], after: Float[Array, " B"], k: int
) -> tuple[Int[Array, " k"], Int[Array, " k"]]:
    """The examples whose loss changed most, up and down.

    Args:
        before: Losses before a step [B].
        after: Losses after it [B], with the same augmentation and dropout.
        k: Examples in each group.

    Returns:
        The indices of the k largest changes and of the k smallest ones.

    Raises:
        ValueError: If the shapes differ or there are fewer than k examples.

    Example:
        >>> loss_change_outliers(jnp.array([1.0, 1.0, 1.0]), jnp.array([1.5, 0.2, 1.1]), 1)
        (Array([0], dtype=int32), Array([1], dtype=int32))
    """
    before, after = checks.floating("before", before), checks.floating("after", after)
    checks.rank("before", before, 1)
    checks.same_shape(before=before, after=after)
    checks.in_range("k", k, 1, before.size)
    change = after - before
    return jax.lax.top_k(change, k)[1], jax.lax.top_k(-change, k)[1]


def gradient_opposition(gradient: PyTree, other: PyTree) -> Scalar:
    """The cosine of two gradients, −1 where they oppose each other.

    Args:
        gradient: Floating pytree.
        other: The same structure.

    Returns:
        The cosine over all leaves together; NaN if one gradient is zero.

    Raises:
        ValueError: If the structures or shapes differ.

    Example:
        >>> print(gradient_opposition({"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([-2.0, -2.0])}).round(4))
        -1.0
    """
    gradient, other = vectors.widened("gradient", gradient), vectors.widened("other", other)
    vectors.same_space("other", other, "gradient", gradient)

    def unit(tree: PyTree) -> PyTree:
        norm = core.safe_norm(jnp.stack([core.safe_norm(leaf) for leaf in jax.tree.leaves(tree)]))
        return jax.tree.map(lambda leaf: leaf / norm, tree)

    products = jax.tree.map(lambda a, b: jnp.sum(a * b), unit(gradient), unit(other))
    return jax.tree.reduce(jnp.add, products)


def opposing_signals(
    losses_fn: Callable[[Params, PyTree], Float[Array, " B"]],
    params: Params,
    new_params: Params,
    batch: PyTree,
    k: int,
) -> OpposingSignals:
    """Finds the two groups over a step and measures how much their gradients oppose each other.

    Args:
        losses_fn: ``(params, batch) -> losses [B]``.
        params: Parameters before the step.
        new_params: Parameters after it; a step on the full batch, or the membership in the batch dominates the change.
        batch: The examples.
        k: Examples in each group.

    Returns:
        An `OpposingSignals`.

    Raises:
        ValueError: If the losses are not a vector, or there are fewer than k examples.

    Example:
        >>> losses = lambda w, x: (w * x - 1) ** 2
        >>> found = opposing_signals(losses, jnp.array(0.0), jnp.array(0.1), jnp.array([3.0, -3.0, 0.1]), 1)
        >>> found.up.tolist(), found.down.tolist(), round(float(found.cosine), 4)
        ([1], [0], -1.0)
    """
    params = vectors.widened("params", params)
    before, pull = jax.vjp(lambda w: losses_fn(w, batch), params)
    after = losses_fn(vectors.widened("new_params", new_params), batch)
    up, down = loss_change_outliers(before, after, k)
    share = jnp.zeros_like(before)
    (rising,), (falling,) = pull(share.at[up].set(1 / k)), pull(share.at[down].set(1 / k))
    return OpposingSignals(up, down, after - before, gradient_opposition(rising, falling))
