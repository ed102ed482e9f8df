"""Hutch++: the trace of a low-rank part exactly, of the rest by Hutchinson's estimator.

With Q an orthonormal basis of the range of A S for random signs S, and P = I − Q Qᵀ:

    tr A = tr(Qᵀ A Q) + tr(P A P),   the second term estimated by  mean_i g_iᵀ P A P g_i.

For a positive semidefinite A, O(1/δ) products give relative error δ; Hutchinson's estimator needs O(1/δ²).

References:
    Meyer, Musco, Musco and Woodruff (2021), Hutch++: optimal stochastic trace estimation, algorithm 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.linalg import vectors


def hutchpp(matvec: Callable[[PyTree], PyTree], probes: PyTree, *, batch_size: int = 1) -> Float[Array, ""]:
    """Estimates the trace of a symmetric linear map.

    Args:
        matvec: Symmetric linear map on one probe.
        probes: m probes (m even) with a leading axis on each leaf, as from `rademacher`: half of
            them span the low-rank part, half estimate the rest. The map is applied 3 m / 2 times.
        batch_size: Products computed at once.

    Returns:
        The unbiased estimate; exact when the rank is at most m / 2.

    Raises:
        ValueError: If the number of probes is odd, or `matvec` does not match a probe.

    References:
        Meyer, Musco, Musco and Woodruff (2021), Hutch++, algorithm 1.

    Example:
        >>> signs = jnp.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
        >>> hutchpp(lambda v: jnp.ones(3) * v.sum(), signs).round(4)
        Array(3., dtype=float32)
    """
    wide = vectors.widened("probes", probes)
    first = jax.tree.map(lambda leaf: leaf[0], wide)
    product = vectors.operator("matvec", matvec, "one probe", first)
    _, unravel = ravel_pytree(vectors.uniform(first))
    flat = jax.vmap(lambda z: ravel_pytree(z)[0])(vectors.uniform(wide))
    checks.in_range("the number of probes modulo 2", flat.shape[0] % 2, 0, 0)

    def apply(rows: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return jax.lax.map(lambda v: ravel_pytree(product(unravel(v)))[0], rows, batch_size=batch_size)

    with jax.default_matmul_precision("highest"):
        sketch, rest = jnp.split(flat, 2)
        q = jnp.linalg.qr(apply(sketch).T)[0]
        rest = rest - (rest @ q) @ q.T
        exact = jnp.sum(q.T * apply(q.T))
        return exact + jnp.sum(rest * apply(rest)) / rest.shape[0]
