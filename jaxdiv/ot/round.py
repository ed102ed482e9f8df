r"""Rounding an approximate plan to one with the given marginals.

    P'  = diag(min(a / P1, 1)) P                        no row has too much
    P'' = P' diag(min(b / P'ᵀ1, 1))                     nor any column
    G   = P'' + err_a err_bᵀ / |err_a|_1                err_a = a - P''1, err_b = b - P''ᵀ1

G >= 0 has the marginals a and b, and |G - P|_1 <= 2 (|P1 - a|_1 + |Pᵀ1 - b|_1).

References:
    Altschuler, Weed, Rigollet (2017), Near-linear time approximation algorithms for optimal transport via
    Sinkhorn iteration, algorithm 2 and lemma 7.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.ot.measures import equal_masses


def reduction(mass: Float[Array, " n"], limit: Float[Array, " n"]) -> Float[Array, " n"]:
    """``min(limit / mass, 1)``, without a quotient where it is not needed."""
    over = mass > limit
    return jnp.where(over, limit / jnp.where(over, mass, 1.0), 1.0)


def round_plan(
    plan: Float[Array, "n m"], a: Float[Array, " n"], b: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """The plan moved onto the transport polytope of a and b.

    Args:
        plan: Nonnegative matrix, [n, m].
        a: Nonnegative row masses, [n].
        b: Column masses, [m], of the same total.

    Returns:
        A nonnegative matrix whose marginals are a and b to rounding, at most twice as far from the plan in L1
        as the plan's marginals are from a and b. Float32, or float64 where an input is float64. NaN where
        traced masses are negative or of different totals.

    Raises:
        ValueError: If an argument is not floating or has the wrong shape, or concrete ones are negative, NaN
            or of different totals.

    Note:
        Rows and columns without mass are allowed, in the plan and in a and b. Derivatives are those of
        the branch taken, and finite.

    References:
        Altschuler, Weed, Rigollet (2017), Near-linear time approximation algorithms for optimal transport via
        Sinkhorn iteration, algorithm 2.

    Example:
        >>> plan = jnp.array([[0.5, 0.2], [0.0, 0.2]])
        >>> round_plan(plan, jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5])).sum(0)
        Array([0.5, 0.5], dtype=float32)
    """
    plan = checks.floating("plan", plan)
    checks.rank("plan", plan, 2)
    checks.not_empty("plan", plan)
    if checks.concrete(plan) and not bool(jnp.all(plan >= 0)):
        raise ValueError("plan must have no entry that is negative or NaN.")
    dtype = jnp.result_type(plan, *(checks.floating(name, w) for name, w in (("a", a), ("b", b))))
    plan = plan.astype(dtype)
    n, m = plan.shape
    a, b = equal_masses(a, b, n, m, dtype)
    plan = plan * reduction(jnp.sum(plan, 1), a)[:, None]
    plan = plan * reduction(jnp.sum(plan, 0), b)
    missing_a = jnp.maximum(a - jnp.sum(plan, 1), 0.0)
    missing_b = jnp.maximum(b - jnp.sum(plan, 0), 0.0)
    total = jnp.sum(missing_a)
    return plan + missing_a[:, None] * (missing_b / jnp.where(total > 0, total, 1.0))
