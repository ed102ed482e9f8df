"""A loss as a function of parameters and a batch, measured on each of several chunks of the batch."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.linalg import vectors

BatchLoss: TypeAlias = Callable[[Params, PyTree], Scalar]
"""``(params, batch) -> scalar``; an objective makes one by ``lambda p, b: objective.apply(p, state, b, key)[0]``."""


def over_chunks(
    measure: Callable[[PyTree, Key], PyTree], batch: PyTree, m: int | None, key: Key
) -> Float[PyTree, "chunks ..."]:
    """Stacks ``measure(chunk, key)`` over consecutive chunks of m examples, one after the other.

    Args:
        measure: Function of a chunk and a key of its own.
        batch: Arrays with one row per example; what a mapping holds under ``"shared"`` goes to every chunk whole.
        m: Examples in a chunk; None for a single chunk, whatever the batch holds.
        key: Random key.

    Returns:
        The measurements with a new first axis.

    Raises:
        ValueError: If m does not divide the number of examples.
    """
    if m is None:
        return jax.tree.map(lambda x: jnp.asarray(x)[None], measure(batch, jax.random.fold_in(key, 0)))
    shared: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        shared = {name: value for name, value in batch.items() if name == "shared"}
        batch = {name: value for name, value in batch.items() if name != "shared"}
    size = jax.tree.leaves(batch)[0].shape[0]
    if m < 1 or size % m:
        raise ValueError(f"m must divide the number of examples {size}; got {m}.")
    chunks = jax.tree.map(lambda x: jnp.asarray(x).reshape(size // m, m, *x.shape[1:]), batch)

    def of_chunk(chunk_and_position: tuple[PyTree, Any]) -> PyTree:
        chunk, position = chunk_and_position
        chunk = {**chunk, **shared} if shared else chunk
        return measure(chunk, jax.random.fold_in(key, position))

    return jax.lax.map(of_chunk, (chunks, jnp.arange(size // m)))


def widened(loss_fn: BatchLoss, params: Params, batch: PyTree) -> Params:
    """Returns the parameters in float32 or wider, after checking that the loss of the batch is a scalar.

    Raises:
        ValueError: If the parameters are not floating or the loss is not a scalar.
    """
    params = vectors.widened("params", params)
    shape = jax.eval_shape(loss_fn, params, batch)
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"loss_fn(params, batch) must be a scalar; got {shape}; take its mean or sum.")
    return params


def scale(params: Params, adaptive: bool) -> Params:
    """Returns c: |w| elementwise, or 1."""
    return jax.tree.map(jnp.abs if adaptive else jnp.ones_like, params)
