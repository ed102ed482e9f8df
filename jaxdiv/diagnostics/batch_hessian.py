"""How the Hessian of a batch differs from that of all the data, and the learning rates that follow from it.

A batch of B of N examples has the Hessian of all plus noise, modelled as a symmetric P × P matrix of independent
entries of variance σ²/𝔟, 𝔟 = (1/B − 1/N)⁻¹ (a Wigner matrix). Its bulk ends at 2 σ √(P/𝔟), and an eigenvalue λ of the
full Hessian appears in that of the batch at

    λ' = λ + P σ² / (𝔟 λ)    if |λ| > σ √(P/𝔟),      else at the edge of the bulk, ± 2 σ √(P/𝔟).

The largest stable learning rate of SGD is 2 / λ'₁ = 2 λ₁ 𝔟 / (λ₁² 𝔟 + P σ²), which ends at 2 / λ₁. Its expansion for
much noise, 2 λ₁ 𝔟 / (P σ²), is the linear scaling rule; but much noise, P σ² > λ₁² 𝔟, is where λ₁ has merged with the
bulk and the rate is 1 / (σ √(P/𝔟)) ~ √𝔟: in this model the rate never grows faster than √𝔟. Preconditioning by the
size of the curvature, as Adam does, leaves a spectrum that the noise dominates, and the square root at all sizes.

References:
    Granziol, Zohren, Roberts (2022), Learning rates as a function of batch size: a random matrix theory approach to
    neural network training. Capitaine, Donati-Martin, Féral (2009), The largest eigenvalues of finite rank
    deformation of large Wigner matrices.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar


def effective_batch(batch_size: Numeric, examples: Numeric) -> Scalar:
    """The 𝔟 of batches drawn without replacement, infinite for the whole data; with replacement 𝔟 is B itself.

    Args:
        batch_size: B, from 1 to N.
        examples: N.

    Raises:
        ValueError: If B is less than 1 or more than N.

    Example:
        >>> print(effective_batch(50, 100))
        100.0
    """
    checks.in_range("batch_size", batch_size, 1)
    if checks.concrete(batch_size) and checks.concrete(examples) and batch_size > examples:
        raise ValueError(f"batch_size must be at most the number of examples {examples}; got {batch_size}.")
    size, count = jnp.asarray(batch_size, float), jnp.asarray(examples, float)
    whole = size >= count
    return jnp.where(whole, jnp.inf, size / jnp.where(whole, 1, 1 - size / count))


def batch_hessian_spike(
    eigenvalue: Float[Array, "..."],
    num_params: Numeric,
    effective_batch: Numeric,
    noise_variance: Numeric,
) -> Float[Array, "..."]:
    """Where an eigenvalue of the full Hessian appears in the Hessian of a batch.

    Args:
        eigenvalue: λ, of either sign, any shape.
        num_params: P.
        effective_batch: 𝔟, see `effective_batch`.
        noise_variance: σ² of an entry for one example, see `hessian_noise`.

    Returns:
        λ' in the shape of λ, float32 or wider.

    Raises:
        ValueError: If P, 𝔟 or σ² is out of range.

    Note:
        The noise of a network is not that of a Wigner matrix: its rank is at most the batch size times the number of
        classes. The direction is right, the size not: on a small network on digits batches of 16 had the
        largest eigenvalue 2.9, where the model with σ² from `hessian_noise` says 1.6 and all the data have 1.6.

    Example:
        >>> print(batch_hessian_spike(jnp.array([5.0, 1.0]), 1000, 64, 1.0).round(3))
        [8.125 7.906]
    """
    eigenvalue = checks.floating("eigenvalue", eigenvalue)
    edge = _half_edge(num_params, effective_batch, noise_variance)
    out = jnp.abs(eigenvalue) > edge
    safe = jnp.where(out, eigenvalue, 1)
    # At λ = 0 the sign is taken as positive: both ends of the bulk are its place.
    sign = jnp.where(eigenvalue < 0, -1, 1)
    return jnp.where(out, eigenvalue + edge * (edge / safe), sign * 2 * edge)


def max_learning_rate(
    eigenvalue: Numeric,
    num_params: Numeric,
    effective_batch: Numeric,
    noise_variance: Numeric,
    *,
    kind: Literal["sgd", "adam"] = "sgd",
) -> Scalar:
    """Largest stable learning rate at a batch size.

    Args:
        eigenvalue: Largest eigenvalue λ₁ > 0 of the Hessian of all data.
        num_params: P.
        effective_batch: 𝔟, see `effective_batch`.
        noise_variance: σ².
        kind: ``"sgd"`` for 2 / λ'₁, ``"adam"`` for 1 / (σ √(P/𝔟)), of which only the growth with 𝔟 is a prediction.

    Returns:
        The learning rate; infinite for Adam without noise.

    Raises:
        ValueError: If `kind` is unknown or a number out of range.

    Example:
        >>> [round(float(max_learning_rate(5.0, 1000, b, 1.0)), 3) for b in (64, 8000)]
        [0.246, 0.398]
    """
    checks.one_of("kind", kind, ("sgd", "adam"))
    checks.in_range("eigenvalue", eigenvalue, 0, open_low=True)
    if kind == "sgd":
        spike = batch_hessian_spike(
            jnp.asarray(eigenvalue, float), num_params, effective_batch, noise_variance
        )
        return 2 / spike
    return 1 / _half_edge(num_params, effective_batch, noise_variance)


def _half_edge(num_params: Numeric, effective_batch: Numeric, noise_variance: Numeric) -> Scalar:
    """σ √(P/𝔟)."""
    checks.in_range("num_params", num_params, 1)
    checks.in_range("effective_batch", effective_batch, 0, open_low=True)
    checks.in_range("noise_variance", noise_variance, 0)
    return jnp.sqrt(jnp.asarray(noise_variance, float) * num_params / effective_batch)
