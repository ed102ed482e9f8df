"""Stochastic Lanczos quadrature: the spectral density of a symmetric operator, and traces of functions.

A probe z with E[z zᵀ] = I has zᵀ f(A) z = ‖z‖² Σ_i (u_iᵀ z/‖z‖)² f(λ_i), an integral of f. The Lanczos matrix
T of z is its Gauss quadrature: nodes are the eigenvalues θ_j of T, weights the squared first entries of
its eigenvectors. k steps integrate polynomials of degree 2 k − 1 exactly.

References:
    Golub and Meurant (2010), Matrices, moments and quadrature with applications, chapter 6.
    Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.linalg import vectors
from jaxdiv.linalg.lanczos import lanczos


class SpectralDensity(NamedTuple):
    """The density as weighted nodes, one quadrature a probe.

    Attributes:
        nodes: Ritz values. [m, k]
        weights: Not negative; each row sums to the squared norm of its probe, which is the dimension
            for random signs. [m, k]
    """

    nodes: Float[Array, "m k"]
    weights: Float[Array, "m k"]

    def trace(
        self, fun: Callable[[Float[Array, "m k"]], Float[Array, "m k"]]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Estimates tr f(A).

        Args:
            fun: Elementwise function of eigenvalues, finite on the spectrum.

        Returns:
            The estimate and its standard error over the probes (NaN from a single probe).
        """
        # A node without weight may lie where f is not defined.
        values = jnp.where(self.weights > 0, fun(self.nodes), 0)
        draws = jnp.sum(self.weights * values, axis=-1)
        if draws.size == 1:
            return draws[0], jnp.full((), jnp.nan, draws.dtype)
        return jnp.mean(draws), jnp.std(draws, ddof=1) / jnp.sqrt(draws.size)


def spectral_density(
    matvec: Callable[[PyTree], PyTree], probes: PyTree, *, num_steps: int
) -> SpectralDensity:
    """Estimates the spectral density of a symmetric operator.

    Args:
        matvec: Symmetric linear map on one probe.
        probes: m probes with a leading axis on each leaf, as from `rademacher`.
        num_steps: Lanczos steps k for each probe, at most the dimension.

    Returns:
        The density; ``density.trace(jnp.log)`` is the log-determinant of a positive definite operator.

    Raises:
        ValueError: If `matvec` does not match a probe or `num_steps` is out of range.

    Note:
        Probes run one after the other and each keeps k vectors. Not meant to be differentiated.

    References:
        Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.

    Example:
        >>> probes = jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> density = spectral_density(lambda v: jnp.array([1.0, 2.0]) * v, probes, num_steps=2)
        >>> density.trace(jnp.log)[0].round(4)
        Array(0.6931, dtype=float32)
    """
    probes = vectors.widened("probes", probes)

    def quadrature(z: PyTree) -> tuple[Array, Array]:
        t = lanczos(matvec, z, num_steps=num_steps)
        nodes, s = jnp.linalg.eigh(t.matrix())
        square = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(vectors.uniform(z)))
        return nodes, square * s[0] ** 2

    return SpectralDensity(*jax.lax.map(quadrature, probes))
