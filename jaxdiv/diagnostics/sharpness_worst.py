"""Worst-case sharpness: how far the loss rises inside a ball around the parameters, by projected ascent.

    S_max^ρ(w) = E_chunk [ max_{‖δ ⊘ c‖_p ≤ ρ} L(w + δ) − L(w) ],     c = |w| (adaptive) or 1,   p ∈ {2, ∞}.

With δ = ρ c ⊙ u the ball is the unit ball of u and the steepest ascent in it is that of u: for p = 2 along
c² ⊙ ∇L. A rescaling of weights that leaves the function as it is leaves the adaptive problem in u as it is, so the
whole ascent is invariant, not only its limit; weights that are 0 never move. Auto-PGD, from a random start and
with step s = 2 first:

    z = Π(u + s d),    u⁺ = Π(u + ¾ (z − u) + ¼ (u − u⁻)),    d = sign ∇ (p = ∞) or ∇ / ‖∇‖ (p = 2),

the first step being u⁺ = z; s halves, and the ascent starts again from the best point, where since the last checkpoint
fewer than ¾ of the steps rose, or neither s nor the best value changed. Checkpoints stand at the shares q_1 = 0.22,
q_{j+1} = q_j + max(q_j − q_{j−1} − 0.03, 0.06) of the steps.

References:
    Andriushchenko, Croce, Müller, Hein, Flammarion (2023), A modern look at the relationship between sharpness and
    generalization. Croce, Hein (2020), Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, algorithm 1. Kwon, Kim, Park, Choi (2021), ASAM.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batches import BatchLoss

Ball: TypeAlias = Literal["l2", "linf", "adaptive", "adaptive_linf"]


class _Ascent(NamedTuple):
    """State of Auto-PGD in the unit ball.

    Attributes:
        point: u.
        before: u⁻.
        value: Rise at u, with `gradient`.
        gradient: Its gradient.
        best: The highest rise, with its point and gradient.
        best_point: The point there.
        best_gradient: The gradient there.
        size: s.
        risen: Steps that rose since the last checkpoint.
        size_then: s at the last checkpoint.
        best_then: The highest rise there.
    """

    point: PyTree
    before: PyTree
    value: Scalar
    gradient: PyTree
    best: Scalar
    best_point: PyTree
    best_gradient: PyTree
    size: Scalar
    risen: Int[Array, ""]
    size_then: Scalar
    best_then: Scalar


def sharpness_worst(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    rho: Numeric,
    *,
    geometry: Ball = "adaptive_linf",
    m: int | None = None,
    steps: int = 20,
    where: PyTree | None = None,
    key: Key,
) -> Scalar:
    """Largest rise of the loss in a ball around the parameters, the mean over chunks of the batch.

    Args:
        loss_fn: ``(params, batch) -> scalar``, in evaluation mode.
        params: Parameters w, floating.
        batch: Arrays with one row per example.
        rho: Radius ρ >= 0, relative to |w| in the adaptive geometries.
        geometry: ``"l2"`` or ``"linf"`` of δ, ``"adaptive"`` or ``"adaptive_linf"`` of δ / |w|, as in `core.perturb`.
        m: Examples in a chunk, each of which has its own worst point; the paper's is 256. The whole batch by default.
        steps: Ascent steps; each costs one gradient of a chunk.
        where: Numbers or booleans that multiply c, a prefix of the tree of `params`: 0 holds a part still.
        key: Random key of the starts.

    Returns:
        The rise, >= 0 since δ = 0 is in the ball, and a lower bound of the true maximum; float32 or wider. NaN if the
        loss was NaN anywhere on the way.

    Raises:
        ValueError: If the geometry is unknown, ρ negative, there is no step, or m does not divide the batch.

    Note:
        Compare values of one ρ and one number of steps. To take out the scale of the logits, which sharpness follows,
        give a loss of ``losses.standardize_logits``.

    References:
        Andriushchenko et al. (2023).

    Example:
        >>> loss = lambda w, x: jnp.dot(w, x)
        >>> w, x = jnp.array([1.0, -2.0]), jnp.array([3.0, 1.0])
        >>> print(sharpness_worst(loss, w, x, 0.1, key=jax.random.key(0)).round(4))
        0.5
    """
    checks.one_of("geometry", geometry, get_args(Ball))
    checks.in_range("rho", rho, 0.0)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    params = batches.widened(loss_fn, params, batch)
    scale = batches.scale(params, geometry.startswith("adaptive"))
    if where is not None:
        scale = jax.tree.map(lambda on, part: jax.tree.map(lambda c: c * on, part), where, scale)
    ball: Literal["l2", "linf"] = "linf" if geometry.endswith("linf") else "l2"

    def of_chunk(chunk: PyTree, key: Key) -> Scalar:
        here = loss_fn(params, chunk)

        def rise(u: PyTree) -> Scalar:
            moved = jax.tree.map(lambda w, c, v: w + (rho * c * v).astype(w.dtype), params, scale, u)
            return loss_fn(moved, chunk) - here

        return jnp.maximum(_ascend(rise, _start(params, ball, key), ball, steps), 0)

    return jnp.mean(batches.over_chunks(of_chunk, batch, m, key))


def _start(params: Params, ball: str, key: Key) -> PyTree:
    """A random point: uniform in the cube, or on the sphere."""
    if ball == "linf":
        return optax.tree.random_like(
            key, params, lambda k, shape, dtype: jax.random.uniform(k, shape, dtype, -1, 1)
        )
    direction = optax.tree.random_like(key, params, jax.random.normal)
    return core.perturbation(params, direction, 1.0, geometry="l2")


def _project(u: PyTree, ball: str) -> PyTree:
    if ball == "linf":
        return optax.projections.projection_linf_ball(u, 1.0)
    norm = core.safe_norm(jnp.stack([core.safe_norm(leaf) for leaf in jax.tree.leaves(u)]))
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(norm, 1).astype(leaf.dtype), u)


def checkpoints(steps: int) -> Bool[np.ndarray, " steps"]:
    """Marks the steps after which Auto-PGD looks back."""
    marks = np.zeros(steps, bool)
    before, share = 0, 22
    while share <= 100:  # percent, so that nothing is rounded
        marks[-(-share * steps // 100) - 1] = True
        before, share = share, share + max(share - before - 3, 6)
    return marks


def _ascend(
    rise: Callable[[PyTree], Scalar], start: PyTree, ball: Literal["l2", "linf"], steps: int
) -> Float[Array, ""]:
    """Returns the highest value that Auto-PGD meets."""
    value_and_grad = jax.value_and_grad(rise)
    marks = checkpoints(steps)
    last = np.maximum.accumulate(np.where(np.concatenate([[True], marks[:-1]]), np.arange(steps), 0))
    window = np.arange(steps) - last + 1
    value, gradient = value_and_grad(start)
    size = jnp.asarray(2.0, value.dtype)
    state = _Ascent(
        start, start, value, gradient, value, start, gradient, size, jnp.zeros((), jnp.int32), size, value
    )

    def step(state: _Ascent, now: tuple[Array, Array, Array]) -> tuple[_Ascent, None]:
        mark, window, share = now
        moved = core.perturb(state.point, state.gradient, state.size, geometry=ball)
        target = _project(moved, ball)
        mixed = jax.tree.map(
            lambda u, z, old: (u + share * (z - u) + (1 - share) * (u - old)).astype(u.dtype),
            state.point,
            target,
            state.before,
        )
        point = _project(mixed, ball)
        value, gradient = value_and_grad(point)
        # A NaN stays: nothing is larger than it.
        better = (value > state.best) | jnp.isnan(value)
        best, best_point, best_gradient = _choose(
            better,
            (value, point, gradient),
            (state.best, state.best_point, state.best_gradient),
        )
        risen = state.risen + (value > state.value)
        stuck = (state.size == state.size_then) & (best == state.best_then)
        halve = mark & ((risen < 0.75 * window) | stuck)
        point, before, value, gradient = _choose(
            halve,
            (best_point, best_point, best, best_gradient),
            (point, state.point, value, gradient),
        )
        size = jnp.where(halve, state.size / 2, state.size)
        return _Ascent(
            point,
            before,
            value,
            gradient,
            best,
            best_point,
            best_gradient,
            size,
            jnp.where(mark, 0, risen),
            jnp.where(mark, state.size, state.size_then),
            jnp.where(mark, best, state.best_then),
        ), None

    # The first step goes all the way.
    shares = jnp.where(jnp.arange(steps) == 0, 1.0, 0.75)
    state, _ = jax.lax.scan(step, state, (jnp.asarray(marks), jnp.asarray(window), shares))
    return state.best


def _choose(
    condition: Bool[Array, ""], yes: tuple[PyTree, ...], no: tuple[PyTree, ...]
) -> tuple[PyTree, ...]:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
