"""Binary KL: one Bernoulli divergence per class, on logits.

    L = T^2 sum_k KL( Bern(sigma(z^t_k / T)) || Bern(sigma(z^s_k / T)) )

Unlike a softmax loss it sees the absolute logits, not only their differences.

References:
    Yang, Zong, Huang, Feng, An (2024), Dual-head knowledge distillation: enhancing logits
    utilization with an auxiliary head.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiv import divergences
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses import arguments


def binary_kl(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: Numeric = 2.0,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example sum over the classes of binary divergences, teacher first.

    Args:
        student_logits: The student's scores [B, C].
        teacher_logits: The teacher's scores [B, C].
        temperature: T > 0.
        where: Classes to include, broadcast to [B, C].

    Returns:
        The losses [B].

    Raises:
        ValueError: If logits are integers or empty, shapes differ or the temperature is not
            positive.

    Note:
        Evaluated from the logits, so no probability is clipped, as the authors' code does at 1e-8.

    Example:
        >>> binary_kl(jnp.zeros((1, 2)), jnp.array([[2.0, -2.0]])).round(4)
        Array([0.8876], dtype=float32)
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    mask = arguments.mask(where, student)
    if mask is not None:
        student, teacher = (jnp.where(mask, logits, 0.0) for logits in (student, teacher))

    def bernoulli(logits: Float[Array, "B C"]) -> Float[Array, "B C 2"]:
        """Logits of the two outcomes."""
        half = logits / (2 * temperature)
        return jnp.stack([half, -half], axis=-1)

    terms = divergences.get("kl").on_logits(bernoulli(teacher), bernoulli(student))
    return temperature**2 * jnp.sum(terms, axis=-1)
