"""Decoupled knowledge distillation: the target class apart from the others.

With y the label, b = (p_y, 1 - p_y) and p^ the softmax over the other classes,

    L = T^2 [ alpha KL(b_t || b_s) + beta KL(p^_t || p^_s) ]

Classical distillation is ``KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_t,y) KL(p^_t || p^_s)``: it
suppresses the second term exactly where the teacher is confident.

References:
    Zhao, Cui, Song, Qiu, Liang (2022), Decoupled knowledge distillation, eqs. (4)-(7).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv import divergences
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses import arguments


def dkd(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    alpha: Numeric = 1.0,
    beta: Numeric = 8.0,
    temperature: Numeric = 4.0,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example decoupled distillation loss.

    Args:
        student_logits: The student's scores [B, C], C >= 2.
        teacher_logits: The teacher's scores [B, C].
        labels: Target classes [B].
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term; the paper uses 2 to 8 depending on the pair.
        temperature: T > 0.
        where: Classes to include, broadcast to [B, C].

    Returns:
        The losses [B]. A label outside [0, C), or excluded by `where`, gives NaN in its row.

    Raises:
        ValueError: If logits are integers or empty, shapes do not fit, there is one class only or
            the temperature is not positive.

    Example:
        >>> teacher = jnp.array([[4.0, 0.0, 0.0]])
        >>> dkd(jnp.zeros((1, 3)), teacher, jnp.array([0])).round(3)
        Array([1.973], dtype=float32)
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.shape[1] < 2:
        raise ValueError(f"student_logits must have at least two classes; got {student.shape}.")
    labels, valid = arguments.class_labels("labels", labels, student)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    mask = arguments.mask(where, student)
    target = jax.nn.one_hot(labels, student.shape[1], dtype=jnp.bool_)
    others = ~target
    if mask is not None:
        valid &= jnp.any(mask & target, axis=-1)
        others &= mask

    def binary(logits: Float[Array, "B C"]) -> Float[Array, "B 2"]:
        """Logits of the target class against all others together."""
        label = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        rest = jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf), axis=-1)
        return jnp.stack([label, rest], axis=-1)

    kl = divergences.get("kl")
    student, teacher = student / temperature, teacher / temperature
    target_term = kl.on_logits(binary(teacher), binary(student))
    other_term = kl.on_logits(teacher, student, where=others)
    losses = temperature**2 * (alpha * target_term + beta * other_term)
    return jnp.where(valid, losses, jnp.nan)
