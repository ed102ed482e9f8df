"""Checks of arguments at trace time, and of values where they are concrete.

Shape, dtype, rank and names are known while tracing and always raise. Values are checked only when they
are concrete: a traced option passes through, so that everything can be built inside jit, grad and vmap.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

T = TypeVar("T")


def floating(name: str, x: Any) -> Float[Array, "..."]:
    """Returns `x` as a floating array, half precisions raised to float32.

    Args:
        name: The argument's name, for the message.
        x: Array-like of any shape.

    Returns:
        The same values in float32, or float64 where `x` is float64.

    Raises:
        ValueError: If `x` is integer, boolean or complex.

    Example:
        >>> floating("logits", jnp.ones(3, jnp.bfloat16)).dtype
        dtype('float32')
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point; got {x.dtype}; cast it, e.g. with .astype(jnp.float32)."
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def integers(name: str, x: Any) -> Array:
    """Returns `x` as an integer array.

    Raises:
        ValueError: If `x` is not of an integer dtype.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers; got {x.dtype}; cast it with .astype(jnp.int32).")
    return x


def rank(name: str, x: Array, *ranks: int) -> None:
    """Raises ValueError unless `x` has one of the given ranks."""
    if x.ndim not in ranks:
        expected = " or ".join(str(r) for r in ranks)
        raise ValueError(f"{name} must have rank {expected}; got shape {x.shape}.")


def axes(name: str, x: Array, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns the axes that `axis` names, counted from the front; all for None.

    Raises:
        ValueError: If `x` lacks one, or one is named twice.

    Example:
        >>> axes("x", jnp.ones((2, 3)), -1)
        (1,)
    """
    try:
        return np.lib.array_utils.normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)
    except ValueError:
        raise ValueError(
            f"axis must name distinct axes of {name}, which has shape {x.shape}; got {axis}."
        ) from None


def same_shape(**arrays: Array) -> None:
    """Raises ValueError unless all named arrays have one shape.

    Example:
        >>> same_shape(p_logits=jnp.ones(3), q_logits=jnp.ones(3))
    """
    if len({x.shape for x in arrays.values()}) > 1:
        got = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(f"{' and '.join(arrays)} must have the same shape; got {got}.")


def not_empty(name: str, x: Array) -> None:
    """Raises ValueError if `x` has no element."""
    if x.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {x.shape}.")


def concrete(x: Any) -> bool:
    """Whether the values of `x` are known now (not traced)."""
    return not isinstance(x, jax.core.Tracer)


def in_range(
    name: str,
    x: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises ValueError if a concrete `x` leaves the interval from `low` to `high`; traced values pass.

    Example:
        >>> in_range("temperature", 2.0, 0.0, open_low=True)
    """
    if not concrete(x):
        return
    values = np.asarray(x)
    inside = (values > low if open_low else values >= low) & (values < high if open_high else values <= high)
    if not np.all(inside):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} must lie in {left}{low:g}, {high:g}{right}; got {values}.")


def one_of(name: str, value: T, options: Collection[T]) -> T:
    """Returns `value` if it is among `options`, else raises ValueError listing them."""
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")
    return value


def lookup(name: str, key: str, table: Mapping[str, T]) -> T:
    """Returns ``table[key]``, else raises ValueError listing the known keys."""
    return table[one_of(name, key, tuple(table))]
