r"""Monte Carlo estimates of an f-divergence from samples with known log-densities.

    samples of Q:   D_f = E_Q[f(r)]              samples of P:   D_f = E_P[f(r) / r]

with the centered f, `f(r) - f'(1) (r - 1)`: the added term has mean zero, makes each summand nonnegative
and is the control variate that turns `-log r` into `r - 1 - log r`.

References:
    Schulman (2020), Approximating KL divergence.
"""

from typing import Literal

from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.divergences.f_divergence import FDivergence, weighted_mean


def from_samples(
    divergence: FDivergence,
    log_p: Float[Array, "*b n"],
    log_q: Float[Array, "*b n"],
    *,
    sampled_from: Literal["p", "q"] = "q",
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """Returns an estimate of ``D_f(P‖Q)`` from log-densities at samples.

    Args:
        divergence: The f-divergence.
        log_p: Normalized log-density of P at the samples, [*, n]; -inf outside its support.
        log_q: The same of Q.
        sampled_from: Which distribution drew the samples.
        weights: Nonnegative weights, [*, n], equal by default. 0 removes a sample; with all points of a
            finite space and their probabilities as weights the result is exact.

    Returns:
        Estimates, [*]: unbiased if the distribution sampled from covers the other and the weights do
        not depend on the samples, and never negative. Normalized importance weights make it consistent.

    Raises:
        ValueError: If shapes differ, an input is not floating, or `sampled_from` is unknown.

    Note:
        The gradient is that of the summands at fixed samples. For a P or Q that is learned and was
        sampled from, add the score term, or use `FDivergence.pseudo_reward` as its reward.

    Example:
        >>> from jaxdiv import divergences
        >>> p, q = jnp.array([0.7, 0.3]), jnp.array([0.4, 0.6])
        >>> kl = divergences.get("kl")
        >>> exact = kl.on_logits(jnp.log(p), jnp.log(q))
        >>> print(f"{exact:.4f} {from_samples(kl, jnp.log(p), jnp.log(q), weights=q):.4f}")
        0.1838 0.1838
    """
    checks.one_of("sampled_from", sampled_from, ("p", "q"))
    log_p, log_q = checks.floating("log_p", log_p), checks.floating("log_q", log_q)
    checks.same_shape(log_p=log_p, log_q=log_q)
    if sampled_from == "p":
        divergence, log_p, log_q = divergence.adjoint(), log_q, log_p
    return weighted_mean(divergence.integrand(log_p, log_q), weights)
