r"""Rényi divergence between two distributions given by logits.

    D_α(P‖Q) = 1/(α - 1) log Σ p^α q^(1-α) = K(s)/s,   K(s) = log E_P[(p/q)^s],   s = α - 1

with its limits: `-log Q(p > 0)` at α = 0, KL(P‖Q) at α = 1, `max log(p/q)` at α = ∞. Nondecreasing in α.
With `l = log(p/q)`, `φ_k(x) = Σ_j x^j / (j + k)!` and equal supports,

    a = (E_P[(p/q)^s] - 1)/s = Σ p l φ_1(s l) + q - p = Σ p l^2 (s φ_2(s l) + φ_2(-l))  >= 0
    D_α = a log1p(s a)/(s a)

is smooth through α = 1, in value and derivative, and accurate between close distributions; it serves while
`|s a| < 1/2`, a log-sum-exp beyond.

References: van Erven, Harremoës (2014), Rényi divergence and Kullback–Leibler divergence, definition 2 and
theorems 4 to 6.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiv.core import checks
from jaxdiv.core.numerics import logsumexp
from jaxdiv.core.types import Numeric
from jaxdiv.divergences.log_ratio import log1p_over, phi


def renyi(
    p_logits: Float[Array, "*b n"],
    q_logits: Float[Array, "*b n"],
    *,
    alpha: Numeric,
    where: Bool[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Rényi divergence of order alpha.

    Args:
        p_logits: Logits of P, [*b, n]; -inf is probability 0.
        q_logits: Logits of Q, [*b, n].
        alpha: Order in [0, inf], a number or a traced array; a scalar or broadcastable to [*b].
        where: Classes to include, broadcastable to the logits.

    Returns:
        D_alpha(P‖Q), [*b]; +inf where alpha >= 1 and P has mass where Q has none, and where the two
        share no class.

    Raises:
        ValueError: If the logits are not floating, have rank 0, differ in shape, or a concrete `alpha`
            is negative.

    Note:
        The gradient with respect to a -inf logit is 0, and so are all gradients where the divergence
        is +inf.

    References:
        van Erven, Harremoës (2014), Rényi divergence and Kullback–Leibler divergence, definition 2.

    Example:
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(renyi(p, q, alpha=jnp.inf)), 4)
        0.6931
    """
    p_logits, q_logits = checks.floating("p_logits", p_logits), checks.floating("q_logits", q_logits)
    checks.same_shape(p_logits=p_logits, q_logits=q_logits)
    if p_logits.ndim == 0:
        raise ValueError("p_logits must have a class axis; got a scalar.")
    checks.in_range("alpha", alpha, 0.0)
    dtype = jnp.promote_types(p_logits.dtype, q_logits.dtype)
    if where is not None:
        p_logits, q_logits = (jnp.where(where, z, -jnp.inf) for z in (p_logits, q_logits))
    log_p = jax.nn.log_softmax(p_logits.astype(dtype), axis=-1)
    log_q = jax.nn.log_softmax(q_logits.astype(dtype), axis=-1)
    in_p, in_q = log_p > -jnp.inf, log_q > -jnp.inf
    both = in_p & in_q
    log_p_safe = jnp.where(both, log_p, 0.0)
    log_ratio = log_p_safe - jnp.where(both, log_q, 0.0)
    p, q = jnp.where(both, jnp.exp(log_p_safe), 0.0), jnp.exp(log_q)
    missing = jnp.any(in_p & ~in_q, axis=-1)

    s = jnp.asarray(alpha, dtype) - 1.0
    at_infinity = jnp.isposinf(s)
    s = jnp.where(at_infinity, 1.0, s)[..., None]
    exponent = s * log_ratio
    bounded = exponent < 30.0
    close = jnp.abs(log_ratio) < 1.0
    safe = jnp.where(bounded, exponent, 0.0)
    near = p * jnp.square(log_ratio) * (s * phi(2, safe) + phi(2, jnp.where(close, -log_ratio, 0.0)))
    growth = jnp.sum(jnp.where(both & close, near, p * log_ratio * phi(1, safe) + q - p), axis=-1)
    s = s[..., 0]
    direct = jnp.all(bounded, axis=-1) & (jnp.abs(s * growth) < 0.5) & ~missing
    growth = jnp.where(direct, growth, 0.0)
    # An empty common support is +inf below; dividing its -inf here would make the gradient in alpha NaN.
    empty = ~jnp.any(both, axis=-1)
    cumulant = jnp.where(empty, 0.0, logsumexp(log_p_safe + exponent, -1, where=both))
    far = cumulant / jnp.where(direct | (s == 0), 1.0, s)
    value = jnp.where(direct, growth * log1p_over(s * growth), far)
    largest = jnp.max(jnp.where(both, log_ratio, -jnp.inf), axis=-1)
    value = jnp.where(at_infinity, largest, value)
    infinite = (missing & (s >= 0)) | empty
    return jnp.where(infinite, jnp.inf, value)
