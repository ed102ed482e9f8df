"""The root of an increasing function, elementwise, with derivatives of every order.

Bisection finds the root without gradients; `lax.custom_root` differentiates through the implicit
function theorem, `dx = -df / f'(x)`, for everything `fn` closes over. Where `f'` vanishes (a step) the
root does not move.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def increasing_root(
    fn: Callable[[Float[Array, "*n"]], Float[Array, "*n"]],
    lower: Float[Array, "*n"],
    upper: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """Returns the smallest float in ``[lower, upper]`` at which an increasing `fn` is nonnegative.

    Args:
        fn: Increasing in each element, elementwise (element i of the result depends on element i).
        lower: Lower ends, [*n].
        upper: Upper ends, [*n]; returned where `fn` stays negative.

    Returns:
        The roots, [*n], to the last bits of `lower`'s dtype relative to the bracket.
    """
    steps = jnp.finfo(lower.dtype).nmant + 8
    upper = jnp.broadcast_to(upper, lower.shape)

    def solve(f: Callable[[Array], Array], guess: Array) -> Array:
        del guess

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = low + 0.5 * (high - low)
            above = f(middle) >= 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        return jax.lax.fori_loop(0, steps, halve, (lower, upper))[1]

    def tangent_solve(g: Callable[[Array], Array], y: Array) -> Array:
        slope = g(jnp.ones_like(y))
        moves = (slope > 0) & jnp.isfinite(slope)
        return jnp.where(moves, y / jnp.where(moves, slope, 1.0), 0.0)

    return jax.lax.custom_root(fn, lower, solve, tangent_solve)
