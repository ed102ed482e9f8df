"""The record that flows through one chain, and the lookups that links share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Batch, Key, Numeric, Params, Scalar, State

FIELDS = ("inputs", "targets", "weights", "index")
UNFILLED = {"weights", "index", "shared"}  # padding has no index to give, and what is shared has no rows
OWN = {"metrics", "reduced"}  # extras that links keep for the chain
Option = Numeric | Callable[[Int[Array, ""]], Numeric]
"""A numeric option of a link: a number, a traced scalar, or an optax schedule of the link's own updates."""


class Record(NamedTuple):
    """What flows through one chain; it lives inside one call.

    Attributes:
        inputs: The model's inputs, leaves [B, ...].
        targets: Integer labels [B], distributions [B, C], or any pytree of leaves [B, ...].
        outputs: The model's outputs by name; an array from the model means ``{"logits": array}``.
        losses: Named per-example terms, each [B].
        weights: Weight of each example [B]; 1 by default, 0 is padding.
        terms: Named scalars after reduction; the chain's value is their sum.
        index: Position of each example in its data set [B], or None.
        model_state: The model's non-differentiated state.
        extras: Everything else in the batch and whatever links leave for one another.
    """

    inputs: PyTree
    targets: PyTree
    outputs: dict[str, PyTree]
    losses: dict[str, Float[Array, " B"]]
    weights: Float[Array, " B"]
    terms: dict[str, Scalar]
    index: Int[Array, " B"] | None  # type: ignore[assignment]  # shadows tuple.index, as the field calls it
    model_state: PyTree
    extras: dict[str, PyTree]


class Link(NamedTuple):
    """One piece of a chain.

    Attributes:
        init: ``(params, record, key) -> state``; the record holds shapes only.
        update: ``(params, state, record, key) -> (record, state)``; pure; ``key=None`` is evaluation.
    """

    init: Callable[[Params, Record, Key], State]
    update: Callable[[Params, State, Record, Key | None], tuple[Record, State]]


def stateless(update: Callable[[Params, Record, Key | None], Record]) -> Link:
    """Makes a link from a function of ``(params, record, key)`` that keeps no state."""
    return Link(
        init=lambda params, record, key: (),
        update=lambda params, state, record, key: (update(params, record, key), state),
    )


def from_batch(batch: Batch) -> Record:
    """Builds the first record of a chain.

    Rows of weight 0 become copies of the first present row, or zeros where none is: whatever padding
    holds, a gradient that passed it would be 0 * NaN.

    Raises:
        ValueError: If `inputs` are missing or empty, the leading axes of inputs, targets, weights and
            index differ, or a key is taken by the chain itself.
    """
    taken = sorted(OWN & set(batch))
    if taken:
        raise ValueError(f"batch must not hold the keys {taken}, which the chain uses; rename them.")
    if "inputs" not in batch:
        raise ValueError(f"batch must hold 'inputs'; got the keys {sorted(batch)}.")
    leaves = jax.tree.leaves(batch["inputs"])
    if not leaves or jnp.ndim(leaves[0]) == 0 or jnp.shape(leaves[0])[0] == 0:
        raise ValueError(
            "batch['inputs'] must hold at least one example; "
            f"got leaves of shape {[jnp.shape(leaf) for leaf in leaves]}."
        )
    size = jnp.shape(leaves[0])[0]
    for name in FIELDS:
        for leaf in jax.tree.leaves(batch.get(name)):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != size:
                raise ValueError(
                    f"batch[{name!r}] must have {size} examples along axis 0 like the inputs; "
                    f"got shape {jnp.shape(leaf)}."
                )
    weights = batch.get("weights")
    if weights is None:
        weights = jnp.ones(size, jnp.float32)
    else:
        weights = checks.floating("batch['weights']", weights)
        checks.rank("batch['weights']", weights, 1)
        filled = {name: value for name, value in batch.items() if name not in UNFILLED}
        batch = {**batch, **_fill_padding(filled, weights)}
    index = batch.get("index")
    if index is not None:
        index = checks.integers("batch['index']", index).astype(jnp.int32)
        checks.rank("batch['index']", index, 1)
    return Record(
        inputs=batch["inputs"],
        targets=batch.get("targets"),
        outputs={},
        losses={},
        weights=weights,
        terms={},
        index=index,
        model_state=(),
        extras={name: value for name, value in batch.items() if name not in FIELDS},
    )


def _fill_padding(rows: PyTree, weights: Float[Array, " B"]) -> PyTree:
    absent = weights == 0
    first = jnp.argmin(absent)

    def fill(leaf: Any) -> Any:
        if jnp.shape(leaf)[:1] != absent.shape:
            return leaf
        leaf = jnp.asarray(leaf)
        row = leaf[first]
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            row = jnp.where(absent[first], jnp.zeros_like(row), row)
        return jnp.where(jnp.expand_dims(absent, range(1, leaf.ndim)), row, leaf)

    return jax.tree.map(fill, rows)


def select(link: str, record: Record, name: str) -> PyTree:
    """Finds a field of the record by name.

    The name is ``"inputs"``, ``"targets"``, or a key of `outputs`, of `targets` where those are a mapping,
    or of `extras`, in this order.

    Args:
        link: The asking link's name, for the message.
        record: The record.
        name: What to find.

    Returns:
        The array or pytree of that name.

    Raises:
        ValueError: If there is none, naming the link and what the record holds.
    """
    fields = {"inputs": record.inputs}
    if record.targets is not None:
        fields["targets"] = record.targets
    named_targets = record.targets if isinstance(record.targets, Mapping) else {}
    for fields_of in (fields, record.outputs, named_targets, record.extras):
        if name in fields_of:
            return fields_of[name]
    known = [*fields, *record.outputs, *named_targets, *record.extras]
    remedy = "" if record.outputs else " No forward link has run yet; put objectives.forward before it."
    raise ValueError(f"link {link} needs {name!r}; the record holds {', '.join(known)}.{remedy}")


def raised(tree: PyTree) -> PyTree:
    """The same pytree, its half-precision leaves in float32, for functions that do not raise them."""

    def raise_leaf(leaf: Any) -> Any:
        half = hasattr(leaf, "dtype") and leaf.dtype in (jnp.bfloat16, jnp.float16)
        return jnp.asarray(leaf, jnp.float32) if half else leaf

    return jax.tree.map(raise_leaf, tree)


def require_index(link: str, record: Record) -> Int[Array, " B"]:
    """Returns the record's index, or raises ValueError naming the link that needs it."""
    if record.index is None:
        raise ValueError(
            f"link {link} keeps a memory per example and needs batch['index'] [B] int32; got none."
        )
    return record.index


def take_losses(link: str, record: Record) -> tuple[dict[str, Float[Array, " B"]], Record]:
    """Gives a reduction the per-example losses that none before it took, and marks them as reduced.

    Every reduction takes its losses here, so that each loss counts once and the chain can tell those that
    nobody reduced.

    Args:
        link: The asking link's name, for the message.
        record: The record.

    Returns:
        The losses by name, and the record to go on with.

    Raises:
        ValueError: If there are none.
    """
    # Names alone, without leaves, pass every transformation.
    reduced: dict[str, tuple[()]] = record.extras.get("reduced", {})
    losses = {name: values for name, values in record.losses.items() if name not in reduced}
    if not losses:
        taken = f"; {sorted(reduced)} are reduced already" if reduced else ""
        raise ValueError(f"link {link} needs per-example losses; put objectives.loss before it{taken}.")
    reduced = {**reduced, **dict.fromkeys(losses, ())}
    return losses, record._replace(extras={**record.extras, "reduced": reduced})


def add_term(link: str, record: Record, name: str, value: Scalar, weight: Numeric = 1.0) -> Record:
    """Adds ``weight * value``, a named scalar, to the record's terms; a name may be used once."""
    if jnp.shape(value) != ():
        raise ValueError(f"link {link} must give a scalar for term {name!r}; got shape {jnp.shape(value)}.")
    if name in record.terms:
        raise ValueError(f"link {link}: a term {name!r} exists already; give another name=.")
    value = weight * checks.floating(f"link {link}: term {name!r}", value)
    return record._replace(terms={**record.terms, name: value})


def weighted_mean(values: Float[Array, " B"], weights: Float[Array, " B"]) -> Scalar:
    """Mean of values under weights; a row of weight 0 is absent, even if its value is NaN.

    A batch of total weight 0 has mean 0: it is a chunk of pure padding.
    """
    total = jnp.sum(weights)
    summed = jnp.sum(jnp.where(weights == 0, 0.0, weights * values))
    return jnp.where(total == 0, 0.0, summed / jnp.where(total == 0, 1.0, total))


def of_present(fn: Callable[[Float[Array, " B"]], PyTree], weights: Float[Array, " B"]) -> PyTree:
    """``fn(weights)``, scalars of the whole batch; 0 for a batch of pure padding, as a mean has it."""
    absent = jnp.sum(weights) == 0
    # Weights that fn can normalize, so that the branch not taken gives no NaN to the gradient.
    values = fn(jnp.where(absent, jnp.ones_like(weights), weights))
    return jax.tree.map(lambda value: jnp.where(absent, jnp.zeros_like(value), value), values)


def resolve(option: Option, count: Int[Array, ""]) -> Numeric:
    """The value of a numeric option after `count` updates: schedules are called, numbers returned."""
    return option(count) if callable(option) else option
