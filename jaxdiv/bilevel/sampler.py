"""What a step draws from the data: pure functions of data and key."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.problem import Data
from jaxdiv.core.types import Key

Sampler: TypeAlias = Callable[[Data, Key], Data]
"""``(data, key) -> data``: one draw for both losses."""


def full_batch(data: Data, key: Key) -> Data:
    """All data, every time."""
    del key
    return data


def minibatches(*, inner: int | None = None, outer: int | None = None) -> Sampler:
    """Draws examples uniformly and independently, with repetition.

    Args:
        inner: Examples of the inner loss a draw; all of them by default.
        outer: Examples of the outer loss, drawn apart.

    Returns:
        The sampler. Mappings keep their entry ``"shared"`` whole and get the drawn ``"index"`` unless they have one.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> sampler = minibatches(inner=2)
        >>> batch = sampler(Data(jnp.arange(5.0), jnp.arange(3.0)), jax.random.key(0))
        >>> batch.inner.shape, batch.outer.shape
        ((2,), (3,))
    """
    for name, size in (("inner", inner), ("outer", outer)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, or None for all examples; got {size}.")

    def sampler(data: Data, key: Key) -> Data:
        keys = jax.random.split(key)
        parts = zip((data.inner, data.outer), (inner, outer), keys, strict=True)
        return Data(*(part if size is None else _draw(part, size, k) for part, size, k in parts))

    return sampler


def rows(data: PyTree, index: Int[Array, " B"]) -> PyTree:
    """The examples at `index`."""
    if not isinstance(data, Mapping):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], data)
    drawn: dict[str, Any] = {
        name: part if name == "shared" else jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], part)
        for name, part in data.items()
    }
    return {"index": index} | drawn


def count(data: PyTree) -> int:
    """Number of examples.

    Raises:
        ValueError: If there are none, or arrays differ in it.
    """
    part = {k: v for k, v in data.items() if k != "shared"} if isinstance(data, Mapping) else data
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(part)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"data must hold arrays with one common number of rows; got {sorted(sizes)}.")
    return int(sizes.pop())


def _draw(data: PyTree, size: int, key: Key) -> PyTree:
    return rows(data, jax.random.randint(key, (size,), 0, count(data)))
