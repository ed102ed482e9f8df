r"""The variational bound of an f-divergence with a critic (f-GAN).

    D_f(P‖Q) >= E_P[T] - E_Q[f*(T)],    with equality at T = f'(P/Q)

A critic with an unbounded output v gives T = f'(exp(v)), which never leaves the domain of f*; v then
estimates the log-ratio, whatever the divergence, and `f*(T) = r f'(r) - f(r) = -g'(1/r)` with the
mirrored `g(r) = r f(1/r)`, so that the bound is `E_P[f'(e^v)] + E_Q[g'(e^-v)]`.

References:
    Nowozin, Cseke, Tomioka (2016), f-GAN, arXiv 1606.00709, eq. (4) and table 2.
"""

from typing import Literal

from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.divergences.f_divergence import FDivergence, weighted_mean


def variational_bound(
    divergence: FDivergence,
    critic_p: Float[Array, "*b n"],
    critic_q: Float[Array, "*b m"],
    *,
    output: Literal["log_ratio", "slope"] = "log_ratio",
    weights_p: Float[Array, "*b n"] | None = None,
    weights_q: Float[Array, "*b m"] | None = None,
) -> Float[Array, "*b"]:
    """Returns the bound on ``D_f(P‖Q)`` that a critic certifies on samples.

    The critic ascends it, the model whose samples are Q descends it.

    Args:
        divergence: The f-divergence.
        critic_p: Critic at samples of P, [*, n].
        critic_q: Critic at samples of Q, [*, m].
        output: "log_ratio" passes any real output through ``f'(exp(.))``; "slope" takes the output
            as T itself, where T above ``f'(inf)`` makes the bound -inf.
        weights_p: Nonnegative weights of the samples of P, [*, n]; equal by default.
        weights_q: The same for Q, [*, m].

    Returns:
        Bounds, [*]. With independent samples and a fixed critic an unbiased estimate of a lower bound.

    Raises:
        ValueError: If `output` is unknown, an input is not floating, or weights differ in shape.

    Example:
        >>> from jaxdiv import divergences
        >>> v = jnp.log(jnp.array([2.0, 0.5]))  # log P/Q of two points, P = (2/3, 1/3)
        >>> js = divergences.get("js2")
        >>> p, q = jnp.array([2.0, 1.0]) / 3, jnp.array([1.0, 2.0]) / 3
        >>> bound = variational_bound(js, v, v, weights_p=p, weights_q=q)
        >>> print(f"{bound:.5f} {js.on_logits(jnp.log(p), jnp.log(q)):.5f}")
        0.11327 0.11327
    """
    checks.one_of("output", output, ("log_ratio", "slope"))
    critic_p = checks.floating("critic_p", critic_p)
    critic_q = checks.floating("critic_q", critic_q)
    if output == "log_ratio":
        gain, price = divergence.f_prime(critic_p), -divergence.adjoint().f_prime(-critic_q)
    else:
        gain, price = critic_p, divergence.conjugate(critic_q)
    return weighted_mean(gain, weights_p) - weighted_mean(price, weights_q)
