"""Logit standardization: z-scores over the classes.

    Z(z)_k = (z_k - mean(z)) / std(z),     std(z)^2 = (1/C) sum_k (z_k - mean(z))^2

The student then has to match the teacher's logit relations, not their magnitude. Applied to both sides
before a distillation loss, whose temperature becomes the paper's base temperature:
``kd(standardize_logits(s), standardize_logits(t), temperature=2.0)``.

References:
    Sun, Ren, Li, Wang, Cao (2024), Logit standardization in knowledge distillation, algorithm 1.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdiv.losses import arguments


def standardize_logits(
    logits: Float[Array, "B C"], *, where: Bool[Array, "B C"] | None = None
) -> Float[Array, "B C"]:
    """Z-scores each row of logits; not a loss itself but what several losses are fed.

    Args:
        logits: Scores [B, C].
        where: Classes that enter mean and deviation, broadcast to [B, C]; the others become 0.

    Returns:
        The standardized logits, with mean 0 and variance 1 in each row; a row of equal logits
        becomes 0 with gradient 0.

    Raises:
        ValueError: If the logits are integers, empty or not of rank 2.

    Note:
        The authors' code divides by the sample deviation (C - 1 for C) plus 1e-7, which is a
        temperature larger by sqrt(C / (C - 1)).

    Example:
        >>> standardize_logits(jnp.array([[1.0, 2.0, 3.0]])).round(4)
        Array([[-1.2247,  0.    ,  1.2247]], dtype=float32)
    """
    dtype = jnp.asarray(logits).dtype
    logits = arguments.class_logits("logits", logits)
    mask = arguments.mask(where, logits)
    if mask is not None:
        logits = jnp.where(mask, logits, 0.0)
    centered = logits - jnp.mean(logits, axis=-1, keepdims=True, where=mask)
    if mask is not None:
        centered = jnp.where(mask, centered, 0.0)
    # The result does not depend on scale, so dividing by a constant changes no gradient and keeps
    # the squares in range.
    largest = lax.stop_gradient(jnp.max(jnp.abs(centered), axis=-1, keepdims=True))
    constant = largest == 0
    scaled = centered / jnp.where(constant, 1.0, largest)
    variance = jnp.mean(scaled**2, axis=-1, keepdims=True, where=mask)
    scores = scaled / jnp.sqrt(jnp.where(constant, 1.0, variance))
    return jnp.where(constant, 0.0, scores).astype(dtype)
