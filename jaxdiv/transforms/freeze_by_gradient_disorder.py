"""Freezing of parameters whose gradient keeps changing its sign: GAQAT's rule for the steps of quantizers.

Over a window of K updates the disorder of a gradient sequence is the share of its changes of sign,

    δ = (1/(K − 1)) Σ_{k<K} 1[sign g_{k+1} ≠ sign g_k],

0 for a constant sign, 1 for an alternating one. At the end of each window the parameters with δ > r (or δ < r) are
chosen; their updates are zero throughout the next window. Their gradients are still measured, so that they can thaw.

Which of the gradients (of the task loss, of the flatness loss, or their sum) is measured, and on which side of r one
freezes, is a reading of the paper's abstract: by default their sum, that is the gradient that arrives, and δ > r.

References:
    GAQAT: gradient-adaptive quantization-aware training for domain generalization (2024), arXiv 2412.05551;
    abstract only.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric

Side: TypeAlias = Literal["above", "below"]


class FreezeByGradientDisorderState(NamedTuple):
    """State of the transform.

    Attributes:
        inner: State of the wrapped transform.
        position: Updates so far in this window.
        signs: Signs of the last gradient, int8.
        changes: Changes of sign so far in this window.
        disorder: δ of the last full window; 0 before its end.
        frozen: What stands still in this window.
    """

    inner: Any
    position: Int[Array, ""]
    signs: PyTree
    changes: PyTree
    disorder: PyTree
    frozen: PyTree


def freeze_by_gradient_disorder(
    inner: optax.GradientTransformation,
    *,
    window: int = 50,
    threshold: Numeric = 0.3,
    freeze_when: Side = "above",
) -> optax.GradientTransformationExtraArgs:
    """Sets the updates of entries with a disordered gradient to zero, window by window.

    Wrap the optimizer of the quantizers' steps in it, apart from that of the weights by `optax.partition`. What is
    masked is the update: the wrapped transform sees every gradient, and its momentum moves nothing while frozen.

    Args:
        inner: The transform whose updates are masked.
        window: K, updates between two choices, at least 2.
        threshold: r. From 1 on nothing is frozen (δ > r never holds).
        freeze_when: Whether entries with a disorder above or below the threshold are frozen.

    Returns:
        A transform that takes the extra argument ``measured``, a pytree like the gradient whose signs count in its
        place. Entries of an array are judged one by one.

    Raises:
        ValueError: If `window` is below 2 or `freeze_when` is unknown.

    Example:
        >>> import optax
        >>> tx = freeze_by_gradient_disorder(optax.sgd(1.0), window=2)
        >>> state = tx.init(jnp.zeros(2))
        >>> for gradient in ([1.0, 1.0], [1.0, -1.0], [1.0, 1.0]):
        ...     update, state = tx.update(jnp.array(gradient), state)
        >>> update
        Array([-1.,  0.], dtype=float32)
    """
    if window < 2:
        raise ValueError(f"window must be at least 2; got {window}.")
    checks.one_of("freeze_when", freeze_when, get_args(Side))
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> FreezeByGradientDisorderState:
        def zeros(dtype: Any) -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), dtype), params)

        return FreezeByGradientDisorderState(
            wrapped.init(params),
            jnp.zeros((), jnp.int32),
            zeros(jnp.int8),
            zeros(jnp.int32),
            jax.tree.map(
                lambda p: jnp.zeros(jnp.shape(p), jnp.promote_types(jnp.result_type(p), jnp.float32)), params
            ),
            zeros(bool),
        )

    def update(
        updates: optax.Updates,
        state: FreezeByGradientDisorderState,
        params: optax.Params | None = None,
        *,
        measured: PyTree | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, FreezeByGradientDisorderState]:
        signs = jax.tree.map(
            lambda g: jnp.sign(g).astype(jnp.int8), updates if measured is None else measured
        )
        updates, inner_state = wrapped.update(updates, state.inner, params, **extra)
        masked = jax.tree.map(lambda u, f: jnp.where(f, jnp.zeros_like(u), u), updates, state.frozen)

        counts = (state.position > 0).astype(jnp.int32)
        changes = jax.tree.map(
            lambda n, new, old: n + counts * (new != old), state.changes, signs, state.signs
        )
        ends = state.position == window - 1

        def chosen(disorder: Array) -> Array:
            return disorder > threshold if freeze_when == "above" else disorder < threshold

        disorder = jax.tree.map(
            lambda n, old: jnp.where(ends, n.astype(old.dtype) / (window - 1), old), changes, state.disorder
        )
        return masked, FreezeByGradientDisorderState(
            inner=inner_state,
            position=(state.position + 1) % window,
            signs=signs,
            changes=jax.tree.map(lambda n: jnp.where(ends, 0, n), changes),
            disorder=disorder,
            frozen=jax.tree.map(lambda d, old: jnp.where(ends, chosen(d), old), disorder, state.frozen),
        )

    return optax.GradientTransformationExtraArgs(init, update)
