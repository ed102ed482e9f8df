"""Recursive directions: the last one, corrected by what the same draw says at both points.

    d_k = g(w_k; b_k) + (1 − e_k) (d_{k−1} − g(w_{k−1}; b_k))

e = 1 is the plain direction, e = 0 the SPIDER/SARAH recursion, whose error is that of its last restart plus the noise
of differences, which are small where the steps are. On all data d_k = g(w_k) for every e once d_{k−1} is exact.

References:
    Cutkosky, Orabona (2019), Momentum-based variance reduction in non-convex SGD, algorithm 1 (STORM).
    Fang, Li, Lin, Zhang (2018), SPIDER: near-optimal non-convex optimization via stochastic path integrated
    differential estimator, algorithm 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxdiv.core.types import Numeric, Scalar
from jaxdiv.objectives.record import Option, resolve


def storm(last: PyTree, new: PyTree, old: PyTree, rate: Numeric) -> PyTree:
    """d_k from d_{k−1}, g(w_k; b_k), g(w_{k−1}; b_k) and e_k."""
    return jax.tree.map(lambda d, g, h: g + jnp.asarray(1 - rate, d.dtype) * (d - h), last, new, old)


def rate_at(rate: Option, step: Int[Array, ""]) -> Scalar:
    """e_k, a number or a schedule; 1 at the first step, which has no last direction."""
    return jnp.where(step == 0, 1.0, resolve(rate, step))
