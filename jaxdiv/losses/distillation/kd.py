"""Knowledge distillation by any f-divergence between softened teacher and student.

    L = T^2 D_f( softmax(z_t / T) || softmax(z_s / T) )

With the Kullback-Leibler divergence this is the soft part of Hinton's loss up to the teacher's entropy;
the factor T^2 keeps its gradient of one size: for large T it tends to (z_s - z_t) / C for logits of
zero mean. The mixture with the hard labels is a second loss in the chain.

References:
    Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network, section 2.
"""

from jaxtyping import Array, Bool, Float

from jaxdiv import divergences
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.losses import arguments


def kd(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    divergence: str | divergences.FDivergence = "kl",
    temperature: Numeric = 4.0,
    where: Bool[Array, "B C"] | None = None,
) -> Float[Array, " B"]:
    """Per-example distillation loss ``T^2 D_f(teacher || student)``.

    Args:
        student_logits: The student's scores [B, C].
        teacher_logits: The teacher's scores [B, C]. Gradients flow through them; stop them outside
            if the teacher trains by another loss.
        divergence: An f-divergence or its name: ``"kl"`` covers the teacher's modes,
            ``"reverse_kl"`` seeks one.
        temperature: T > 0.
        where: Classes to include, broadcast to [B, C].

    Returns:
        The losses [B].

    Raises:
        ValueError: If logits are integers or empty, shapes differ, the temperature is not positive
            or the divergence is unknown.

    Example:
        >>> kd(jnp.zeros((2, 3)), jnp.array([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).round(3)
        Array([1.973, 0.   ], dtype=float32)
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    mask = arguments.mask(where, student)
    if isinstance(divergence, str):
        divergence = divergences.get(divergence)
    softened = divergence.on_logits(teacher / temperature, student / temperature, where=mask)
    return temperature**2 * softened
