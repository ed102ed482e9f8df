r"""The Monge gap: how far a map is from transporting its own input optimally.

    M(T) = int c(x, T(x)) d rho(x) - W_c(rho, T#rho) >= 0

is 0 if and only if T is a c-optimal map from rho to T#rho. No density and no convex function is asked for, so
that it regularizes any map under any cost. Points x_i ~ rho of weights w_i and t_i = T(x_i) give

    M_epsilon = sum_i w_i c(x_i, t_i) - W_epsilon(sum_i w_i delta_{x_i}, sum_i w_i delta_{t_i}),

where W_epsilon is regularized by either of two entropies,

    "kl"        epsilon KL(P | w w^T)              M - epsilon H(w) <= M_epsilon <= M
    "entropy"   epsilon sum P log P                M + epsilon H(w) <= M_epsilon <= M + 2 epsilon H(w),

H(w) = -sum w log w, log n for equal weights. They differ by 2 epsilon H(w), which no map changes, and their
gradients are the same: those of the costs, with W_epsilon's plan held fixed.

References: Uscidda, Cuturi (2023), The Monge gap: a regularizer to learn all transport maps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks, pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cost, SqEuclidean
from jaxdiv.ot.newton import SinkhornNewton
from jaxdiv.ot.point_cloud import PointCloud
from jaxdiv.ot.sinkhorn import Sinkhorn
from jaxdiv.ot.solve import solve
from jaxdiv.ot.transport import Transport


@pytree_dataclass
class MongeGap:
    """A Monge gap and the transport that it is measured by; a pytree.

    Attributes:
        value: The gap, differentiable.
        transport: Transport from x to its images.
    """

    value: Float[Array, "*lanes"]
    transport: Transport

    @property
    def status(self) -> Int[Array, "*lanes"]:
        """How the transport was found, a `core.Status` code."""
        return self.transport.status

    @property
    def error(self) -> Float[Array, "*lanes"]:
        """The error of the transport."""
        return self.transport.error

    def raise_if_failed(self) -> "MongeGap":
        """Returns itself if the transport converged in every lane.

        Raises:
            RuntimeError: If it did not; the message names lanes and statuses.
            ValueError: If the status is traced.
        """
        self.transport.raise_if_failed()
        return self


def monge_gap(
    x: Float[Array, "n d"],
    tx: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    cost: Cost = SqEuclidean(),
    epsilon: Numeric | None = None,
    normalization: str = "kl",
    solver: Sinkhorn | SinkhornNewton | None = None,
) -> MongeGap:
    """The Monge gap of a map, estimated from points of the reference measure and their images.

    Args:
        x: Points of the reference measure, [n, d]: the data, or points of any other measure.
        tx: Their images T(x), [n, d].
        weights: Nonnegative weights of the points, [n], normalized here; 0 = absent.
        cost: The cost for which T should be optimal, as `PointCloud` takes it.
        epsilon: Strength of the entropy, a few hundredths of the mean cost; one that is too large makes the
            gap blind. 0.05 times the mean absolute cost between x and tx by default, as in `solve`.
        normalization: ``"kl"``, the value of `solve`, or ``"entropy"``, larger by 2 epsilon times the entropy
            of the weights and so always positive, as ott-jax has it.
        solver: As `solve` takes it.

    Returns:
        A `MongeGap`, with `value` for the loss and `status` for how it was found. A solver that stops early
        overestimates.

    Raises:
        ValueError: As `solve` does, or if x and tx do not match, or the normalization is unknown.

    References:
        Uscidda, Cuturi (2023), The Monge gap: a regularizer to learn all transport maps.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> round(float(monge_gap(x, 2 * x + 1, epsilon=1e-2).raise_if_failed().value), 2)
        -0.01
        >>> round(float(monge_gap(x, -x, epsilon=1e-2).value), 2)  # 4, and 0 by the best map
        3.99
    """
    checks.one_of("normalization", normalization, ("kl", "entropy"))
    cloud = PointCloud(x, tx, cost)
    if cloud.shape[0] != cloud.shape[1]:
        raise ValueError(f"tx must hold the image of each x; got shapes {jnp.shape(x)} and {jnp.shape(tx)}.")
    if weights is not None:
        weights = checks.floating("weights", weights)
        checks.in_range("weights", weights, 0.0, open_high=True)
        weights = weights / jnp.sum(weights)
    transport = solve(cloud, weights, weights, epsilon=epsilon, solver=solver)
    w = transport.problem.a
    value = jnp.vdot(w, jax.vmap(cloud.cost)(cloud.x, jnp.asarray(tx, cloud.dtype))) - transport.cost
    if normalization == "entropy":
        value = value + 2.0 * transport.problem.epsilon * jnp.sum(jax.scipy.special.entr(w))
    return MongeGap(value, transport)
