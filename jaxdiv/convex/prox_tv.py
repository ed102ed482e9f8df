r"""Proximal operator of the total variation on a chain, exactly.

    argmin_z ½|z - x|² + s Σ_i |z_{i+1} - z_i|

On a segment of k equal entries with jump signs σ_l and σ_r at its ends (0 at the ends of the chain)

    z = c = mean(x) + s (σ_r - σ_l) / k.

Which entries are above a level c is a binary problem, min Σ_i b_i d_i + s Σ_i |b_{i+1} - b_i| with b in {0, 1}
and d = c - x, the jumps at the ends added to its first and last entry: b is 1 where z > c. Messages

    m_1 = d_1,   m_i = d_i + clip(m_{i-1}, -s, s)

solve it: backwards, b_i is 1 where m_i < -s, 0 where m_i > s and b_{i+1} between; the last b is 1 where m < 0.
All segments are tried at their own c at once, and those that it parts are replaced by the parts, until c is the
solution on each. Clipped shifts compose to clipped shifts, so that the messages are an associative scan. The
formula for z, with the segments fixed, has the derivatives.

References:
    Hochbaum (2001), An efficient algorithm for image segmentation, Markov random fields and related problems.
    Kolmogorov, Pock, Rolínek (2016), Total variation on a tree, sections 3 and 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.convex import arguments
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def prox_tv(
    x: Float[Array, "*s"], scale: Numeric | Float[Array, "*b"] = 1.0, *, axis: int = -1
) -> Float[Array, "*s"]:
    """Total variation denoising along one axis: piecewise constant signals.

    Args:
        x: Any shape, finite.
        scale: s, not negative, may be ``inf``; one number, or one per batch element.
        axis: Axis of the signals; the others are batch axes.

    Returns:
        The minimizer, in the dtype of `x`. A signal that holds NaN gives NaN.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks the axis, or if `scale` is negative or of
            another shape.

    Note:
        Exact up to rounding, without a tolerance. A round over all segments costs O(n) in parallel; as levels
        halve the range of values, about log n of them are needed, and never more than n. The derivative by x
        takes the mean over each segment; where two just meet at `scale`, over one or both.

    References:
        Kolmogorov, Pock, Rolínek (2016), Total variation on a tree.

    Example:
        >>> prox_tv(jnp.array([0.0, 1.0, 5.0, 6.0]), 0.5).tolist()
        [0.5, 1.0, 5.0, 5.5]
        >>> prox_tv(jnp.array([0.0, 1.0, 5.0, 6.0]), 2.0).tolist()
        [1.5, 1.5, 4.5, 4.5]
    """
    wide, axes = arguments.vectors(x, axis)
    checks.in_range("scale", scale, 0.0)
    rows = arguments.to_rows(wide, axes)
    levels = arguments.per_vector("scale", scale, wide, axes)
    out = jnp.vectorize(_denoise, signature="(n),()->(n)")(rows, levels)
    out = jnp.where(jnp.any(jnp.isnan(rows), -1, keepdims=True), jnp.nan, out)
    return arguments.from_rows(out, wide, axes).astype(jnp.result_type(x))


def _denoise(x: Float[Array, " n"], scale: Float[Array, ""]) -> Float[Array, " n"]:
    return _levels(x, scale, _jumps(*jax.lax.stop_gradient((x, scale))))


def _jumps(x: Float[Array, " n"], scale: Float[Array, ""]) -> Int[Array, " n"]:
    """The sign of the jump behind each entry of the minimizer; 0 within its segments and at the end."""

    def split(state: tuple[Array, Array]) -> tuple[Array, Array]:
        jumps, _ = state
        edge = jumps[:-1] != 0
        first, last = _behind(edge, True), jnp.append(edge, True)
        turn = (jumps - _behind(jumps[:-1], 0)).astype(x.dtype)
        d = _levels(x, scale, jumps) - x - turn * jnp.where(turn == 0, 0.0, scale)
        message = _messages(d, scale, first)
        known = last | (jnp.abs(message) > scale)
        index = jnp.arange(x.shape[0])
        behind = jax.lax.cummin(jnp.where(known, index, x.shape[0]), reverse=True)
        above = (message < 0)[behind].astype(jnp.int32)
        found = jnp.append(jnp.diff(above), 0)
        new = jnp.where(last, jumps, found)
        return new, jnp.any(new != jumps)

    whole = jnp.zeros(x.shape, jnp.int32)
    return jax.lax.while_loop(lambda state: state[1], split, (whole, jnp.array(True)))[0]


def _messages(d: Float[Array, " n"], scale: Float[Array, ""], first: Array) -> Float[Array, " n"]:
    """``m_i = clip(m_{i-1} + d_i, d_i - s, d_i + s)``, a constant at the first entry of each segment."""

    def compose(f: tuple[Array, ...], g: tuple[Array, ...]) -> tuple[Array, ...]:
        shift, low, high = g
        return f[0] + shift, jnp.clip(f[1] + shift, low, high), jnp.clip(f[2] + shift, low, high)

    reach = jnp.where(first, 0.0, scale)
    return jax.lax.associative_scan(compose, (d, d - reach, d + reach))[1]


def _levels(x: Float[Array, " n"], scale: Float[Array, ""], jumps: Int[Array, " n"]) -> Float[Array, " n"]:
    """The c of each entry's segment."""
    label = jnp.cumsum(_behind(jumps[:-1] != 0, False), dtype=jnp.int32)
    # The jump before a segment counts down, the one behind it up.
    turn = (jumps - _behind(jumps[:-1], 0)).astype(x.dtype)

    def total(values: Array) -> Array:
        return jnp.zeros_like(x).at[label].add(values, indices_are_sorted=True)

    center, size, turns = jax.lax.stop_gradient(x[0]), total(jnp.ones_like(x))[label], total(turn)[label]
    # Without jumps an infinite scale does not count.
    return center + total(x - center)[label] / size + turns / size * jnp.where(turns == 0, 0.0, scale)


def _behind(values: Array, start: int | bool) -> Array:
    """`start`, then the values. Of jnp.insert XLA would fold large constants, for seconds."""
    return jnp.concatenate([jnp.full((1,), start, values.dtype), values])
