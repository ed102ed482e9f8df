"""BD-KD: forward and reverse divergence balanced per sample, for teacher and student in joint training.

With p_t, p_s at temperature T, each side treats the other as constant (sg):

    student:  T^2 [ w_F KL(sg p_t || p_s) + w_R KL(p_s || sg p_t) ]
    teacher:  T^2 KL(p_t || sg p_s)

The weights depend on the entropy gap H(p_t) - H(p_s). An over-confident student (gap > 0) gets
(w_F, w_R) = (nu, 1), since the forward divergence covers the mean and raises its entropy; otherwise
(1, nu). The cross-entropies with the labels are further losses in the chain. With nu = 1 the student's
term is T^2 times the Jeffreys divergence.

References:
    Amara, Chen, Nguyen, et al. (2022), BD-KD: balancing the divergences for online knowledge
    distillation. The public text leaves the side that is amplified open, hence ``balance``.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdiv import divergences
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses import arguments
from jaxdiv.losses.distillation.kd import kd

Weights: TypeAlias = tuple[Float[Array, " B"], Float[Array, " B"]]


def entropy_gap_weights(gap: Float[Array, " B"], nu: Numeric) -> Weights:
    """Weights [B] of forward and reverse divergence: (nu, 1) where ``gap > 0``, else (1, nu).

    Args:
        gap: Teacher's entropy minus student's [B].
        nu: Weight of the emphasized side.

    Returns:
        The pair (w_F, w_R).

    Example:
        >>> entropy_gap_weights(jnp.array([0.5, -0.5]), 2.0)
        (Array([2., 1.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    emphasized, plain = jnp.asarray(nu, gap.dtype), jnp.ones((), gap.dtype)
    forward = jnp.where(gap > 0, emphasized, plain)
    return forward, jnp.where(gap > 0, plain, emphasized)


def mirrored_entropy_gap_weights(gap: Float[Array, " B"], nu: Numeric) -> Weights:
    """The opposite rule [B]: (1, nu) where ``gap > 0``, else (nu, 1).

    Example:
        >>> mirrored_entropy_gap_weights(jnp.array([0.5, -0.5]), 2.0)
        (Array([1., 2.], dtype=float32), Array([2., 1.], dtype=float32))
    """
    forward, reverse = entropy_gap_weights(gap, nu)
    return reverse, forward


def bd_kd_student(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    nu: Numeric = 2.0,
    balance: Callable[[Float[Array, " B"], Numeric], Weights] = entropy_gap_weights,
    temperature: Numeric = 1.0,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example balanced distillation term of the student.

    Args:
        student_logits: The student's scores [B, C].
        teacher_logits: The teacher's scores [B, C]; no gradient flows through them.
        nu: Weight of the emphasized side.
        balance: Maps the entropy gap [B] and `nu` to (w_F, w_R); no gradient flows through them.
        temperature: T > 0.
        where: Classes to include, broadcast to [B, C].

    Returns:
        The losses [B].

    Raises:
        ValueError: If logits are integers or empty, shapes differ or the temperature is not
            positive.

    Example:
        >>> bd_kd_student(jnp.zeros((1, 2)), jnp.array([[1.0, -1.0]])).round(4)
        Array([1.1954], dtype=float32)
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    mask = arguments.mask(where, student)
    teacher = lax.stop_gradient(teacher) / temperature
    student = student / temperature
    gap = _entropy(teacher, mask) - _entropy(student, mask)
    forward_weight, reverse_weight = balance(lax.stop_gradient(gap), nu)
    kl = divergences.get("kl")
    forward = kl.on_logits(teacher, student, where=mask)
    reverse = kl.on_logits(student, teacher, where=mask)
    return temperature**2 * (forward_weight * forward + reverse_weight * reverse)


def bd_kd_teacher(
    teacher_logits: Float[Array, "B C"],
    student_logits: Float[Array, "B C"],
    *,
    temperature: Numeric = 1.0,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example regularizer of the teacher, ``T^2 KL(teacher || sg student)``.

    Args:
        teacher_logits: The teacher's scores [B, C], which train here.
        student_logits: The student's scores [B, C]; no gradient flows through them.
        temperature: T > 0.
        where: Classes to include, broadcast to [B, C].

    Returns:
        The losses [B].

    Raises:
        ValueError: If logits are integers or empty, shapes differ or the temperature is not
            positive.

    Example:
        >>> bd_kd_teacher(jnp.array([[1.0, -1.0]]), jnp.zeros((1, 2))).round(4)
        Array([0.3278], dtype=float32)
    """
    teacher, student = arguments.class_pair(teacher_logits=teacher_logits, student_logits=student_logits)
    return kd(
        teacher,
        lax.stop_gradient(student),
        divergence="reverse_kl",
        temperature=temperature,
        where=where,
    )


def _entropy(logits: Float[Array, "B C"], mask: Bool[Array, "B C"] | None) -> Float[Array, " B"]:
    """Shannon entropy of the softmax."""
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0.0, log_p), axis=-1)
