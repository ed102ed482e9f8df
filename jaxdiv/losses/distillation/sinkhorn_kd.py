r"""Sinkhorn distillation (SinKD): transport between a batch of student and a batch of teacher distributions.

With a_i = softmax(z^s_i / T), b_j = softmax(z^t_j / T) and costs D_ij = |a_i - b_j|_1, the kernel
``K = exp(-D / epsilon)`` is scaled to row sums 1 and then to column sums 1, `num_steps` times, which gives P;

    L = 1/B Σ_ij P_ij D_ij,

its gradient that of all these operations. The paper's loss is the sum, B L. Entry (i, j) of P / B is
``u_i u_j exp((f_i + g_j - D_ij) / epsilon)`` with weights u = 1/B and the potentials of as many steps of
`ot.Sinkhorn` from 0, so that rows of other weights, or none, mean the same.

The plan is not told which teacher row belongs to which student row: L is invariant to the order of either,
and teaches labels only beside a cross entropy. It is above 0 for equal batches, for P is no permutation;
``L(s, t) - L(s, s)/2 - L(t, t)/2`` is 0 there. A batch of one gives ``|a - b|_1`` at any epsilon, the loss of
the paper's code for single samples.

References:
    Cui et al. (2024), Sinkhorn Distance Minimization for Knowledge Distillation, sec. 3.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.losses import arguments
from jaxdiv.ot.geometry import softmin

# Costs are at most 2, so that exponents stay within ±2/epsilon for the kernel and twice that for potentials.
SAFE_EPSILON = 0.1
# Differences of probabilities held at a time.
BLOCK_LIMIT = 2**21


def sinkhorn_kd(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: Numeric = 2.0,
    epsilon: Numeric = 0.1,
    num_steps: int = 20,
    debias: bool = False,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Transport cost between the student's and the teacher's batch; a scalar of the whole batch.

    Args:
        student_logits: The student's scores [B, C].
        teacher_logits: The teacher's scores [B, C], whose gradient is not stopped here.
        temperature: T > 0 of both softmaxes; the paper's 2.
        epsilon: Strength of the entropy, positive; the paper's 0.1, for costs in [0, 2].
        num_steps: Scalings of rows and columns; the paper's 20. An epsilon below 0.1 needs more: until they
            settle, rows do not sum to 1 and the value may be below the optimum.
        debias: Whether to subtract half the cost of each batch to itself. The value may then be negative.
        weights: Nonnegative weights [B] of the rows, of student and teacher alike; 1 by default. 0 is an
            absent row, which may hold anything.

    Returns:
        The mean cost, in [0, 2] if not debiased; NaN if no weight is positive.

    Raises:
        ValueError: If logits are integers or empty, shapes differ, the weights are not [B], or an option is
            out of its range.

    Note:
        A concrete epsilon of at least 0.1 is computed with products of the kernel matrix, which cannot leave
        float32's range; a smaller or a traced one in log space, at several times the cost. Reverse mode
        keeps the potentials of each step, B numbers, or in log space the kernel, B^2.

    Example:
        >>> logits = jnp.array([[4.0, 0.0], [0.0, 4.0]])
        >>> print(f"{sinkhorn_kd(logits[:1], logits[1:]):.3f}, {sinkhorn_kd(logits, logits[::-1]):.3f}")
        1.523, 0.000
    """
    student, teacher = arguments.class_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    checks.in_range("epsilon", epsilon, 0.0, open_low=True)
    checks.in_range("num_steps", num_steps, 1)
    batch = student.shape[0]
    if weights is None:
        shares = jnp.full((batch,), 1.0 / batch, student.dtype)
    else:
        weights = checks.floating("weights", weights).astype(student.dtype)
        if weights.shape != (batch,):
            raise ValueError(f"weights must hold one weight per row, shape {(batch,)}; got {weights.shape}.")
        present = (weights > 0)[:, None]
        student, teacher = jnp.where(present, student, 0.0), jnp.where(present, teacher, 0.0)
        shares = weights / jnp.sum(weights)
    a, b = jax.nn.softmax(student / temperature), jax.nn.softmax(teacher / temperature)

    def cost(x: Float[Array, "B C"], y: Float[Array, "B C"]) -> Scalar:
        return _transport_cost(_distances(x, y), shares, epsilon, num_steps)

    value = cost(a, b)
    return value - 0.5 * (cost(a, a) + cost(b, b)) if debias else value


def _distances(x: Float[Array, "B C"], y: Float[Array, "B C"]) -> Float[Array, "B B"]:
    """``|x_i - y_j|_1``, so many rows at a time that B^2 C numbers need not be held."""

    @partial(jax.checkpoint, prevent_cse=False)
    def row(x: Float[Array, " C"]) -> Float[Array, " B"]:
        return jnp.sum(jnp.abs(x - y), axis=-1)

    return jax.lax.map(row, x, batch_size=min(len(x), max(1, BLOCK_LIMIT // y.size)))


def _transport_cost(
    distances: Float[Array, "B B"], shares: Float[Array, " B"], epsilon: Numeric, num_steps: int
) -> Scalar:
    """``<P, D>`` after the given number of steps from potentials 0."""
    smoothed = _softmins(distances, shares, epsilon)

    def step(g: Array, _: None) -> tuple[Array, Array]:
        f = smoothed(g, 1)
        return smoothed(f, 0), f

    g, f = jax.lax.scan(step, jnp.zeros_like(shares), length=num_steps)
    plan = shares[:, None] * shares * jnp.exp((f[-1][:, None] + g - distances) / epsilon)
    return jnp.sum(plan * distances)


def _softmins(
    distances: Float[Array, "B B"], shares: Float[Array, " B"], epsilon: Numeric
) -> Callable[[Array, int], Array]:
    """``-epsilon log sum shares exp((h - D) / epsilon)`` as a function of h and the axis of the sum."""
    if not checks.concrete(epsilon) or epsilon < SAFE_EPSILON:
        return lambda h, axis: softmin(h, shares, distances, epsilon, axis)
    kernel = jnp.exp(-distances / epsilon)

    def by_kernel(h: Array, axis: int) -> Array:
        matrix = kernel if axis == 1 else kernel.T
        product = jnp.matmul(matrix, shares * jnp.exp(h / epsilon), precision=jax.lax.Precision.HIGHEST)
        return -epsilon * jnp.log(product)

    return by_kernel
