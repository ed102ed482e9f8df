"""The hypergradient by a Neumann series whose factors each see a fresh draw b_i.

    v = a Σ_{k=0}^{K} Π_{i=1}^{k} (I − a H(b_i)) ∂F/∂y,    ∇Φ ≈ ∂F/∂x − J v

On all data its relative error is at most (1 − a μ)^{K+1}, for 0 < a ≤ 1/L and H between μ and L. Independent draws keep
the mean of a product the product of the means. Randomized, one product stands for a sum of Q terms:

    v = Q a Π_{i=1}^{p} (I − a H(b_i)) ∂F/∂y,    p uniform on 0, …, Q − 1,

whose mean is the series with K = Q − 1, for p products, (Q − 1)/2 on average.

References:
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithm 3 (the sum).
    Ghadimi, Wang (2018), Approximation methods for bilevel programming, algorithm 3 (randomized).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Draws
from jaxdiv.core.types import Numeric, Scalar


class Hypergradient(NamedTuple):
    """What one evaluation gives.

    Attributes:
        value: F.
        direction: ∂F/∂x − J v.
        inner: ∂G/∂y, from the linearization that gives J v.
        products: Products taken, the one of J v included.
    """

    value: Scalar
    direction: PyTree
    inner: PyTree
    products: int | Int[Array, ""]


def hypergradient(
    draws: Draws,
    first: int | Int[Array, ""],
    x: PyTree,
    y: PyTree,
    *,
    terms: int,
    step_size: Numeric,
    randomized: bool = False,
) -> Hypergradient:
    """The hypergradient at (x, y).

    Equal `first` means equal draws, and an equal p, at whatever point.

    Args:
        draws: Draws of the step.
        first: Number of the draw of F and J; those after it, `terms` at most, are the factors'.
        x: Outer variable.
        y: Inner variable.
        terms: K, or Q where randomized. Static.
        step_size: a.
        randomized: Whether one random product stands for the sum. Has no derivative in reverse mode.

    Returns:
        Value, direction, ∂G/∂y and the number of products.
    """
    losses = draws(first)
    value, (f_x, f_y) = losses.outer_gradients(x, y)
    g_y, product = losses.inner_products(x, y)

    def factor(i: Int[Array, ""], u: PyTree) -> PyTree:
        h_u, _ = draws(first + 1 + i).inner_products(x, y)[1](u)
        return optax.tree.sub(u, _scale(step_size, h_u))

    def term(i: Int[Array, ""], carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        u = factor(i, carry[0])
        return u, optax.tree.add(carry[1], u)

    taken: int | Int[Array, ""] = terms
    if randomized:
        # No factor has the number terms: p is at most terms - 1.
        taken = jax.random.randint(jax.random.fold_in(draws.key, first + terms), (), 0, terms)
        v = _scale(terms * step_size, jax.lax.fori_loop(0, taken, factor, f_y))
    else:
        v = _scale(step_size, jax.lax.fori_loop(0, terms, term, (f_y, f_y))[1])
    return Hypergradient(value, optax.tree.sub(f_x, product(v)[1]), g_y, taken + 1)


def _scale(a: Numeric, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(a, leaf.dtype) * leaf, tree)
