"""Frozen dataclasses that are pytrees: numeric options are leaves, choices are static.

It differs from `jax.tree_util.register_dataclass` in one thing: rebuilding an object from leaves
does not run ``__post_init__``. Checks of the options therefore run once, where a user builds the
object, and never on the placeholders that transformations put into it.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

C = TypeVar("C")


def static_field(**options: Any) -> Any:
    """A dataclass field that is part of the structure: hashable, and never traced.

    Args:
        **options: Those of `dataclasses.field`, for instance ``default=``.
    """
    return dataclasses.field(**options, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def pytree_dataclass(cls: type[C]) -> type[C]:
    """Makes `cls` a frozen dataclass registered as a pytree.

    Args:
        cls: A class with annotated fields; those given by `static_field` are static, the others
            are leaves.

    Returns:
        The same class.

    Example:
        >>> @pytree_dataclass
        ... class Gradient:
        ...     learning_rate: float = 0.1
        ...     nesterov: bool = static_field(default=False)
        >>> jax.tree.leaves(Gradient(0.5))
        [0.5]
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static", False))
    static = tuple(f.name for f in fields if f.metadata.get("static", False))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(x: C) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, n) for n in leaves), tuple(getattr(x, n) for n in static)

    def flatten_with_keys(x: C) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        children, aux = flatten(x)
        return tuple(zip(keys, children, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> C:
        x = object.__new__(cls)
        for name, value in [*zip(leaves, children, strict=True), *zip(static, aux, strict=True)]:
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def strong(tree: PyTree) -> PyTree:
    """The leaves as arrays without weak types, so that what a step gives has the types of what it got.

    Example:
        >>> strong({"step": 0.5})["step"].weak_type
        False
    """

    def fix(x: Any) -> Array:
        x = jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x

    return jax.tree.map(fix, tree)
