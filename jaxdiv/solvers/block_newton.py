r"""A damped Newton step of one block, on the entries where the objective is smooth.

    d = -(∇²_FF f)⁻¹ (∇_F f + λ sign(y_F)),    F = the block, or its entries that are not 0 if h is there

and the first α of 1, ½, ¼, … at which f + h falls as Armijo's condition asks; with h, entries stop at 0 where they
would change their sign.

References:
    Nutini, Laradji, Schmidt (2022), Let's make block coordinate descent converge faster.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.solvers import blocks

ARMIJO, HALVINGS = 1e-4, 30
SLACK = 10  # units of rounding of the objective, of which its differences are made


def newton(
    fun: Callable[[Array], Array],
    y: Float[Array, " n"],
    at: Int[Array, " k"],
    part: Float[Array, " k"],
    *,
    weight: Float[Array, ""],
    keeps_sign: bool,
    lipschitz: Float[Array, ""],
) -> Float[Array, " k"]:
    """The entries of the block after the step; the old ones if none decreases the objective.

    Args:
        fun: f, of flat vectors.
        y: The point.
        at: Coordinates of the block, n for padding.
        part: Entries of the block from which the step starts.
        weight: λ of the l1 norm, or 0.
        keeps_sign: Whether there is an h, so that zeros stay and signs are kept.
        lipschitz: L_b, for a gradient step where the Hessian is not positive definite.
    """
    gradient, push = jax.linearize(jax.grad(fun), blocks.write(y, at, part))
    units = jax.vmap(lambda u: blocks.write(jnp.zeros_like(y), at, u))(jnp.eye(part.size, dtype=y.dtype))
    hessian = jax.vmap(lambda u: blocks.read(push(u), at))(units)
    sign = jnp.sign(part) if keeps_sign else jnp.ones_like(part)
    free = (at < y.size) & (sign != 0)
    slope = jnp.where(free, blocks.read(gradient, at) + weight * sign, 0.0)
    hessian = jnp.where(free[:, None] & free[None, :], hessian, 0.0)
    factor = jnp.linalg.cholesky(hessian + jnp.diag(jnp.where(free, 0.0, 1.0).astype(y.dtype)))
    direction = -jax.scipy.linalg.cho_solve((factor, True), slope)
    # Not positive definite: NaN, and a gradient step instead.
    direction = jnp.where(jnp.all(jnp.isfinite(direction)), direction, -slope / lipschitz)

    def objective(part: Array) -> Array:
        return fun(blocks.write(y, at, part)) + weight * jnp.sum(jnp.abs(part))

    first = objective(part)
    rounding = SLACK * jnp.finfo(y.dtype).eps * jnp.abs(first)

    def attempt(count: Array, size: Array) -> tuple[Array, Array, Array, Array]:
        trial = part + size * direction
        if keeps_sign:
            trial = jnp.where(trial * sign > 0, trial, 0.0)
        promised = ARMIJO * jnp.minimum(jnp.vdot(slope, trial - part), 0.0)
        # Not a number is no decrease.
        return count + 1, size / 2, trial, objective(trial) <= first + promised + rounding

    start = attempt(jnp.zeros((), jnp.int32), jnp.ones((), y.dtype))
    *_, trial, taken = jax.lax.while_loop(
        lambda carry: ~carry[3] & (carry[0] < HALVINGS), lambda carry: attempt(carry[0], carry[1]), start
    )
    return jnp.where(taken, trial, part)
