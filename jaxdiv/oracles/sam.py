"""SAM: the gradient at the worst parameters of a small ball.

    g_SAM = grad L(w + eps(w)),
    eps = rho g / ||g||                                (l2: Foret et al.)
    eps = rho T_w^2 g / ||T_w g||, T_w = |w| + 0.01    (adaptive: Kwon et al.)

with g the gradient at w. m-sharpness takes eps for each chunk of m examples and averages the gradients.

References:
    Foret, Kleiner, Mobahi, Neyshabur (2021), Sharpness-Aware Minimization, eqs. (2)-(3) and sec. 4.1.
    Kwon, Kim, Park, Choi (2021), ASAM, eq. (8).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.core.types import Aux, Batch, Key, LossFn, Numeric, Params, State
from jaxdiv.oracles.oracle import Evaluation, Oracle


def sam(
    base: Oracle,
    *,
    rho: Numeric = 0.05,
    geometry: core.Geometry = "l2",
    m: int | None = None,
) -> Oracle:
    """Asks the base oracle at perturbed parameters.

    Args:
        base: The oracle to ask, e.g. ``plain()``.
        rho: Radius of the perturbation, >= 0; with ``geometry="adaptive"`` papers use about ten times more.
        geometry: Shape of the ball, see `jaxdiv.core.perturb`; ``"adaptive"`` is ASAM.
        m: Chunk size of m-sharpness; it divides the batch size. The whole batch by default.

    Returns:
        An oracle that costs two evaluations of `base`. Value, aux and loss state are those at the
        unperturbed parameters; both evaluations see the same key. With `m`, chunks are scanned in order,
        each weighing as much as its examples, and the loss state is threaded through them.

    Raises:
        ValueError: If `m` does not divide the batch size.

    Example:
        >>> from jaxdiv import oracles
        >>> oracle = oracles.sam(oracles.plain(), rho=0.1, m=32)
    """
    checks.in_range("rho", rho, 0.0)

    whole = partial(within, base, rho, geometry)

    def chunked(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        assert m is not None
        shared = {name: value for name, value in batch.items() if name == "shared"}
        rows = {name: value for name, value in batch.items() if name != "shared"}
        size = jax.tree.leaves(rows)[0].shape[0]
        if m < 1 or size % m:
            raise ValueError(f"m must divide the batch size {size}; got {m}.")
        chunks = jax.tree.map(lambda x: x.reshape(size // m, m, *x.shape[1:]), rows)
        if "weights" in rows:
            mass = jnp.sum(checks.floating("batch['weights']", chunks["weights"]), axis=1)
        else:
            mass = jnp.full(size // m, m, jnp.float32)
        total = jnp.sum(mass)

        def evaluate(states: tuple[State, State], chunk: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            rows, mass, position = chunk
            (value, aux), gradient, oracle_state, loss_state = whole(
                loss_fn, params, *states, {**rows, **shared}, jax.random.fold_in(key, position)
            )
            averaged = (value, aux["terms"], aux["metrics"], gradient)
            # A chunk of pure padding may hold anything.
            scaled = jax.tree.map(lambda x: jnp.where(mass == 0, 0.0, mass * core.widen(x)), averaged)
            return (oracle_state, loss_state), scaled, aux["losses"]

        def step(carry: tuple[Any, Any], chunk: tuple[Any, Any, Any]) -> tuple[Any, Any]:
            states, sums = carry
            states, scaled, losses = evaluate(states, chunk)
            return (states, jax.tree.map(jnp.add, sums, scaled)), losses

        scanned = (chunks, mass, jnp.arange(size // m))
        states = (oracle_state, loss_state)
        _, shapes, _ = jax.eval_shape(evaluate, states, jax.tree.map(lambda x: x[0], scanned))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (states, sums), losses = jax.lax.scan(step, (states, zeros), scanned)
        # Divided last, in the dtype of the sums: shares would round to that of the weights.
        value, terms, metrics, gradient = jax.tree.map(lambda x: x / jnp.where(total == 0, 1.0, total), sums)
        gradient = jax.tree.map(lambda g, w: g.astype(jnp.result_type(w)), gradient, params)
        # Rows that a link appended come after those of the batch.
        losses = jax.tree.map(lambda x: jnp.concatenate([x[:, :m].ravel(), x[:, m:].ravel()]), losses)
        return (value, Aux(terms=terms, losses=losses, metrics=metrics)), gradient, *states

    return Oracle(base.init, whole if m is None else chunked)


def within(
    base: Oracle,
    radius: Numeric,
    geometry: core.Geometry,
    loss_fn: LossFn,
    params: Params,
    oracle_state: State,
    loss_state: State,
    batch: Batch,
    key: Key,
) -> Evaluation:
    """The base oracle's gradient at the worst parameters within `radius`; all else from the given parameters."""
    result, gradient, new_oracle, new_state = base.value_and_grad(
        loss_fn, params, oracle_state, loss_state, batch, key
    )
    perturbed = core.perturb(params, gradient, radius, geometry=geometry)
    _, gradient, _, _ = base.value_and_grad(loss_fn, perturbed, oracle_state, loss_state, batch, key)
    return result, gradient, new_oracle, new_state
