r"""Trilateral features: where a student's prediction stands between its teacher's and the truth.

With the predictions S of the student and T of the teacher, the truth G as a distribution, and the teacher's mean
prediction T̄ over the training examples of the same class, all points of the simplex,

    Δ = [S - T,  T - G,  S - G,  S - T̄,  T̄ - G]

the edges of the triangle (S, T, G) of one example, and of the triangle (S, T̄, G), in which an outlier among the
teacher's predictions is averaged out. A small network maps Δ to the example's ratio of distillation and hard
labels (`jaxdiv.objectives.tgeo_kd`), hence Δ is a constant to the student.

References:
    Hu, Wu, Li, Ma, Chen, Yan, Wang, Liu (2024), Less or More From Teacher: Exploiting Trilateral Geometry For
    Knowledge Distillation, section 3. Which of edges, vertices and lengths the network sees is left open in the public
    text; the edges determine the lengths.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.losses import arguments


def trilateral_features(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    class_predictions: Float[Array, "B C"],
) -> Float[Array, "B 5*C"]:
    """The five edge vectors between student, teacher, truth and the teacher's class mean, side by side.

    Args:
        student_logits: The student's scores [B, C].
        teacher_logits: The teacher's scores [B, C].
        labels: True classes [B].
        class_predictions: The teacher's mean prediction for the class of each example [B, C], rows of
            `class_mean_predictions`: ``table[labels]``.

    Returns:
        The features [B, 5 C], each in [-1, 1]; no gradient flows through them. A NaN row or a label outside the
        classes gives a row of NaN.

    Raises:
        ValueError: If an array is of the wrong kind, is empty, or shapes differ.

    Example:
        >>> logits = jnp.zeros((1, 2))
        >>> edges = trilateral_features(logits, logits, jnp.array([0]), jnp.array([[0.75, 0.25]]))
        >>> edges.reshape(5, 2).tolist()
        [[0.0, 0.0], [-0.5, 0.5], [-0.5, 0.5], [-0.25, 0.25], [-0.25, 0.25]]
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    mean = checks.floating("class_predictions", class_predictions)
    checks.same_shape(student_logits=student, class_predictions=mean)
    labels, valid = arguments.class_labels("labels", labels, student)

    s, t = jax.nn.softmax(student, axis=-1), jax.nn.softmax(teacher, axis=-1)
    g = jnp.where(valid[:, None], jax.nn.one_hot(labels, student.shape[-1], dtype=student.dtype), jnp.nan)
    edges = jnp.concatenate([s - t, t - g, s - g, s - mean, mean - g], axis=-1)
    # Out of range, a row of the table is none either: all of the features are spoiled.
    return jax.lax.stop_gradient(jnp.where(valid[:, None], edges, jnp.nan))


def class_mean_predictions(
    teacher_logits: Float[Array, "N C"], labels: Int[Array, " N"]
) -> Float[Array, "C C"]:
    """The teacher's mean prediction over the examples of each class.

    Args:
        teacher_logits: The teacher's scores on the training set [N, C].
        labels: True classes [N]; examples with a label outside the classes count nowhere.

    Returns:
        The table [C, C], row k for class k; 0 for a class without examples.

    Raises:
        ValueError: If an array is of the wrong kind, is empty, or shapes differ.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]))
        >>> class_mean_predictions(logits, jnp.array([0, 0, 1])).round(3)
        Array([[0.8, 0.2],
               [0.5, 0.5]], dtype=float32)
    """
    logits = arguments.class_logits("teacher_logits", teacher_logits)
    labels, valid = arguments.class_labels("labels", labels, logits)
    members = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * valid[:, None]
    sums = jnp.matmul(members.T, jax.nn.softmax(logits, axis=-1), precision=jax.lax.Precision.HIGHEST)
    return sums / jnp.maximum(jnp.sum(members, axis=0), 1.0)[:, None]
