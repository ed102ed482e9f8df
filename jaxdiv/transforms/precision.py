"""The precision in which transforms compute: float32, or float64 for float64 leaves."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdiv.core import checks


def widen(name: str, tree: PyTree) -> PyTree:
    """The leaves in float32 or float64; ValueError naming `name` if one is not floating point."""
    return jax.tree.map(partial(checks.floating, name), tree)


def zeros(params: PyTree) -> PyTree:
    """A state of zeros for every leaf of the parameters."""
    return jax.tree.map(jnp.zeros_like, widen("params", params))
