"""Iterative refinement around any linear solver: what turns its answer into a verdict.

An inner solver is asked for the solution of A d = r/‖r‖ with the true residual r = b − A x of the
current x; then x ← x + ‖r‖ d and r is computed anew. The residual that an inner solver updates drifts
away from the true one in finite precision, so only the latter decides:

    CONVERGED   ‖r‖ ≤ max(rtol ‖b‖, atol)
    STALLED     a pass no longer reduces ‖r‖ by a useful factor: the dtype, a singular or an
                unsuitable operator allows no more
    MAX_STEPS   the steps of all passes have reached the budget
    NONFINITE   b or A x is not finite

A second inner solver may stand by: the run goes on with it where it would have STALLED with the first.

References:
    Higham (2002), Accuracy and stability of numerical algorithms, chapter 12.
    van der Vorst and Ye (2000), Residual replacement strategies for Krylov subspace methods.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiv.core.status import RUNNING, Status, raise_if_failed
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Inner, Matvec, Vector


class SolveInfo(NamedTuple):
    """How a linear solve ended, per lane under ``vmap``.

    Attributes:
        status: `Status` as int32.
        steps: Steps of the method, over all passes.
        residual: The true ‖b − A x‖ / ‖b‖ (0 where b = 0), in the dtype of the computation.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    residual: Float[Array, ""]

    def raise_if_failed(self) -> "SolveInfo":
        """Returns itself if every lane converged.

        Raises:
            RuntimeError: If a lane did not; the message names lanes, statuses and what to change.
            ValueError: If the status is traced.
        """
        try:
            raise_if_failed(self.status, steps=self.steps, error=self.residual)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error} A singular or ill-conditioned system needs a ridge: linalg.suggested_ridge "
                "returns one that suffices for a symmetric operator."
            ) from None
        return self


class _State(NamedTuple):
    x: Vector
    r: Vector
    norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    first: Bool[Array, ""]  # whether there is a fallback, and its turn has not come


def refine(
    inner: Inner,
    matvec: Matvec,
    b: Vector,
    init: Vector | None,
    *,
    rtol: Numeric,
    atol: Numeric,
    max_steps: int | Int[Array, ""],
    progress: float,
    fallback: Inner | None = None,
) -> tuple[Vector, SolveInfo]:
    """Returns the solution of ``A x = b`` by `inner`, and how it ended.

    Args:
        inner: ``(matvec, r, tol, max_steps) -> (d, steps)`` for a right-hand side of norm 1.
        matvec: The operator A.
        b: Right-hand side, all leaves of one dtype.
        init: First guess, used where its residual is smaller than that of zero.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_steps: Budget of steps.
        progress: A pass that leaves more than this fraction of the residual is the last.
        fallback: Takes the place of `inner` after such a pass.

    Note:
        b is scaled by its largest entry, so that squares neither overflow nor vanish in float32. A
        lane that ends NONFINITE holds NaN; every other lane holds its best iterate.
    """
    dtype = jnp.result_type(*jax.tree.leaves(b))
    eps = vectors.epsilon(b)
    rtol, atol = jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
    budget = jnp.asarray(max_steps, jnp.int32)

    largest = optax.tree.norm(b, ord="inf")
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    b = optax.tree.scale(1 / scale, b)
    norm_b = optax.tree.norm(b)
    target = jnp.maximum(rtol * norm_b, atol / scale)

    def verdict(norm: Array, steps: Array, finite: Array, idle: Array | bool) -> Int[Array, ""]:
        return jnp.select(
            [~finite, norm <= target, steps >= budget, idle | (norm <= eps * norm_b)],
            [jnp.int32(s) for s in (Status.NONFINITE, Status.CONVERGED, Status.MAX_STEPS, Status.STALLED)],
            jnp.int32(RUNNING),
        )

    def running(s: _State) -> Bool[Array, ""]:
        return s.status == RUNNING

    def improve(s: _State) -> _State:
        # No single pass reduces a residual by more than the dtype resolves.
        tol = jnp.maximum(0.9 * target / s.norm, eps)
        # Under vmap a finished lane still enters here: with no budget it holds nobody up.
        left = jnp.where(running(s), budget - s.steps, 0)
        r = optax.tree.scale(1 / s.norm, s.r)
        if fallback is None:
            d, steps = inner(matvec, r, tol, left)
        else:
            # Under vmap both branches run, each for its own lanes.
            d, steps = jax.lax.cond(
                s.first,
                lambda r: inner(matvec, r, tol, jnp.where(s.first, left, 0)),
                lambda r: fallback(matvec, r, tol, jnp.where(s.first, 0, left)),
                r,
            )
        d = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), d)
        x = optax.tree.add_scale(s.x, s.norm, d)
        r = optax.tree.sub(b, matvec(x))
        norm = optax.tree.norm(r)
        better = norm < s.norm
        x, r, best = optax.tree.where(better, (x, r, norm), (s.x, s.r, s.norm))
        idle = norm > progress * s.norm
        status = verdict(best, s.steps + steps, jnp.isfinite(norm), idle & ~s.first)
        return _State(x, r, best, s.steps + steps, status, s.first & ~idle)

    x, r, norm = optax.tree.zeros_like(b), b, norm_b
    if init is not None:
        guess = optax.tree.scale(1 / scale, init)
        r_guess = optax.tree.sub(b, matvec(guess))
        norm_guess = optax.tree.norm(r_guess)
        x, r, norm = optax.tree.where(norm_guess < norm_b, (guess, r_guess, norm_guess), (x, r, norm))
    zero = jnp.zeros((), jnp.int32)
    status = verdict(norm, zero, jnp.isfinite(norm), False)
    start = _State(x, r, norm, zero, status, jnp.full_like(status, fallback is not None, bool))
    end = jax.lax.while_loop(running, improve, start)

    failed = end.status == Status.NONFINITE
    x = jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf * scale), end.x)
    residual = jnp.where(norm_b > 0, end.norm / jnp.where(norm_b > 0, norm_b, 1), 0)
    return x, SolveInfo(end.status, end.steps, jnp.where(failed, jnp.nan, residual))
