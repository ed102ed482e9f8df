"""A flax nnx module as a pure function of its parameters, its other state, inputs and a key.

An nnx module holds three kinds of variables: parameters, random streams, and everything else
(running statistics, caches). `functional` takes them apart once. Parameters and the rest become
arguments of ``apply``; the random streams are not state at all: each stream restarts from its own
key, derived from the one given, so that a call is a function of its arguments alone and maps, scans
and checkpoints carry no hidden counters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jaxdiv.core.types import Apply, Key, Params, State


class Functional(NamedTuple):
    """A module taken apart.

    Attributes:
        apply: ``(params, model_state, inputs, key) -> (outputs, model_state)``; ``key=None`` is
            evaluation.
        params: The parameters, equal to ``nnx.state(module, nnx.Param)``.
        model_state: All other variables except random streams, such as batch statistics.
    """

    apply: Apply
    params: Params
    model_state: State


def functional(module: nnx.Module) -> Functional:
    """Turns a flax nnx module into a pure function.

    With a key the module runs as after ``module.train()``: dropout is drawn from the key, batch
    statistics are those of the batch and the running ones advance. With ``key=None`` it runs as
    after ``module.eval()``: no dropout, stored statistics, state returned unchanged; a layer that
    draws random numbers even then uses the streams the module was built with, the same at every
    call. The module itself is left as it is, and ``nnx.update(module, params, model_state)`` puts
    trained values back into it.

    Args:
        module: The module; it is called with ``inputs`` alone and may return any pytree.

    Returns:
        The triple ``(apply, params, model_state)``.

    Raises:
        ValueError: If `module` is not an nnx module.

    Note:
        Variables of type ``nnx.Intermediate`` are dropped. A change that the call itself makes to a
        parameter is dropped too: parameters move by the optimizer.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> model = functional(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
        >>> inputs, key = jnp.ones((2, 4)), jax.random.key(1)
        >>> outputs, state = model.apply(model.params, model.model_state, inputs, key)
        >>> outputs.shape
        (2, 3)
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"module must be a flax nnx module; got {type(module).__name__}; "
            "a function (params, model_state, inputs, key) -> (outputs, model_state) "
            "needs no conversion."
        )
    module = nnx.clone(module)
    nnx.pop(module, nnx.Intermediate)
    module.eval()
    evaluation, stored, params, model_state = nnx.split(module, nnx.RngState, nnx.Param, ...)
    module.train()
    training = nnx.split(module)[0]
    stateful = bool(jax.tree.leaves(model_state))

    def apply(params: Params, model_state: State, inputs: PyTree, key: Key | None) -> tuple[PyTree, State]:
        graph, streams = (evaluation, stored) if key is None else (training, _reseeded(stored, key))
        # A module without state of its own is also called with (), which flax would take for a variable.
        states = (params, model_state) if stateful else (params,)
        # Without copy=True the call would write into the caller's own variables.
        called = nnx.merge(graph, streams, *states, copy=True)
        outputs = called(inputs)
        if key is None or not stateful:
            return outputs, model_state
        nnx.pop(called, nnx.Intermediate)
        return outputs, nnx.state(called, nnx.Not(nnx.Any(nnx.RngState, nnx.Param)))

    return Functional(apply, params, model_state)


def _reseeded(streams: State, key: Key) -> State:
    """Restarts every random stream: its own key folded from `key`, its count zero."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    leaves, treedef = jax.tree.flatten(streams)
    restarted = []
    for position, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, position)
            # Layers stacked by nnx.vmap hold an array of keys.
            restarted.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
        else:
            restarted.append(jnp.zeros_like(leaf))
    return jax.tree.unflatten(treedef, restarted)
