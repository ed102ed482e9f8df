"""Powerpropagation as an optimizer: gradient descent on φ with θ = φ |φ|^{α−1}, which favors sparse solutions.

Exactly, for a step size η and the gradient g of the loss in θ,

    φ = sign(θ) |θ|^{1/α},    φ⁺ = φ − η α |φ|^{α−1} g,    θ⁺ = φ⁺ |φ⁺|^{α−1},

and to first order in η descent with the diagonal preconditioner P = (dθ/dφ)² = α² |θ|^{2 − 2/α}: large weights move
fast, small ones hardly, and a weight of 0 never. α = 1 is gradient descent.

References:
    Pascanu et al. (2025), Optimizers qualitatively alter solutions and we should leverage this. Schwarz, Jayakumar,
    Pascanu, Latham, Teh (2021), Powerpropagation: a sparsity inducing weight reparameterisation.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Params


def powerprop(learning_rate: optax.ScalarOrSchedule, *, alpha: Numeric = 3.0) -> optax.GradientTransformation:
    """Gradient descent on φ, exact for any step size.

    Args:
        learning_rate: η, a number or a schedule.
        alpha: α >= 1.

    Returns:
        A transformation of gradients; its update is θ⁺ − θ. Leave out biases, which start at 0 and would stay there,
        by `optax.partition`.

    Raises:
        ValueError: If α is less than 1; on use, if no parameters are given.

    References:
        Pascanu et al. (2025).

    Example:
        >>> tx = powerprop(0.1, alpha=2.0)
        >>> params = jnp.array([4.0])                     # φ = 2, dθ/dφ = 4
        >>> update, _ = tx.update(jnp.array([1.0]), tx.init(params), params)
        >>> round(float(update[0]), 4)                    # (2 - 0.4)² - 4
        -1.44
    """
    checks.in_range("alpha", alpha, 1.0)

    def init(params: Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: Params | None = None
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        if params is None:
            raise ValueError("powerprop needs the parameters: call update(gradients, state, params).")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def of_leaf(g: Array, theta: Array) -> Array:
            wide = jnp.promote_types(theta.dtype, jnp.float32)
            g, w = g.astype(wide), theta.astype(wide)
            size = jnp.abs(w)
            phi = jnp.sign(w) * size ** jnp.asarray(1 / alpha, wide)
            moved = phi - rate * alpha * jnp.abs(phi) ** jnp.asarray(alpha - 1, wide) * g
            return (moved * jnp.abs(moved) ** jnp.asarray(alpha - 1, wide) - w).astype(theta.dtype)

        count = optax.safe_increment(state.count)
        return jax.tree.map(of_leaf, updates, params), optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformation(init, update)


def scale_by_powerprop(*, alpha: Numeric = 3.0) -> optax.GradientTransformation:
    """The first-order form: multiplies by α² |θ|^{2 − 2/α}, to be chained with other transformations.

    Args:
        alpha: α >= 1.

    Returns:
        A stateless transformation that needs the parameters.

    Raises:
        ValueError: If α is less than 1; on use, if no parameters are given.

    Example:
        >>> tx = optax.chain(scale_by_powerprop(alpha=2.0), optax.scale(-0.1))
        >>> params = jnp.array([4.0])
        >>> round(float(tx.update(jnp.array([1.0]), tx.init(params), params)[0][0]), 4)
        -1.6
    """
    checks.in_range("alpha", alpha, 1.0)

    def scale(updates: PyTree, params: Params | None) -> PyTree:
        if params is None:
            raise ValueError(
                "scale_by_powerprop needs the parameters: call update(gradients, state, params)."
            )

        def of_leaf(g: Array, theta: Array) -> Array:
            wide = jnp.promote_types(theta.dtype, jnp.float32)
            power = jnp.asarray(2 - 2 / alpha, wide)
            return (alpha**2 * jnp.abs(theta.astype(wide)) ** power * g.astype(wide)).astype(g.dtype)

        return jax.tree.map(of_leaf, updates, params)

    return optax.stateless(scale)
