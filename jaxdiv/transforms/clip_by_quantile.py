"""Coordinate-wise clipping of a given fraction of the coordinates.

    û_i = sign(u_i) min(abs(u_i), τ),        τ the (1 - fraction) quantile of abs(u)

A few coordinates with large gradients and large curvature make a gradient's direction sharp; clipped, it is less
so, and with all of them clipped it is the sign.

References:
    Pan, Li (2023), Toward understanding why Adam converges faster than SGD for transformers, sec. 5.
"""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.transforms import precision

Scope: TypeAlias = Literal["global", "leaf"]


def clip_by_quantile(fraction: Numeric = 0.1, *, scope: Scope = "global") -> optax.GradientTransformation:
    """Clips the largest coordinates to the quantile above which a fraction of them lies.

    Args:
        fraction: Of the coordinates, in [0, 1]; 0 is the identity, 1 gives all the smallest magnitude. The paper
            has 0.1 to 0.5.
        scope: ``"global"`` takes the quantile over all leaves together, ``"leaf"`` over each.

    Returns:
        A stateless transform of a gradient, of a momentum or of Adam's update. The norm falls with the clipped
        coordinates and is not restored.

    Raises:
        ValueError: If the fraction leaves [0, 1] or the scope is unknown.

    Note:
        Quantiles are interpolated linearly, and found by about 35 passes over the magnitudes instead of a sort.
        NaN anywhere makes them, and so all updates of the scope, NaN.

    References:
        Pan, Li (2023).

    Example:
        >>> import optax
        >>> from jaxdiv import transforms
        >>> tx = transforms.clip_by_quantile(0.5)
        >>> tx.update(jnp.array([1.0, -2.0, 30.0]), optax.EmptyState())[0].tolist()
        [1.0, -2.0, 2.0]
    """
    checks.in_range("fraction", fraction, 0.0, 1.0)
    checks.one_of("scope", scope, get_args(Scope))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = precision.widen("updates", updates)
        leaves = jax.tree.leaves(wide)
        if scope == "leaf":
            taus = jax.tree.map(lambda u: _quantile(jnp.abs(u).ravel(), 1 - fraction), wide)
        elif leaves:
            tau = _quantile(jnp.concatenate([jnp.abs(u).ravel() for u in leaves]), 1 - fraction)
            taus = jax.tree.map(lambda u: tau.astype(u.dtype), wide)
        else:
            taus = wide
        clipped = jax.tree.map(lambda u, tau: jnp.clip(u, -tau, tau), wide, taus)
        return optax.tree.cast_like(clipped, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _quantile(magnitudes: Float[Array, " n"], q: Numeric) -> Float[Array, ""]:
    """`jnp.quantile` of numbers that are not negative, by bisection on their bits, which are ordered as they are."""
    n, dtype = magnitudes.shape[0], magnitudes.dtype
    unsigned = jnp.dtype(f"uint{8 * dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(magnitudes, unsigned)
    position = jnp.asarray(q, dtype) * (n - 1)
    low = jnp.clip(jnp.floor(position), 0, n - 1)
    rank = low.astype(jnp.int32)

    def settle(step: Array, found: Array) -> Array:
        # The next bit is 1 if at most `rank` numbers lie below the trial.
        trial = found | (jnp.ones((), unsigned) << (8 * dtype.itemsize - 2 - step).astype(unsigned))
        return jnp.where(jnp.sum(bits < trial, dtype=jnp.int32) <= rank, trial, found)

    lower = jax.lax.fori_loop(0, 8 * dtype.itemsize - 1, settle, jnp.zeros((), unsigned))
    top = jnp.iinfo(unsigned).max
    above = jnp.min(jnp.where(bits > lower, bits, jnp.asarray(top, unsigned)))
    tied = (jnp.sum(bits <= lower, dtype=jnp.int32) > rank + 1) | (rank + 1 >= n)
    # Read at their places, so that derivatives reach the magnitudes.
    first, second = (magnitudes[jnp.argmax(bits == b)] for b in (lower, jnp.where(tied, lower, above)))
    tau = first + (position - low) * (second - first)
    return jnp.where(jnp.any(jnp.isnan(magnitudes)), jnp.nan, tau)
