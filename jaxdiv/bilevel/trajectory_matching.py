"""Trajectory matching: synthetic examples on which a network trains as an expert does on real data.

From an expert's parameters θ*_t, saved once an epoch, N steps of gradient descent with momentum μ on the synthetic
examples x̃ are taken at the learning rate η,

    b ← μ b + c_t ∇_θ ℓ(θ; x̃, y),    θ ← θ - η b,    θ_0 = θ*_t (perturbed),

and x̃ and η shall bring them near the expert M epochs later, and near the epochs on the way,

    L = ‖θ_N - θ*_{t+M}‖² / ‖θ_0 - θ*_{t+M}‖² + w Σ_{j=1}^{M-1} ‖θ_{j⌊N/M⌋} - θ*_{t+j}‖² / ‖θ_0 - θ*_{t+j}‖².

The factor balances early epochs, in which an expert moves far, and late ones: with start epochs t < T

    c_t = log_5(t - T/2 + 8) for t ≥ T/2,    c_t = 1 / log_5(T/2 - t + 8) for t < T/2.

Perturbation draws ``w ← w + a (d / ‖d‖_F) ∘ w``, d ~ N(0, I), for each kernel w of the start.

References:
    Shen, Yang, Lam (2023), Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
    Trajectories; Cazenavette, Wang, Torralba, Efros, Zhu (2022), Dataset Distillation by Matching Training
    Trajectories, algorithm 1.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Aux, Batch, Key, Numeric, Params, Scalar, State
from jaxdiv.objectives import Objective
from jaxdiv.objectives.record import raised


def trajectory_matching(
    loss: Callable[[Params, PyTree, PyTree], Scalar],
    targets: PyTree,
    *,
    steps: int = 20,
    momentum: Numeric = 0.9,
    intermediate: Numeric = 1.0,
    start_epochs: Numeric | None = None,
    perturbation: Numeric = 1.0,
    truncation: int | None = None,
    checkpoint: bool = True,
) -> Objective:
    """An objective over synthetic examples and the learning rate of the network that trains on them.

    Its parameters are ``{"inputs": x̃ [k, ...], "learning_rate": η}``. A batch needs no examples but
    ``batch["shared"]`` with ``"trajectory"``, M + 1 successive parameters of an expert θ*_t … θ*_{t+M} stacked along
    the first axis of each leaf, and ``"epoch"``, the number t (used with `start_epochs`).

    Args:
        loss: ``(params, inputs, targets) -> scalar``, the mean loss of the network, differentiable twice.
        targets: Of the synthetic examples, such as labels [k]; they do not move.
        steps: N, at least M; 20, and 40 for one example per class, in the paper.
        momentum: μ, in [0, 1).
        intermediate: w, the weight of the epochs on the way; 0 matches the last one alone.
        start_epochs: T, the number of epochs that a trajectory may start at, for the factor c_t; None for none.
        perturbation: a >= 0, relative to each kernel (a leaf of two axes or more). With ``key=None`` nothing is
            perturbed.
        truncation: Number of last steps whose gradient is differentiated; in the steps before it the gradients are
            constants, and η alone is differentiated. All by default.
        checkpoint: Whether to compute each step again in the backward pass: the memory is then N times the
            parameters, whatever the network keeps per example.

    Returns:
        The objective. Its terms are ``"final"`` and ``"intermediate"``, and its metrics ``"ratios"`` [M], which are
        the quotients above for the epochs t+1 … t+M.

    Raises:
        ValueError: If parameters or batch lack an entry, the trajectory has fewer than two or more than
            ``steps + 1`` epochs, its leaves are not stacked alike, or an option leaves its range.

    Note:
        An expert that stands still between two epochs has a quotient of 0/0, which is NaN. Project the learning
        rate onto a range above 0 after each update; gradients of x̃ are small (divided by N, k and the number of
        pixels), and its learning rate is large.

    References:
        Shen, Yang, Lam (2023), sections 3 and 4.

    Example:
        >>> from jaxdiv import bilevel, losses
        >>> matching = bilevel.trajectory_matching(
        ...     lambda params, x, y: losses.cross_entropy(x @ params, y).mean(), jnp.array([0, 1]), steps=4
        ... )
        >>> params = {"inputs": jnp.eye(2, 3), "learning_rate": jnp.float32(0.1)}
        >>> batch = {"shared": {"trajectory": jnp.stack([jnp.zeros((3, 2)), jnp.eye(3, 2), 2 * jnp.eye(3, 2)])}}
        >>> state = matching.init(params, batch, jax.random.key(0))
        >>> value, (_, aux) = matching.apply(params, state, batch, None)
        >>> aux["metrics"]["ratios"].round(2)
        Array([0.87, 0.81], dtype=float32)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    differentiated = steps if truncation is None else truncation
    if not 1 <= differentiated <= steps:
        raise ValueError(f"truncation must lie between 1 and steps={steps}; got {truncation}.")
    checks.in_range("momentum", momentum, 0.0, 1.0, open_high=True)
    checks.in_range("perturbation", perturbation, 0.0)

    def init(params: Params, batch: Batch, key: Key) -> State:
        _arguments(params, batch, steps, start_epochs is not None)
        # A copy, since the training state may be donated.
        return jax.tree.map(jnp.array, targets)

    def apply(
        params: Params, state: State, batch: Batch, key: Key | None
    ) -> tuple[Scalar, tuple[State, Aux]]:
        trajectory, epoch = _arguments(params, batch, steps, start_epochs is not None)
        start, *expert = (
            jax.tree.map(lambda leaf, j=j: leaf[j], trajectory) for j in range(_length(trajectory))
        )
        if key is not None:
            start = _perturbed(start, perturbation, key)
        inputs = raised(params["inputs"])
        factor = 1.0 if start_epochs is None else _balance(epoch, start_epochs)
        tx = optax.sgd(params["learning_rate"], momentum)

        def gradient(theta: Params, inputs: PyTree) -> Params:
            return jax.grad(lambda theta: factor * loss(theta, inputs, state))(theta)

        def constant(theta: Params, inputs: PyTree) -> Params:
            return gradient(*jax.lax.stop_gradient((theta, inputs)))

        def unroll(carry: PyTree, of: Callable[..., Params], length: int) -> PyTree:
            def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
                theta, moments = carry
                updates, moments = tx.update(of(theta, inputs), moments)
                return (optax.apply_updates(theta, updates), moments), None

            # Inside a scan nothing is common to the passes that the compiler could merge.
            body = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
            return jax.lax.scan(body, carry, length=length)[0]

        reached = [(j + 1) * (steps // len(expert)) for j in range(len(expert) - 1)] + [steps]
        first = steps - differentiated
        carry, at = (start, tx.init(start)), {}
        for low, high in itertools.pairwise(sorted({0, first, *reached})):
            carry = unroll(carry, gradient if low >= first else constant, high - low)
            at[high] = carry[0]
        ratios = jnp.stack(
            [_distance(at[n], goal) / _distance(start, goal) for n, goal in zip(reached, expert, strict=True)]
        )
        terms = {"final": ratios[-1], "intermediate": intermediate * jnp.sum(ratios[:-1])}
        aux = Aux(terms=terms, losses={}, metrics={"ratios": ratios})
        return terms["final"] + terms["intermediate"], (state, aux)

    return Objective(init, apply)


def _arguments(params: Params, batch: Batch, steps: int, balanced: bool) -> tuple[PyTree, Any]:
    """The trajectory, half precisions raised, and the epoch it starts at."""
    if not isinstance(params, dict) or set(params) != {"inputs", "learning_rate"}:
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            f"params of trajectory_matching must be a dict of 'inputs' and 'learning_rate'; got {got}."
        )
    shared = batch.get("shared", {})
    missing = [name for name in ("trajectory", *["epoch"] * balanced) if name not in shared]
    if missing:
        raise ValueError(
            f"batch['shared'] must hold {' and '.join(map(repr, missing))}; got {sorted(shared)}."
        )
    trajectory = raised(shared["trajectory"])
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)}
    if len(sizes) != 1 or not 2 <= _length(trajectory) <= steps + 1:
        raise ValueError(
            "batch['shared']['trajectory'] must stack between 2 and steps + 1 = "
            f"{steps + 1} epochs along the first axis of each leaf; got leading axes {sorted(sizes)}."
        )
    return trajectory, shared.get("epoch")


def _length(trajectory: PyTree) -> int:
    shape = jnp.shape(jax.tree.leaves(trajectory)[0])
    return shape[0] if shape else 0


def _balance(epoch: Any, start_epochs: Numeric) -> Scalar:
    """c_t."""
    late = jnp.asarray(epoch) - start_epochs / 2
    log = jnp.log(jnp.abs(late) + 8.0) / jnp.log(5.0)
    return jnp.where(late >= 0, log, 1 / log)


def _perturbed(params: Params, scale: Numeric, key: Key) -> Params:
    leaves, structure = jax.tree.flatten(params)

    def perturbed(position: int, w: Float[Array, "..."]) -> Float[Array, "..."]:
        if w.ndim < 2:
            return w
        d = jax.random.normal(jax.random.fold_in(key, position), w.shape, w.dtype)
        return (w + scale * d / jnp.linalg.norm(d) * w).astype(w.dtype)

    return jax.tree.unflatten(structure, itertools.starmap(perturbed, enumerate(leaves)))


def _distance(a: Params, b: Params) -> Scalar:
    return optax.tree.norm(optax.tree.sub(a, b), squared=True)
