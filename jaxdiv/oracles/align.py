"""Aligned gradients: what conflicts with the primary terms is projected out of the others.

With g_p the gradient of the primary terms and g_o that of all the others,

    g = g_p + g_o - min(0, <g_o, g_p>) / ||g_p||^2 g_p,

so that <g, g_p> >= ||g_p||^2: a step along -g never raises the primary terms to first order. This is the
one-sided form of gradient surgery that dual-head distillation uses between cross entropy and distillation.

References:
    Yang et al. (2024), Dual-Head Knowledge Distillation, sec. 3.3 (gradient alignment).
    Yu et al. (2020), Gradient Surgery for Multi-Task Learning, alg. 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiv import core
from jaxdiv.core.types import Aux, Batch, Key, LossFn, Params, Scalar, State
from jaxdiv.oracles.oracle import Evaluation, Oracle


def align(*primary: str) -> Oracle:
    """Differentiates the primary terms and the others apart, and removes the conflict between them.

    Args:
        *primary: Names of the terms that must not suffer, e.g. ``"ce"``.

    Returns:
        A stateless oracle that costs one forward pass and two reverse passes. Its result is a gradient of
        the value only where the two do not conflict; else it is a displacement.

    Raises:
        ValueError: If no name is given, or the loss has no term of that name.

    Example:
        >>> from jaxdiv import oracles
        >>> oracle = oracles.sam(oracles.align("ce"), rho=0.05)
    """
    if not primary:
        raise ValueError("align must get the name of at least one primary term; got none.")

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        def two_sums(params: Params) -> tuple[tuple[Scalar, Scalar], tuple[Scalar, State, Aux]]:
            value, (new_state, aux) = loss_fn(params, loss_state, batch, key)
            unknown = set(primary) - set(aux["terms"])
            if unknown:
                raise ValueError(
                    f"align knows no term {sorted(unknown)}; the loss has {sorted(aux['terms'])}."
                )
            first = sum((aux["terms"][name] for name in set(primary)), start=jnp.zeros_like(value))
            rest = (term for name, term in aux["terms"].items() if name not in primary)
            return (first, sum(rest, start=jnp.zeros_like(value))), (value, new_state, aux)

        (first, rest), pullback, (value, new_state, aux) = jax.vjp(two_sums, params, has_aux=True)
        one, zero = jnp.ones_like(first), jnp.zeros_like(rest)
        (g_primary,), (g_other,) = pullback((one, zero)), pullback((zero, one))
        return (value, aux), _combine(g_primary, g_other), oracle_state, new_state

    return Oracle(init=lambda params: (), value_and_grad=value_and_grad)


def _combine(g_primary: Any, g_other: Any) -> Any:
    dtypes = jax.tree.map(lambda g: g.dtype, g_primary)
    g_primary, g_other = jax.tree.map(core.widen, (g_primary, g_other))
    # Along the unit vector, so that no square over- or underflows; 0 where the primary gradient is 0.
    unit = core.perturbation(g_primary, g_primary, 1.0)
    conflict = jnp.minimum(optax.tree.vdot(g_other, unit), 0.0)
    return jax.tree.map(
        lambda p, o, u, dtype: (p + (o - conflict * u)).astype(dtype), g_primary, g_other, unit, dtypes
    )
