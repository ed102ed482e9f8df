r"""Euclidean projection onto the section of a box by a hyperplane, {low ≤ z ≤ high, ⟨w, z⟩ = b}.

    z(τ) = clip(x - τ w, low, high),   τ such that φ(τ) = ⟨w, z(τ)⟩ = b

Each w_i z_i(τ) falls with τ between two breakpoints and is constant outside. Bisection over the sorted
breakpoints finds the two around the root by comparisons alone; between them φ is linear,

    τ = (Σ_free w_i x_i + Σ_bound w_i z_i - b) / Σ_free w_i²,

and this formula, at the entries that are free and bound there, has the derivatives of the projection.

References:
    Pardalos, Kovoor (1990), An algorithm for a singly constrained class of quadratic programs subject to
    upper and lower bounds.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiv.convex import arguments
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def project_box_section(
    x: Float[Array, "*s"],
    low: Numeric | Float[Array, "..."],
    high: Numeric | Float[Array, "..."],
    weights: Numeric | Float[Array, "..."] = 1.0,
    total: Numeric | Float[Array, "*b"] = 1.0,
    *,
    axis: int = -1,
) -> Float[Array, "*s"]:
    """Projects onto the points of a box whose weighted sum is given.

    Args:
        x: Any shape, finite.
        low: Lowest values; broadcasts to `x`, may be ``-inf``.
        high: Highest values, at least `low`; broadcasts to `x`, may be ``inf``.
        weights: w, of any sign, finite; broadcasts to `x`. Where one is 0, x is clipped.
        total: b, between the least and the largest sum that the box admits; one number, or one per batch
            element.
        axis: Axis of the vectors; the others are batch axes.

    Returns:
        The nearest point, in the dtype of `x`. Vectors whose traced bounds and total admit none, or that
        hold NaN, give NaN.

    Raises:
        ValueError: If `x` is not floating point, is empty or lacks the axis, an option has another shape, or
            concrete bounds are NaN or cross, or if all options are concrete and the box does not reach
            `total`.

    Note:
        O(n log n) for n entries. Where x lies on a kink the derivative is that of one side.

    References:
        Pardalos, Kovoor (1990), An algorithm for a singly constrained class of quadratic programs.

    Example:
        >>> project_box_section(jnp.array([2.0, 1.0, -1.0]), 0.0, 1.0, total=1.5).tolist()
        [1.0, 0.5, 0.0]
    """
    wide, axes = arguments.vectors(x, axis)
    options = {"low": low, "high": high, "weights": weights}
    filled = {name: arguments.like(name, value, wide) for name, value in options.items()}
    rows, lower, upper, w = (arguments.to_rows(v, axes) for v in (wide, *filled.values()))
    levels = arguments.per_vector("total", total, wide, axes)
    if checks.concrete(low) and checks.concrete(high) and not np.all(np.asarray(low) <= np.asarray(high)):
        raise ValueError(f"low must not exceed high, nor either be NaN; got low={low} and high={high}.")
    reached = _reached(*jax.lax.stop_gradient((lower, upper, w, levels)))
    if checks.concrete(reached) and not np.all(reached):
        raise ValueError(
            f"total must be a weighted sum of values between low and high; got {np.asarray(total)}."
        )
    out = jnp.vectorize(_project, signature="(k),(k),(k),(k),()->(k)")(rows, lower, upper, w, levels)
    fine = reached & ~jnp.any(jnp.isnan(rows), -1)
    out = jnp.where(fine[..., None], out, jnp.nan)
    return arguments.from_rows(out, wide, axes).astype(jnp.result_type(x))


def _reached(low: Array, high: Array, w: Array, total: Array) -> Bool[Array, "*b"]:
    """Whether the box admits the total, to rounding."""
    ends = jnp.where(w == 0, 0.0, w * low), jnp.where(w == 0, 0.0, w * high)
    least, most = jnp.minimum(*ends), jnp.maximum(*ends)

    def rounding(terms: Array) -> Array:
        return 4 * jnp.finfo(w.dtype).eps * (jnp.sum(jnp.abs(terms), -1) + jnp.abs(total))

    above = total >= jnp.sum(least, -1) - rounding(least)
    below = total <= jnp.sum(most, -1) + rounding(most)
    return above & below & jnp.isfinite(total) & jnp.all(low <= high, -1)


def _project(x: Array, low: Array, high: Array, w: Array, total: Array) -> Float[Array, " k"]:
    """The projection of one vector."""
    free, falling = _pieces(*jax.lax.stop_gradient((x, low, high, w, total)))
    bound = jnp.where(falling, low, high)
    flat = w == 0
    slope = jnp.where(free, w, 0.0)
    # A bound where the entry is free may be infinite, as may be one where the weight is 0.
    held = jnp.where(free | flat, 0.0, bound)
    square = jnp.sum(slope * slope)
    excess = jnp.sum(slope * x) + jnp.sum(w * held) - total
    tau = jnp.where(square > 0, excess, 0.0) / jnp.where(square > 0, square, 1.0)
    out = jnp.where(flat, jnp.clip(x, low, high), jnp.where(free, x - tau * slope, held))
    # Rounding alone leaves the box, and it has no derivative.
    return out + jax.lax.stop_gradient(jnp.clip(out, low, high) - out)


def _pieces(
    x: Array, low: Array, high: Array, w: Array, total: Array
) -> tuple[Bool[Array, " k"], Bool[Array, " k"]]:
    """At the root: the entries between their bounds, and of the others those at their lower one."""
    safe = jnp.where(w == 0, 1.0, w)
    ends = (x - low) / safe, (x - high) / safe
    # Without weight there is no end.
    enter = jnp.where(w == 0, -jnp.inf, jnp.minimum(*ends))
    leave = jnp.where(w == 0, jnp.inf, jnp.maximum(*ends))
    breaks = jnp.sort(jnp.concatenate([enter, leave]))

    def too_much(tau: Array) -> Array:
        # Where x - τ w overflows or τ is infinite, the bound is what counts.
        before, after = tau <= enter, tau >= leave
        first, last = jnp.where(w > 0, high, low), jnp.where(w > 0, low, high)
        still = before | after | (w == 0)
        moving = x - jnp.where(still, 0.0, tau) * w
        z = jnp.where(before, first, jnp.where(after, last, moving))
        return jnp.sum(jnp.where(w == 0, 0.0, w * jnp.where(w == 0, 0.0, z))) > total

    def halve(_: int, span: tuple[Array, Array]) -> tuple[Array, Array]:
        # The breaks before `least` are too early, those from `most` on are not.
        least, most = span
        middle = (least + most) // 2
        early = too_much(breaks[middle]) & (least < most)
        return jnp.where(early, middle + 1, least), jnp.where(early, most, middle)

    size = breaks.shape[0]
    start = jnp.zeros((), jnp.int32), jnp.full((), size, jnp.int32)
    index, _ = jax.lax.fori_loop(0, size.bit_length(), halve, start)
    padded = jnp.concatenate([jnp.array([-jnp.inf]), breaks, jnp.array([jnp.inf])]).astype(x.dtype)
    left, right = padded[index], padded[index + 1]
    free = (enter <= left) & (leave >= right) & (left < right)
    return free, jnp.where(w > 0, leave <= left, leave > left)
