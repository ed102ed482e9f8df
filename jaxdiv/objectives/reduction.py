"""Reductions: from per-example losses to the terms that a chain sums.

With normalized weights ``p_i = w_i / sum(w)`` and the total loss ``l_i = sum_k losses[k]_i``:

    mean      sum_i p_i losses[k]_i, for each name k
    CVaR      min_t t + E_p[(l - t)_+] / alpha: the mean of the worst fraction alpha
    KL-DRO    sup_q E_q[l] - temperature KL(q || p) = temperature log E_p exp(l / temperature)

References:
    Rockafellar, Uryasev (2000), Optimization of Conditional Value-at-Risk, eq. (4).
    Hu, Hong (2013), Kullback-Leibler Divergence Constrained Distributionally Robust Optimization, thm. 1.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params, Scalar
from jaxdiv.objectives.record import (
    Link,
    Record,
    add_term,
    stateless,
    take_losses,
    weighted_mean,
)


def _total(link: str, record: Record) -> tuple[Float[Array, " B"], Float[Array, " B"], Record]:
    """Sum of the losses and normalized weights; rows of weight 0 carry neither value nor gradient."""
    named, record = take_losses(link, record)
    losses = functools.reduce(operator.add, named.values())
    absent = record.weights == 0
    total = jnp.sum(record.weights)
    shares = jnp.where(total == 0, 0.0, record.weights / jnp.where(total == 0, 1.0, total))
    return jnp.where(absent, 0.0, losses), shares, record


def mean() -> Link:
    """Averages every named loss under the weights; each keeps its name in the terms.

    Example:
        >>> from jaxdiv import objectives
        >>> link = objectives.mean()
        >>> record = objectives.from_batch({"inputs": jnp.ones(3), "weights": jnp.array([1.0, 1.0, 0.0])})
        >>> record = record._replace(losses={"ce": jnp.array([1.0, 3.0, 9.0])})
        >>> record, _ = link.update(None, (), record, None)
        >>> float(record.terms["ce"])
        2.0
    """

    def update(params: Params, record: Record, key: Key | None) -> Record:
        losses, record = take_losses("mean", record)
        for name, values in losses.items():
            record = add_term("mean", record, name, weighted_mean(values, record.weights))
        return record

    return stateless(update)


def cvar(alpha: Numeric = 0.1) -> Link:
    """Averages the worst fraction `alpha` of the weighted examples, into the term ``"cvar"``.

    Args:
        alpha: Fraction in (0, 1]; 1 is the mean, alpha -> 0 the maximum.

    Returns:
        A stateless link.

    Note:
        The example at the quantile is split, so the value is exact for any weights and continuous in alpha.
    """
    checks.in_range("alpha", alpha, 0.0, 1.0, open_low=True)

    def update(params: Params, record: Record, key: Key | None) -> Record:
        losses, shares, record = _total("cvar", record)
        # Absent rows take no share, so their place in the order is of no account.
        order = jnp.argsort(-losses)
        ranked = shares[order]
        before = jnp.cumsum(ranked) - ranked
        worst = jnp.clip(alpha - before, 0.0, ranked) / alpha
        return add_term("cvar", record, "cvar", jnp.sum(worst * losses[order]))

    return stateless(update)


def kl_dro(temperature: Numeric = 1.0) -> Link:
    """Averages under the worst weights that a KL penalty allows, into the term ``"kl_dro"``.

    Args:
        temperature: Price of leaving the given weights, positive and finite; -> infinity is the mean,
            -> 0 the maximum.

    Returns:
        A stateless link.
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True, open_high=True)

    def update(params: Params, record: Record, key: Key | None) -> Record:
        losses, shares, record = _total("kl_dro", record)
        return add_term("kl_dro", record, "kl_dro", _log_mean_exp(losses, shares, temperature))

    return stateless(update)


def _log_mean_exp(losses: Float[Array, " B"], shares: Float[Array, " B"], temperature: Numeric) -> Scalar:
    present = shares > 0
    top = jnp.max(jnp.where(present, losses, -jnp.inf), initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    gaps = jnp.where(present, (losses - top) / temperature, 0.0)
    # Near the mean (high temperature) expm1 keeps the small differences that exp would round away.
    missing = jnp.sum(shares * jnp.expm1(gaps))
    near = missing > -0.5
    mean_exp = jnp.where(near, 1.0, jnp.sum(jnp.where(present, shares * jnp.exp(gaps), 0.0)))
    log_mean = jnp.where(near, jnp.log1p(jnp.where(near, missing, 0.0)), jnp.log(mean_exp))
    return jnp.where(jnp.any(present), top + temperature * log_mean, 0.0)
