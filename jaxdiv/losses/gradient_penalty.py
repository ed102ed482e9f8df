r"""Gradient penalty: how far a critic is from having gradients of a given length.

With the gradient with respect to all inputs of the critic together, at points `(x̂, ŷ, …)`,

    two-sided    (‖∇_{(x, y, …)} f(x̂, ŷ, …)‖ - bound)²
    one-sided    max(0, ‖∇_{(x, y, …)} f(x̂, ŷ, …)‖ - bound)²

A function whose gradients are nowhere longer than 1 is 1-Lipschitz, as the dual of the Wasserstein distance
asks. The optimal critic has gradients of length 1 between coupled points of the two measures, hence the
points to look at: `random_interpolates` of a sample of the one and a sample of the other.

References:
    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville (2017), Improved Training of Wasserstein GANs, eq. (3)
    and proposition 1; Petzka, Fischer, Lukovnikov (2018), On the Regularization of Wasserstein GANs
    (one-sided); Ozair et al. (2019), Wasserstein Dependency Measure for Representation Learning (pairs).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.numerics import safe_norm
from jaxdiv.core.types import Key, Numeric

T = TypeVar("T", bound=PyTree)


def gradient_penalty(
    critic: Callable[..., Float[Array, " B"]],
    *points: Float[Array, "B *_"],
    bound: Numeric = 1.0,
    one_sided: bool = False,
) -> Float[Array, " B"]:
    """Per-example penalty on the length of a critic's gradient.

    Args:
        critic: A function of as many arrays as there are points, one value [B] per row, rows independent
            (no batch statistics).
        *points: Where to look, one array [B, ...] per input of the critic. The length is that of the
            gradient with respect to all of them together.
        bound: Desired length, >= 0; 1 for the Wasserstein distance of the points' Euclidean metric.
        one_sided: Whether shorter gradients are free.

    Returns:
        The penalties [B], to be weighed (customarily by 10) and averaged. A NaN stays in its row.

    Raises:
        ValueError: If there are no points, they are not floating or not of one batch, the critic does not
            give one value per row, or a concrete `bound` is negative.

    Note:
        Where the gradient is 0 the penalty's own derivative is 0, not NaN. Discrete inputs have no
        gradient: apply it to embeddings.

    Example:
        >>> critic = lambda x, y: 3.0 * x[:, 0] + 4.0 * y[:, 0]
        >>> gradient_penalty(critic, jnp.zeros((2, 1)), jnp.zeros((2, 1)))
        Array([16., 16.], dtype=float32)
    """
    checks.in_range("bound", bound, 0.0)
    raised = tuple(checks.floating(f"points[{i}]", x) for i, x in enumerate(points))
    batch = _batch(raised)

    def total(*inputs: Array) -> Array:
        values = jnp.asarray(critic(*inputs))
        if values.shape != (batch,):
            raise ValueError(f"critic must give one value per row, shape {(batch,)}; got {values.shape}.")
        return jnp.sum(values)

    gradients = jax.grad(total, tuple(range(len(raised))))(*raised)
    rows = [g.reshape(batch, -1).astype(jnp.result_type(*raised)) for g in gradients]
    excess = safe_norm(jnp.concatenate(rows, axis=-1), axis=-1) - bound
    return jnp.square(jnp.maximum(excess, 0.0) if one_sided else excess)


def random_interpolates(points: T, others: T, *, key: Key) -> T:
    """Draws one point on the segment from each example of one sample to that of another.

    Args:
        points: Arrays [B, ...], any pytree of them, e.g. the pairs ``(x, y)``.
        others: A sample of the other measure, of the same structure and shapes: for the dependence of x
            and y, pairs that do not belong together, e.g. ``(x, jnp.roll(y, 1, axis=0))``.
        key: Random key.

    Returns:
        ``t points + (1 - t) others`` with t uniform in [0, 1), one t per example for all arrays.

    Raises:
        ValueError: If an array is not floating, structures or shapes differ, or the batch is empty.

    Example:
        >>> pairs, others = (jnp.ones(2), jnp.ones(2)), (jnp.zeros(2), jnp.zeros(2))
        >>> x, y = random_interpolates(pairs, others, key=jax.random.key(0))
        >>> bool(jnp.all((x == y) & (y < 1)))
        True
    """
    leaves = [checks.floating("points", x) for x in jax.tree.leaves(points)]
    t = jax.random.uniform(key, (_batch(leaves),), jnp.result_type(*leaves))

    def between(x: Array, z: Array) -> Array:
        dtype = jnp.asarray(x).dtype
        x, z = checks.floating("points", x), checks.floating("others", z)
        checks.same_shape(points=x, others=z)
        share = t.reshape(-1, *(1,) * (x.ndim - 1))
        return (z + share * (x - z)).astype(dtype)

    return jax.tree.map(between, points, others)


def _batch(points: Sequence[Array]) -> int:
    """Size of the common leading axis."""
    shapes = [x.shape for x in points]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0] or shapes[0][0] == 0:
        raise ValueError(f"points must be arrays [B, ...] of one batch, B at least 1; got shapes {shapes}.")
    return shapes[0][0]
