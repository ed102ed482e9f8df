"""Which layer each array of the parameters belongs to."""

from typing import Any

import jax
from jaxtyping import PyTree

from jaxdiv.core.types import Params


def layer_labels(params: Params) -> PyTree:
    """Names the layer of each leaf: its path in the tree without the last name.

    Args:
        params: Nested mappings, as flax has them; ``{"hidden": {0: {"kernel", "bias"}}}`` has the layer ``"hidden/0"``.

    Returns:
        A pytree of strings like `params`. A leaf at the top is its own layer.

    Example:
        >>> layer_labels({"hidden": {0: {"kernel": 1.0, "bias": 2.0}}, "scale": 3.0})
        {'hidden': {0: {'bias': 'hidden/0', 'kernel': 'hidden/0'}}, 'scale': 'scale'}
    """

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        names = _names(path)
        return "/".join(names[:-1] or names)

    return jax.tree_util.tree_map_with_path(label, params)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns the path of a leaf as text, ``"hidden/0/kernel"``."""
    return "/".join(_names(path))


def _names(path: tuple[Any, ...]) -> list[str]:
    # The array of an nnx variable is its attribute "value", which names nothing.
    attribute = bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return [jax.tree_util.keystr((entry,), simple=True) for entry in path[: len(path) - attribute]]


def of_leaves(labels: PyTree | None, params: Params) -> list[str]:
    """Returns the label of each leaf of the parameters.

    Args:
        labels: Strings in a prefix of the tree of `params`; None for `layer_labels`.
        params: The parameters.

    Raises:
        ValueError: If the labels are no prefix of the tree.
    """
    if labels is None:
        return jax.tree.leaves(layer_labels(params))
    try:
        spread = jax.tree.map(lambda label, part: [label] * len(jax.tree.leaves(part)), labels, params)
    except ValueError as error:
        raise ValueError(
            f"labels must be a prefix of the tree of params {jax.tree.structure(params)}; "
            f"got {jax.tree.structure(labels)}."
        ) from error
    return jax.tree.leaves(spread)
