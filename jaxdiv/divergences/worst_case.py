r"""The worst-case mean of losses over distributions near a base one (distributionally robust objective).

    penalty λ:  V = max_q Σ q_i l_i - λ D_f(q‖p)   = min_η η + λ Σ p_i f*((l_i - η) / λ)
    radius ρ:   V = max_{D_f(q‖p) <= ρ} Σ q_i l_i  = min_λ [penalized V(λ) + λ ρ]

The maximizer is `q_i = p_i f*'((l_i - η)/λ)`, with η the root of `Σ q_i = 1` between the smallest and
the largest loss and λ the root of `D_f(q‖p) = ρ`, in (0, range/ρ] because `λ D_f <= Σ q l - Σ p l`. For KL,
η is λ log-mean-exp of the losses. Where `f'(inf)` is finite and reached (total variation), the mass that no
η can place belongs to the largest loss.

References:
    Ben-Tal et al. (2013), Robust solutions of optimization problems affected by uncertain probabilities.
    Zhu, Ying, Yang (2023), Label distributionally robust losses, arXiv 2112.14869.
    Qiu et al. (2023), Automatic temperature individualization, arXiv 2305.11965, eq. (4).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.divergences.f_divergence import FDivergence
from jaxdiv.divergences.generators import PLAIN
from jaxdiv.divergences.scalar_root import increasing_root


class WorstCase(NamedTuple):
    """The maximum and where it is attained.

    Attributes:
        value: V, [*]; its gradient in the losses is `weights`, in the radius it is `penalty`.
        weights: The maximizer q, [*, n].
        penalty: λ, [*]; given, or the multiplier of the radius.
    """

    value: Float[Array, "*b"]
    weights: Float[Array, "*b n"]
    penalty: Float[Array, "*b"]


def worst_case(
    divergence: FDivergence,
    losses: Float[Array, "*b n"],
    *,
    penalty: "float | Float[Array, '*b'] | None" = None,
    radius: "float | Float[Array, '*b'] | None" = None,
    min_penalty: "float | Float[Array, '*b'] | None" = None,
    weights: Float[Array, "*b n"] | None = None,
) -> WorstCase:
    """Maximizes the mean of losses over the distributions near a base distribution.

    Args:
        divergence: ``D_f(q‖p)`` of the alternative q to the base p.
        losses: [*, n].
        penalty: λ > 0, a number or [*]. λ → 0 tends to the largest loss, λ → ∞ to the mean.
        radius: ρ > 0, a number or [*]; exactly one of `penalty` and `radius` is given.
        min_penalty: Smallest multiplier of a radius; 1e-4 of the range of the losses by default. A
            radius that would need a smaller one gives the bound at this one.
        weights: Base distribution up to its sum, [*, n], uniform by default; 0 removes a loss.

    Returns:
        Value, maximizer and multiplier, differentiable to any order in losses, λ, ρ and options.

    Raises:
        ValueError: If not exactly one of `penalty` and `radius` is given, one is concrete and not
            positive, `losses` is not floating, or a shape does not fit.

    Note:
        KL takes one softmax for a penalty. Other divergences take a scalar bisection per row, and one
        around it for a radius.

    Example:
        >>> from jaxdiv import divergences
        >>> result = worst_case(divergences.get("kl"), jnp.array([0.0, 1.0, 2.0]), penalty=1.0)
        >>> print(f"{result.value:.4f}", result.weights.round(3))
        1.3090 [0.09  0.245 0.665]
    """
    losses = checks.floating("losses", losses)
    checks.not_empty("losses", losses)
    if losses.ndim == 0:
        raise ValueError("losses must have rank 1 or more; got a scalar; stack the losses on an axis.")
    if (penalty is None) == (radius is None):
        raise ValueError("exactly one of penalty and radius must be given; got both or neither.")
    if weights is None:
        weights = jnp.ones_like(losses)
    weights = jnp.asarray(weights).astype(losses.dtype)
    checks.same_shape(losses=losses, weights=weights)
    keep = weights > 0
    base = weights / jnp.sum(weights, axis=-1, keepdims=True)
    floor = jnp.min(jnp.where(keep, losses, jnp.inf), axis=-1, keepdims=True)
    losses = jnp.where(keep, losses, floor)

    if radius is None:
        multiplier = _per_row("penalty", penalty, losses)
        q = _maximizer(divergence, losses, base, multiplier)
        value = jnp.sum(q * losses, axis=-1) - multiplier * _distance(divergence, q, base)
        return WorstCase(value, q, multiplier)

    budget = _per_row("radius", radius, losses)
    spread = jax.lax.stop_gradient(jnp.max(losses, axis=-1) - jnp.min(losses, axis=-1))
    spread = jnp.where(spread > 0, spread, 1.0)
    low = 1e-4 * spread if min_penalty is None else _per_row("min_penalty", min_penalty, losses)

    def slack(multiplier: Array) -> Array:
        return budget - _distance(divergence, _maximizer(divergence, losses, base, multiplier), base)

    high = jnp.maximum(2.0 * low, jax.lax.stop_gradient(spread / budget))
    binding = slack(low) < 0
    multiplier = jnp.where(binding, increasing_root(slack, low, high), low)
    # Where f has a kink the distance jumps across the root; both sides are maximizers there, and the
    # distance is linear between them.
    step = 8.0 * jnp.finfo(losses.dtype).eps
    inner = _maximizer(divergence, losses, base, multiplier)
    outer = _maximizer(divergence, losses, base, multiplier * (1.0 - step))
    near, far = _distance(divergence, inner, base), _distance(divergence, outer, base)
    jump = binding & (far > near)
    share = jnp.where(jump, (budget - near) / jnp.where(jump, far - near, 1.0), 0.0)
    share = jax.lax.stop_gradient(jnp.clip(share, 0.0, 1.0))[..., None]
    q = inner + share * (outer - inner)
    value = jnp.sum(q * losses, axis=-1) - multiplier * (_distance(divergence, q, base) - budget)
    return WorstCase(value, q, multiplier)


def _per_row(name: str, option: object, losses: Array) -> Array:
    checks.in_range(name, option, 0.0, open_low=True)
    rows = losses.shape[:-1]
    array = jnp.asarray(option, losses.dtype)
    if array.shape not in ((), rows):
        raise ValueError(f"{name} must be a number or have shape {rows}; got {array.shape}.")
    return jnp.broadcast_to(array, rows)


def _maximizer(divergence: FDivergence, losses: Array, base: Array, multiplier: Array) -> Array:
    scale = multiplier[..., None]
    if divergence.generator is PLAIN["kl"].generator:
        # A large loss over a small penalty would swallow the logarithm of the base.
        relative = losses - jax.lax.stop_gradient(jnp.max(losses, axis=-1, keepdims=True))
        return jax.nn.softmax(jnp.where(base > 0, relative / scale + _log(base), -jnp.inf), axis=-1)
    # f'(1): the slope at which the maximizer keeps r = 1.
    unit = divergence.f_prime(jnp.zeros((), losses.dtype))

    def missing(level: Array) -> Array:
        slopes = (losses - level[..., None]) / scale + unit
        return 1.0 - jnp.sum(base * divergence.conjugate_prime(slopes), axis=-1)

    bracket = jax.lax.stop_gradient((jnp.min(losses, axis=-1), jnp.max(losses, axis=-1)))
    level = increasing_root(missing, *bracket)
    q = base * divergence.conjugate_prime((losses - level[..., None]) / scale + unit)
    largest = base * (losses == jnp.max(losses, axis=-1, keepdims=True))
    rest = 1.0 - jnp.sum(q, axis=-1, keepdims=True)
    return q + rest * largest / jnp.sum(largest, axis=-1, keepdims=True)


def _distance(divergence: FDivergence, q: Array, base: Array) -> Array:
    terms = divergence.integrand(_log(q), _log(base))
    return jnp.sum(jnp.where(base > 0, base * terms, 0.0), axis=-1)


def _log(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)
