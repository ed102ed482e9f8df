"""Unit balls with a linear minimization oracle and the dual norm, as steps of a given length take them.

A `convex.Norm` is one. Two more, for weights of shape [d_in, d_out]:

    RMS→RMS operator norm   √(d_in/d_out) σ_max(W): the oracle is -√(d_out/d_in) U Vᵀ, the dual norm
                            √(d_out/d_in) Σ σ_i, so that a step changes outputs of any width alike;
    Newton–Schulz           U Vᵀ by the iteration of Muon, whose singular values lie around 1.

References:
    Pethick, Xie, Antonakopoulos, Zhu, Silveti-Falls, Cevher (2025), Training deep learning models with
    norm-constrained LMOs, table 2. Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv import convex
from jaxdiv.core import checks


class Ball(Protocol):
    """A unit ball, on one leaf at a time; every `convex.Norm` is one."""

    def lmo(self, g: Float[Array, "*s"], /) -> Float[Array, "*s"]:
        """The point of the ball where ``⟨g, x⟩`` is least."""

    def dual(self, y: Float[Array, "*s"], /) -> Float[Array, "..."]:
        """The dual norm, -⟨y, lmo(y)⟩; one per element of a batch."""


class LMO(NamedTuple):
    """A unit ball given by its two functions.

    Attributes:
        lmo: ``(g) -> x``, the point where ``⟨g, x⟩`` is least.
        dual: ``(y) -> ‖y‖_*``.
    """

    lmo: Callable[[Float[Array, "*s"]], Float[Array, "*s"]]
    dual: Callable[[Float[Array, "*s"]], Float[Array, "..."]]


def newton_schulz(steps: int = 5) -> LMO:
    """The spectral ball by Muon's iteration, as `optax.contrib.scale_by_muon` has it, without a decomposition.

    Args:
        steps: Iterations.

    Returns:
        A ball for leaves [m, n]. Its oracle's singular values lie between about 0.7 and 1.2, but for those of
        directions in which g is small; its dual norm is ⟨y, -lmo(y)⟩, within about 15% of the nuclear norm.

    Raises:
        ValueError: If there is no step.

    Example:
        >>> from jaxdiv import transforms
        >>> (-transforms.newton_schulz().lmo(jnp.diag(jnp.array([3.0, 2.0])))).round(1).tolist()
        [[1.100000023841858, 0.0], [0.0, 0.699999988079071]]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    matrix = optax.contrib.MuonDimensionNumbers()
    muon = optax.contrib.scale_by_muon(
        ns_steps=steps, beta=0.0, nesterov=False, weight_dimension_numbers=matrix
    )

    def lmo(g: Array) -> Array:
        checks.rank("g", g, 2)
        return -muon.update(g, muon.init(g))[0]

    return LMO(lmo, lambda y: -jnp.sum(y * lmo(y)))


def rms_operator(base: Ball = convex.spectral) -> LMO:
    """The ball of the RMS→RMS operator norm.

    Args:
        base: That of the spectral norm, exact by default, or `newton_schulz`.

    Returns:
        A ball for leaves of shape [..., d_in, d_out], as flax's kernels have it.

    Example:
        >>> from jaxdiv import transforms
        >>> (-transforms.rms_operator().lmo(jnp.ones((1, 4)))).round(3).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def factor(x: Array) -> float:
        checks.rank("g", x, *range(2, max(x.ndim, 2) + 1))
        return math.sqrt(x.shape[-1] / x.shape[-2])

    return LMO(lambda g: factor(g) * base.lmo(g), lambda y: factor(y) * base.dual(y))
