"""Pytrees as vectors: checks, one dtype inside, and the products with a stored basis.

A vector is a pytree of floating arrays; a basis of k vectors is the same pytree with a leading axis k
on every leaf. Inside the room all leaves share one dtype of at least single precision, so that
scalars and leaves mix without promotion; operators of the user see their own dtypes (half precisions
raised to float32).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks

Vector: TypeAlias = PyTree
Matvec: TypeAlias = Callable[[Vector], Vector]
Inner: TypeAlias = Callable[[Matvec, Vector, Any, Any], tuple[Vector, Int[Array, ""]]]
"""``(matvec, r, tol, max_steps) -> (d, steps)``: one attempt at A d = r from zero, ‖r‖ = 1."""

_HIGHEST = jax.lax.Precision.HIGHEST


def widened(name: str, tree: Any) -> Vector:
    """Returns the pytree with floating leaves, half precisions raised to float32.

    Raises:
        ValueError: If the pytree has no element or a leaf is not real floating point.
    """
    wide = jax.tree_util.tree_map_with_path(
        lambda path, leaf: checks.floating(name + jax.tree_util.keystr(path), leaf), tree
    )
    if sum(leaf.size for leaf in jax.tree.leaves(wide)) == 0:
        raise ValueError(f"{name} must not be empty; got {jax.tree.structure(tree)}.")
    return wide


def uniform(tree: Vector) -> Vector:
    """Returns the pytree with all leaves in their common dtype."""
    return optax.tree.cast(tree, jnp.result_type(*jax.tree.leaves(tree)))


def epsilon(tree: Vector) -> float:
    """Returns the distance from 1 to the next number in the common dtype of the leaves."""
    return float(np.finfo(jnp.result_type(*jax.tree.leaves(tree))).eps)


def cast_like(tree: Vector, like: Vector) -> Vector:
    """Returns `tree` with the leaf dtypes of `like`."""
    return jax.tree.map(lambda leaf, ref: leaf.astype(ref.dtype), tree, like)


def same_space(name: str, tree: Any, like_name: str, like: Vector) -> None:
    """Raises ValueError unless `tree` has the structure and the leaf shapes of `like`."""
    got, expected = (
        (jax.tree.structure(t), [jnp.shape(leaf) for leaf in jax.tree.leaves(t)]) for t in (tree, like)
    )
    if got != expected:
        raise ValueError(
            f"{name} must have the structure and shapes of {like_name}; "
            f"expected {expected[0]} with {expected[1]}, got {got[0]} with {got[1]}."
        )


def operator(name: str, fun: Matvec, like_name: str, like: Vector) -> Matvec:
    """Returns `fun` as a map between vectors of one dtype, after checking that it is square.

    Args:
        name: The operator's name, for messages.
        fun: The user's linear map on pytrees like `like`.
        like_name: The name of `like`, for messages.
        like: A vector with the leaf dtypes that `fun` shall see.

    Raises:
        ValueError: If the output of `fun` differs from `like` in structure or shapes.
    """
    same_space(f"the output of {name}", jax.eval_shape(fun, like), like_name, like)
    dtype = jnp.result_type(*jax.tree.leaves(like))
    return lambda v: optax.tree.cast(fun(cast_like(v, like)), dtype)


def coupled(tree: Vector) -> Vector:
    """Returns the same values, with every leaf depending on every leaf.

    ``lax.custom_linear_solve`` cannot be transposed where some leaves of its right-hand side have a
    tangent and others have none; adding zero times a sum of entries gives all of them one.
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1:
        return tree
    nothing = 0 * jax.tree.reduce(jnp.add, [leaf.ravel()[:1].sum() for leaf in leaves])
    return jax.tree.map(lambda leaf: leaf + nothing, tree)


def coefficients(basis: Vector, v: Vector) -> Float[Array, " k"]:
    """Returns the inner products of the k basis vectors with `v`."""
    products = jax.tree.map(
        lambda rows, leaf: jnp.tensordot(rows, leaf, axes=leaf.ndim, precision=_HIGHEST), basis, v
    )
    return jax.tree.reduce(jnp.add, products)


def combine(basis: Vector, weights: Float[Array, "*m k"]) -> Vector:
    """Returns the combination of the k basis vectors, or m of them."""
    return jax.tree.map(lambda rows: jnp.tensordot(weights, rows, axes=1, precision=_HIGHEST), basis)


def orthogonalize(basis: Vector, v: Vector) -> tuple[Vector, Float[Array, " k"]]:
    """Returns the part of `v` orthogonal to the basis, and the coefficients removed.

    Classical Gram-Schmidt, twice: orthogonal to working precision for any `v` that is numerically
    independent of the basis (Giraud et al. 2005). Zero rows of the basis take no part.
    """
    first = coefficients(basis, v)
    v = optax.tree.sub(v, combine(basis, first))
    second = coefficients(basis, v)
    return optax.tree.sub(v, combine(basis, second)), first + second


def insert(basis: Vector, index: Any, v: Vector) -> Vector:
    """Returns the basis with `v` written at row `index`."""
    return jax.tree.map(lambda rows, leaf: rows.at[index].set(leaf), basis, v)


def empty_basis(v: Vector, k: int) -> Vector:
    """Returns k zero vectors like `v`."""
    return jax.tree.map(lambda leaf: jnp.zeros((k, *leaf.shape), leaf.dtype), v)
