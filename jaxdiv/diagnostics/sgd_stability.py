"""Linear stability of stochastic gradient descent at a minimum that interpolates.

At a minimum of (1/2n) Σ (f_i − y_i)² with no residual, let a_i = ∇f_i and G = (1/n) Σ a_i a_iᵀ, the Hessian. Around it
SGD with learning rate η and batches of B multiplies θ by I − η G_B, so that V = E[θ θᵀ] moves by

    T(V) = V − η (G V + V G) + η² C(V),     C(V) = G V G + γ [ (1/n) Σ (a_iᵀ V a_i) a_i a_iᵀ − G V G ],

with γ = 1/B (batches drawn with replacement) or (n − B) / (B (n − 1)) (without). T is symmetric and keeps V positive
semidefinite, so SGD is stable in mean square on the span of the a_i iff λmax(T) ≤ 1, that is iff

    η ≤ 1 / μ,     μ the largest with C(V) = μ (G V + V G),

one symmetric eigenvalue problem on matrices of the size of the span. V = I tests it and gives the bound

    η ≤ 2 tr G / [ (1 − γ) ‖G‖_F² + γ (1/n) Σ ‖a_i‖⁴ ] ≤ 2 tr G / [ (1 − γ) ‖G‖_F² + γ (tr G)² ],

the latter 2 / tr G for B = 1 and 2 tr G / ‖G‖_F² for γ = 0, where gradient descent asks for η ≤ 2 / λmax(G) alone.

References:
    Wu, Su (2023), The implicit regularization of dynamical stability in stochastic gradient descent. Wu, Ma, E (2018),
    How SGD selects the global minima in over-parameterized learning: a dynamical stability perspective.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv import linalg
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


class SGDStability(NamedTuple):
    """Largest learning rates at which a minimum is stable, and bounds on them.

    Attributes:
        critical: Of SGD, in mean square; a larger one leaves the minimum.
        identity_bound: The bound from V = I, at least `critical`.
        trace_bound: The bound from the trace, at least `identity_bound`; 2 / tr G for batches of one.
        gradient_descent: 2 / λmax(G), at least `critical`.
        residual: Relative error of `critical` that the eigenvalue iteration may have left.
    """

    critical: Scalar
    identity_bound: Scalar
    trace_bound: Scalar
    gradient_descent: Scalar
    residual: Scalar


def sgd_stability(
    jacobian: Float[Array, "n p"], batch_size: Numeric, *, replace: bool = True, num_steps: int = 100
) -> SGDStability:
    """Critical learning rate of SGD at an interpolating minimum of the squared loss, with its bounds.

    Args:
        jacobian: Gradients a_i of the model's outputs, one row per example [n, p].
        batch_size: B >= 1; infinite for gradient descent, with replacement.
        replace: Whether batches are drawn with replacement.
        num_steps: Lanczos steps, of n r² operations each, r = min(n, p); as many as r² are exact.

    Returns:
        An `SGDStability`, float32 or wider.

    Raises:
        ValueError: If the Jacobian is not a matrix, or the batch size is out of range.

    Note:
        Gradients that span less than r dimensions are no trouble: directions in which G is 0 to rounding are left out.
        For other losses than the squared one, take a_i = (ℓ''_i)^½ ∇f_i.

    References:
        Wu, Su (2023).

    Example:
        Orthogonal gradients of norm 1 attain the trace bound; gradient descent may go n times as fast.

        >>> result = sgd_stability(jnp.eye(3, 5), 1)
        >>> [round(float(x), 4) for x in result[:4]]
        [2.0, 2.0, 2.0, 6.0]
    """
    jacobian, gamma = _arguments(jacobian, batch_size, replace)
    n, p = jacobian.shape
    # In the eigenbasis of G, its part on the span, where G V + V G is elementwise.
    u, s, _ = jnp.linalg.svd(jacobian / np.sqrt(n), full_matrices=False)
    tiny = s <= float(jnp.finfo(s.dtype).eps) * max(n, p) * s[0]
    s = jnp.where(tiny, 0, s)
    rows, eigenvalues = np.sqrt(n) * u * s, s**2
    sums = eigenvalues[:, None] + eigenvalues
    outside = tiny[:, None] | tiny
    root = jnp.where(outside, 0, 1 / jnp.sqrt(jnp.where(outside, 1, sums)))

    def product(v: Float[Array, "r r"]) -> Float[Array, "r r"]:
        return root * _noisy_curvature(rows, eigenvalues, gamma, root * v)

    # The eigenvector of T at the critical rate is positive semidefinite, hence never orthogonal to the start.
    start = jnp.diag(jnp.sqrt(2 * eigenvalues))
    steps = min(num_steps, start.size)
    pairs = linalg.eigsh(product, start, k=1, num_steps=steps)
    trace, square = jnp.sum(eigenvalues), jnp.sum(eigenvalues**2)
    fourth = jnp.mean(jnp.sum(rows**2, axis=1) ** 2)
    return SGDStability(
        critical=1 / pairs.values[0],
        identity_bound=2 * trace / ((1 - gamma) * square + gamma * fourth),
        trace_bound=2 * trace / ((1 - gamma) * square + gamma * trace**2),
        gradient_descent=2 / eigenvalues[0],
        residual=pairs.residuals[0] / pairs.values[0],
    )


def linear_stability_operator(
    jacobian: Float[Array, "n p"], learning_rate: Numeric, batch_size: Numeric, *, replace: bool = True
) -> Callable[[Float[Array, "p p"]], Float[Array, "p p"]]:
    """One step of SGD on the second moment of the distance to an interpolating minimum.

    Args:
        jacobian: Gradients a_i, one row per example [n, p].
        learning_rate: η.
        batch_size: B >= 1.
        replace: Whether batches are drawn with replacement.

    Returns:
        T, from E[θ θᵀ] before a step to that after it. [p, p]

    Raises:
        ValueError: If the Jacobian is not a matrix, or the batch size is out of range.

    Example:
        >>> step = linear_stability_operator(jnp.eye(1), 0.5, 1)
        >>> step(jnp.eye(1))
        Array([[0.25]], dtype=float32)
    """
    jacobian, gamma = _arguments(jacobian, batch_size, replace)
    n, _ = jacobian.shape

    def curved(v: Float[Array, "p p"]) -> Float[Array, "p p"]:
        """G V."""
        return jnp.matmul(jacobian.T, jnp.matmul(jacobian, v, precision="highest"), precision="highest") / n

    def step(v: Float[Array, "p p"]) -> Float[Array, "p p"]:
        # V G by a product of its own: (G V)ᵀ would let the rounding errors that are not symmetric grow.
        g_v, v_g = curved(v), curved(v.T).T
        g_v_g = curved(v_g)
        noise = _noise(jacobian, v) - g_v_g
        return v - learning_rate * (g_v + v_g) + learning_rate**2 * (g_v_g + gamma * noise)

    return step


def _arguments(
    jacobian: Float[Array, "n p"], batch_size: Numeric, replace: bool
) -> tuple[Float[Array, "n p"], Scalar]:
    """The Jacobian in float32 or wider, and γ."""
    jacobian = checks.floating("jacobian", jacobian)
    checks.rank("jacobian", jacobian, 2)
    checks.not_empty("jacobian", jacobian)
    n = jacobian.shape[0]
    checks.in_range("batch_size", batch_size, 1, np.inf if replace else n)
    size = jnp.asarray(batch_size, jacobian.dtype)
    return jacobian, 1 / size if replace else (n - size) / (size * max(n - 1, 1))


def _noise(rows: Float[Array, "n r"], v: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """(1/n) Σ (a_iᵀ V a_i) a_i a_iᵀ."""
    forms = jnp.sum(jnp.matmul(rows, v, precision="highest") * rows, axis=1)
    return jnp.matmul(rows.T * forms, rows, precision="highest") / rows.shape[0]


def _noisy_curvature(
    rows: Float[Array, "n r"], eigenvalues: Float[Array, " r"], gamma: Scalar, v: Float[Array, "r r"]
) -> Float[Array, "r r"]:
    """C(V) in the eigenbasis of G."""
    g_v_g = eigenvalues[:, None] * v * eigenvalues
    return (1 - gamma) * g_v_g + gamma * _noise(rows, v)
