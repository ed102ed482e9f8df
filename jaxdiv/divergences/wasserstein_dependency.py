r"""The Wasserstein dependency measure that a critic certifies, from its scores on a sample of pairs.

    I_W(X; Y) = W_1(p(x, y), p(x) p(y)) = sup { E_{p(x, y)} f - E_{p(x) p(y)} f : f is 1-Lipschitz }

in a metric on pairs (x, y), Euclidean for critics with gradients of length 1 at most. Unlike mutual
information it is finite for deterministic relations, grows in proportion with the unit of the data, and an
estimate from N pairs has no bound such as log N. With the scores `f_ij = f(x_i, y_j)` and weights u that
sum to 1, the critic's value is

    all pairs          Σ_i u_i f_ii - Σ_ij u_i u_j f_ij                     of the empirical measures
    distinct pairs     Σ_{i≠j} u_i u_j (f_ii - f_ij) / Σ_{i≠j} u_i u_j     unbiased

and the first is the second times `1 - Σ_i u_i²`, i.e. `1 - 1/n`.

References:
    Ozair, Lynch, Bengio, van den Oord, Levine, Sermanet (2019), Wasserstein Dependency Measure for
    Representation Learning.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.divergences import pairwise


def wasserstein_dependency(
    scores: Float[Array, "*b n n"],
    *,
    unbiased: bool = False,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b"]:
    """The dual value of a critic; a lower bound on the dependency measure if it is 1-Lipschitz.

    Args:
        scores: The critic at x_i (rows) and y_j (columns), [*b, n, n], the true pairs on the diagonal.
        unbiased: Whether to leave true pairs out of the product measure; needs two pairs. Otherwise the
            empirical measures are compared, and the value shrinks by 1 - 1/n.
        weights: Nonnegative weights of the pairs, [*b, n], normalized here; 0 is an absent pair, whose row
            and column may hold anything.

    Returns:
        The values, [*b], of any sign. Linear in the scores; terms of x alone or of y alone do not matter.

    Raises:
        ValueError: If the scores are not floating or not square, the weights do not fit, or `unbiased`
            meets a single pair.

    Note:
        Without a bound on the critic's slope the supremum is infinite: train it with
        `jaxdiv.losses.gradient_penalty` of all its inputs, or with Lipschitz layers.

    References:
        Ozair et al. (2019), Wasserstein Dependency Measure for Representation Learning.

    Example:
        >>> x = jnp.arange(6.0) / 6  # y = x: the best critic of the metric |x - x'| + |y - y'| is -|x - y|
        >>> round(float(wasserstein_dependency(-abs(x[:, None] - x))), 4)
        0.3241
    """
    scores, u = pairwise.sample("scores", scores, weights)
    if scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be square in their last two axes; got shape {scores.shape}.")
    if weights is not None:
        scores = jnp.where(u[..., None, :] > 0, scores, 0.0)
    # The difference to the true pair first: a large common offset costs no digits.
    gaps = jnp.diagonal(scores, axis1=-2, axis2=-1)[..., None] - scores
    return pairwise.mean_pair(gaps, u, distinct=unbiased, name="scores")
