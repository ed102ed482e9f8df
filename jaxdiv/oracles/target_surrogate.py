"""SSO: several steps on a surrogate in the space of the model's outputs, for the price of one gradient of the loss.

Where the loss l_i is costly and the model z_i(θ) is not (rollouts, expert queries, simulators), the gradients
c_i = ∂l_i(z_i(θ_t)) are taken once, and the surrogate

    g_t(θ) = mean_i [ <c_i, z_i(θ) - z_i(θ_t)> + D(z_i(θ), z_i(θ_t)) / eta ] + <h, θ - θ_t>

is minimized from θ_t by some steps of any optimizer, with D = ½||·||² or another Bregman divergence. Its gradient at
θ_t is g, the direction of the base oracle:  h = g - Jᵀc is the part of it that the loss l does not explain, such as a
regularizer's or a perturbation's, and 0 for the plain gradient of mean_i l_i, which is the paper's surrogate.

If each l_i is L-smooth in z (L is 1/2 for the softmax cross entropy) and eta <= 1/L, then g_t plus the loss at θ_t is
an upper bound of the loss that touches it at θ_t. One inner step of gradient descent is a step of
gradient descent, for any eta; the exact minimizer is projected SGD in the space of the outputs.

References:
    Lavington, Vaswani, Babanezhad, Schmidt, Le Roux (2023), Target-based Surrogates for Stochastic Optimization,
    section 3 and eq. (6).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdiv import core, objectives
from jaxdiv.core import checks
from jaxdiv.core.types import Apply, Batch, Key, LossFn, Numeric, Params, Scalar, State
from jaxdiv.objectives.record import raised
from jaxdiv.oracles.oracle import Evaluation, Oracle
from jaxdiv.oracles.outputs import ModelState, evaluate, mean_over_batch, no_state


def half_square(outputs: Float[Array, "B ..."], others: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """½||outputs - others||² of each example, the divergence of the Euclidean norm."""
    return 0.5 * jnp.sum((outputs - others) ** 2, axis=tuple(range(1, outputs.ndim)))


ARMIJO = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=30))
"""Gradient descent whose step starts anew at 1.0 in each surrogate and is cut until the surrogate falls."""


def target_surrogate(
    base: Oracle,
    apply: Apply,
    loss: Callable[..., Float[Array, " B"]],
    *,
    eta: Numeric,
    steps: int = 10,
    inner: optax.GradientTransformation = ARMIJO,
    proximity: Callable[..., Float[Array, " B"]] = half_square,
    output: str = "logits",
    model_state: ModelState = no_state,
) -> Oracle:
    """Minimizes a surrogate of the loss in the outputs and returns the displacement.

    Args:
        base: The oracle that gives the direction at the present parameters, e.g. ``plain()``.
        apply: The model, ``(params, model_state, inputs, key) -> (outputs, model_state)``. It runs in evaluation mode
            and sees the floating leaves of the parameters alone.
        loss: The costly loss ``(outputs, targets) -> [B]`` of the batch's targets. It is differentiated by the outputs
            once.
        eta: Step size in the space of the outputs, positive and finite.
        steps: Number of inner steps.
        inner: The inner optimizer, an optax transform that starts anew in each call; it gets the extra arguments
            `value`, `grad` and `value_fn`.
        proximity: D, ``(outputs, outputs of the present parameters) -> [B]``, 0 with gradient 0 where they agree.
        output: The output that `loss` is of, where the model has several.
        model_state: Picks the model's stored state out of the objective's; none by default.

    Returns:
        An oracle whose result is the displacement θ_t - θ_{t+1}, not a gradient: apply it by ``optax.sgd(1.0)``. It
        costs one evaluation of `base`, one gradient of `loss` by the outputs and one forward and one reverse pass of
        the model for each inner step (more in line searches), on the inputs of the batch. The oracle's state is the
        base's.

    Raises:
        ValueError: If `eta` is not positive, `steps` is below 1, or the model has no such output.

    References:
        Lavington et al. (2023).

    Example:
        >>> import jax, optax
        >>> from jaxdiv import losses, objectives, oracles, train
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> objective = objectives.chain(
        ...     objectives.forward(apply), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()
        ... )
        >>> oracle = oracles.target_surrogate(oracles.plain(), apply, losses.cross_entropy, eta=2.0)
        >>> init, step = train.make_step(objective, oracle, optax.sgd(1.0))
    """
    checks.in_range("eta", eta, 0.0, open_low=True, open_high=True)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    tx = optax.with_extra_args_support(inner)

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        record = objectives.from_batch(batch)
        weights = record.weights

        def outputs(params: Params) -> Float[Array, "B ..."]:
            return evaluate("target_surrogate", apply, output, params, model_state(loss_state), record.inputs)

        def mean(values: Array) -> Scalar:
            return mean_over_batch("target_surrogate", values, weights)

        result, direction, oracle_state, new_state = base.value_and_grad(
            loss_fn, params, oracle_state, loss_state, batch, key
        )
        # The inner steps are taken in float32 or wider: they may be below the resolution of a half precision.
        start = jax.tree.map(core.widen, params)
        anchor, pull = jax.vjp(outputs, start)
        slope = jax.grad(lambda z: mean(loss(z, raised(record.targets))))(anchor)
        unexplained = jax.tree.map(lambda g, h: core.widen(g) - h, direction, pull(slope)[0])

        def surrogate(moved: Params) -> Scalar:
            z = outputs(moved)
            rest = jax.tree.map(lambda h, now, then: jnp.vdot(h, now - then), unexplained, moved, start)
            near = jnp.vdot(slope, z - anchor) + mean(proximity(z, anchor)) / eta
            return near + sum(jax.tree.leaves(rest), start=jnp.zeros_like(near))

        def step(carry: tuple[Params, State], _: None) -> tuple[tuple[Params, State], None]:
            moved, inner_state = carry
            value, gradient = jax.value_and_grad(surrogate)(moved)
            updates, inner_state = tx.update(
                gradient, inner_state, moved, value=value, grad=gradient, value_fn=surrogate
            )
            return (optax.apply_updates(moved, updates), inner_state), None

        (moved, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        displacement = jax.tree.map(
            lambda then, now, own: (then - now).astype(jnp.result_type(own)), start, moved, params
        )
        return result, displacement, oracle_state, new_state

    return Oracle(base.init, value_and_grad)
