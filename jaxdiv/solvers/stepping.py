"""Methods of optimistix, stepped in the loop of `core.run`.

optimistix methods are already made of ``init`` and ``step``. Their states, however, carry functions and jaxprs,
which are new with every trace. Here a state holds the arrays of theirs alone; what is static comes from an abstract
``init`` on the same problem. Their own stopping rules are not asked.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Inner: TypeAlias = tuple[Array, ...]
NO_TAGS: frozenset[object] = frozenset()


def begin(method: Any, fun: Callable[[PyTree], PyTree], y: PyTree) -> Inner:
    """The arrays of the method's first state."""
    return _arrays(_first(method, fun, y))


def advance(method: Any, fun: Callable[[PyTree], PyTree], y: PyTree, inner: Inner) -> tuple[PyTree, Inner]:
    """One step of the method: the next point and the arrays of its state."""
    leaves, structure = jax.tree.flatten(_first(method, fun, y))
    arrays = iter(inner)
    state = jax.tree.unflatten(structure, [next(arrays) if eqx.is_array(x) else x for x in leaves])
    y, state, _ = method.step(_with_aux(fun), y, None, {}, state, NO_TAGS)
    return y, tuple(x.astype(ref.dtype) for x, ref in zip(_arrays(state), inner, strict=True))


def _first(method: Any, fun: Callable[[PyTree], PyTree], y: PyTree) -> Any:
    out, aux = jax.eval_shape(lambda y: _with_aux(fun)(y, None), y)
    state = method.init(_with_aux(fun), y, None, {}, out, aux, NO_TAGS)
    # optimistix makes its scalars in the default dtype, which need not be that of y.
    dtype = jnp.result_type(*jax.tree.leaves(y))

    def cast(x: Any) -> Any:
        return x.astype(dtype) if eqx.is_inexact_array(x) else x

    return jax.tree.map(cast, state)


def _with_aux(fun: Callable[[PyTree], PyTree]) -> Callable[[PyTree, Any], tuple[PyTree, None]]:
    return lambda y, _: (fun(y), None)


def _arrays(state: Any) -> Inner:
    return tuple(x for x in jax.tree.leaves(state) if eqx.is_array(x))
