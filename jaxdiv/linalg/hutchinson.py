"""Hutchinson's estimators of the trace and of the diagonal.

For independent z with E[z zᵀ] = I:  tr A = E[zᵀ A z]  and  diag A = E[z ⊙ A z]. Random signs give the
smallest variance, 2 Σ_{i≠j} A_ij² for a symmetric A: exact for a diagonal one.

References:
    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.
    Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Key
from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Vector


def rademacher(like: PyTree, num_probes: int, *, key: Key) -> PyTree:
    """Draws vectors of random signs.

    Args:
        like: The vector to imitate (floating; half precisions are raised to float32).
        num_probes: How many.
        key: Random key.

    Returns:
        A pytree like `like` with a leading axis `num_probes` on each leaf.

    Raises:
        ValueError: If `like` is not floating or `num_probes` is not positive.

    Example:
        >>> jnp.abs(rademacher(jnp.zeros(2), 3, key=jax.random.key(0))).shape
        (3, 2)
    """
    checks.in_range("num_probes", num_probes, 1)
    like = vectors.uniform(vectors.widened("like", like))
    return optax.tree.random_like(key, vectors.empty_basis(like, num_probes), jax.random.rademacher)


def hutchinson_trace(
    matvec: Callable[[PyTree], PyTree], probes: PyTree, *, batch_size: int = 1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Estimates the trace of a linear map.

    Args:
        matvec: Linear map on one probe.
        probes: Probes with a leading axis on each leaf, as from `rademacher`.
        batch_size: Products computed at once.

    Returns:
        The unbiased estimate and its standard error (NaN from a single probe).

    Raises:
        ValueError: If `matvec` does not match a probe.

    References:
        Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.

    Example:
        >>> probes = rademacher(jnp.zeros(3), 4, key=jax.random.key(0))
        >>> hutchinson_trace(lambda v: jnp.array([1.0, 2.0, 3.0]) * v, probes)
        (Array(6., dtype=float32), Array(0., dtype=float32))
    """
    probes, product = _prepared(matvec, probes)
    forms = jax.lax.map(lambda z: optax.tree.vdot(z, product(z)), probes, batch_size=batch_size)
    return jnp.mean(forms), _standard_error(forms)


def hutchinson_diagonal(matvec: Callable[[PyTree], PyTree], probes: PyTree, *, batch_size: int = 1) -> PyTree:
    """Estimates the diagonal of a linear map.

    Args:
        matvec: Linear map on one probe.
        probes: Probes with a leading axis on each leaf, as from `rademacher`. All 2ⁿ sign vectors
            give the exact diagonal.
        batch_size: Products computed at once.

    Returns:
        The unbiased estimate, a vector like one probe.

    Raises:
        ValueError: If `matvec` does not match a probe.

    References:
        Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix.

    Example:
        >>> probes = rademacher(jnp.zeros(3), 4, key=jax.random.key(0))
        >>> hutchinson_diagonal(lambda v: jnp.array([1.0, 2.0, 3.0]) * v, probes)
        Array([1., 2., 3.], dtype=float32)
    """
    probes, product = _prepared(matvec, probes)
    draws = jax.lax.map(lambda z: jax.tree.map(jnp.multiply, z, product(z)), probes, batch_size=batch_size)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), draws)


def _prepared(matvec: vectors.Matvec, probes: PyTree) -> tuple[Vector, vectors.Matvec]:
    """Returns the probes in one dtype, and the operator checked on the first of them."""
    wide = vectors.widened("probes", probes)
    first = jax.tree.map(lambda leaf: leaf[0], wide)
    return vectors.uniform(wide), vectors.operator("matvec", matvec, "one probe", first)


def _standard_error(draws: Float[Array, " m"]) -> Float[Array, ""]:
    if draws.size == 1:
        return jnp.full((), jnp.nan, draws.dtype)
    return jnp.std(draws, ddof=1) / jnp.sqrt(draws.size)
