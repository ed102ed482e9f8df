r"""Energy distance between two samples.

    E_a(P, Q) = 2 E|X - Y|^a - E|X - X'|^a - E|Y - Y'|^a,   0 < a < 2

nonnegative, and 0 only if P = Q. The V-statistic is the distance of the empirical measures; the U-statistic
leaves out the pairs of a point with itself and is unbiased. Twice the squared maximum mean discrepancy of
`distance_kernel`.

References: Székely, Rizzo (2013), Energy statistics: a class of statistics based on distances.
"""

from jaxtyping import Array, Float

from jaxdiv.core.types import Numeric
from jaxdiv.divergences import pairwise


def energy_distance(
    x: Float[Array, "*b n d"],
    y: Float[Array, "*b m d"],
    *,
    exponent: Numeric = 1.0,
    unbiased: bool = False,
    x_weights: Float[Array, "*b n"] | None = None,
    y_weights: Float[Array, "*b m"] | None = None,
) -> Float[Array, "*b"]:
    """Energy distance, not square-rooted.

    Args:
        x: Points, [*b, n, d].
        y: Points, [*b, m, d].
        exponent: Power of the distances, in (0, 2).
        unbiased: Whether to take the U-statistic, which may be negative; needs two points per sample.
        x_weights: Nonnegative weights, [*b, n], normalized here; 0 = absent.
        y_weights: Weights of `y`, [*b, m].

    Returns:
        The energy distance, [*b].

    Raises:
        ValueError: If a sample is not floating or has the wrong rank, the two do not fit together,
            `unbiased` meets a sample of one point, or a concrete `exponent` leaves (0, 2).

    Note:
        The gradient between equal points is taken as 0. `scipy.stats.energy_distance` is the square
        root of this one.

    References:
        Székely, Rizzo (2013), Energy statistics: a class of statistics based on distances.

    Example:
        >>> import jax.numpy as jnp
        >>> float(energy_distance(jnp.array([[0.0]]), jnp.array([[1.0]])))
        2.0
    """
    x, u = pairwise.sample("x", x, x_weights)
    y, v = pairwise.sample("y", y, y_weights)
    pairwise.same_space("x", x, "y", y)
    within_x = pairwise.power_distances(x, exponent=exponent)
    within_y = pairwise.power_distances(y, exponent=exponent)
    across = pairwise.power_distances(x, y, exponent=exponent)
    return (
        2.0 * pairwise.mean_cross(across, u, v)
        - pairwise.mean_pair(within_x, u, distinct=unbiased, name="x")
        - pairwise.mean_pair(within_y, v, distinct=unbiased, name="y")
    )
