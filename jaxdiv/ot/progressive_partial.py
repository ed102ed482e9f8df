r"""Progressive partial transport (P²OT): the mass that fits clusters best, under a soft prior on their sizes.

Of N examples of weight 1/N a share rho goes to K clusters at costs C [N, K], usually ``-log p(k | x_i)``:

    min_Q  <C, Q> + gamma KL(Q^T 1 | rho pi)     Q >= 0,  Q1 <= 1/N,  1^T Q 1 = rho

A last column of cost 0, the slack, takes what is left, and makes this a transport problem with exact rows,

    columns  (rho pi_1, ..., rho pi_K, 1 - rho)      prices of leaving them  (gamma, ..., gamma, inf),

to which the entropy ``epsilon KL(P | a b^T)`` of P = (Q, slack) is added. For equal pi it differs from the
paper's ``epsilon sum P log P`` by a constant, as sum Q = rho; for others the entropy, too, pulls to the
prior. With rho = 1 the slack has weight 0 and is inert: gamma = inf is then balanced transport. N Q are the
paper's pseudo-labels, their row sums the confidence it learns them with, and rho grows to 1 in training.

References:
    Zhang, Ren, He (2024), P²OT: Progressive partial optimal transport for deep imbalanced clustering, sec. 4.
    Zhang, Ren, He (2024), SP²OT: Semantic-regularized progressive partial optimal transport for imbalanced
    clustering.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks, pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.ot.geometry import CostMatrix
from jaxdiv.ot.marginals import KL, Exact
from jaxdiv.ot.solve import solve
from jaxdiv.ot.transport import Transport


@pytree_dataclass
class PartialAssignment:
    """A solved partial assignment; a pytree, with leading axes under `jax.vmap`.

    Attributes:
        transport: The transport with the slack as its last column.
    """

    transport: Transport

    def plan(self) -> Float[Array, "*lanes N K"]:
        """Q, without the slack; differentiable as `Transport.plan` is."""
        return self.transport.plan()[..., :-1]

    def slack(self) -> Float[Array, "*lanes N"]:
        """What each example keeps of its 1/N."""
        return self.transport.plan()[..., -1]

    @property
    def cost(self) -> Float[Array, "*lanes"]:
        """The regularized value, differentiable."""
        return self.transport.cost

    @property
    def status(self) -> Int[Array, "*lanes"]:
        """How the solver ended, a `core.Status` code."""
        return self.transport.status

    @property
    def iterations(self) -> Int[Array, "*lanes"]:
        """Steps of the solver."""
        return self.transport.iterations

    @property
    def error(self) -> Float[Array, "*lanes"]:
        """L1 norm of the dual's derivative, a bound on how far the masses are from what they must be."""
        return self.transport.error

    def raise_if_failed(self) -> "PartialAssignment":
        """Returns itself if every lane converged; raises as `Transport.raise_if_failed`."""
        self.transport.raise_if_failed()
        return self


def progressive_partial(
    cost: Float[Array, "N K"],
    mass: Numeric,
    *,
    epsilon: Numeric = 0.1,
    strength: Numeric = 1.0,
    prior: Float[Array, " K"] | None = None,
    solver: Any = None,
) -> PartialAssignment:
    """Assigns a share of the examples to clusters whose sizes are roughly known.

    Args:
        cost: Costs [N, K], e.g. ``-jax.nn.log_softmax(logits)``.
        mass: Share rho of the examples that is assigned, in (0, 1].
        epsilon: Strength of the entropy; the paper's 0.1.
        strength: Price gamma of sizes other than the prior's, positive; the paper's 1. Infinity fixes them.
        prior: Sizes pi of the clusters [K], of sum 1; equal by default. An empty one stays empty.
        solver: Of the transport problem, as in `jaxdiv.ot.solve`. The default one holds the masses to 1e-4.

    Returns:
        A `PartialAssignment`. Traced arguments out of range end with status INFEASIBLE.

    Raises:
        ValueError: If shapes, dtypes or concrete values do not fit.

    Note:
        Scaling is slow here, since exact and soft columns pull against each other: hundreds of steps to an
        error of 1e-4. `jaxdiv.ot.SinkhornNewton` takes about ten to 1e-5, each of N K^2 multiplications.

    Example:
        >>> out = progressive_partial(jnp.array([[0.0, 4.0], [2.0, 2.0], [4.0, 0.0], [3.0, 1.0]]), 0.5)
        >>> (4 * out.plan()).round(2)
        Array([[1.  , 0.  ],
               [0.  , 0.  ],
               [0.  , 1.  ],
               [0.  , 0.01]], dtype=float32)
    """
    cost, columns = checked(cost, mass, strength)
    sizes = sizes_of(prior, cost.shape[1], cost.dtype)
    return PartialAssignment(with_slack(cost, mass, sizes, columns, epsilon, solver))


def checked(
    cost: Float[Array, "N K"], mass: Numeric, strength: Numeric
) -> tuple[Float[Array, "N K"], KL | Exact]:
    """The costs, and the penalty on the masses of clusters and slack."""
    cost = checks.floating("cost", cost)
    checks.rank("cost", cost, 2)
    checks.not_empty("cost", cost)
    checks.in_range("mass", mass, 0.0, 1.0, open_low=True)
    checks.in_range("strength", strength, 0.0, open_low=True)
    # Fixed sizes leave a constant between the potentials free, which exact marginals know of.
    if checks.concrete(strength) and np.isinf(strength):
        return cost, Exact()
    gamma = jnp.full((cost.shape[1],), strength, cost.dtype)
    return cost, KL(jnp.append(gamma, jnp.asarray(jnp.inf, cost.dtype)))


def with_slack(
    cost: Float[Array, "N K"],
    mass: Numeric,
    sizes: Float[Array, " K"],
    columns: KL | Exact,
    epsilon: Numeric,
    solver: Any,
    init: tuple[Float[Array, " N"], Float[Array, " K1"]] | None = None,
) -> Transport:
    """The transport to the clusters and the slack, from potentials `init`."""
    mass = jnp.asarray(mass, cost.dtype)
    extended = jnp.concatenate([cost, jnp.zeros((cost.shape[0], 1), cost.dtype)], axis=1)
    return solve(
        CostMatrix(extended),
        b=jnp.append(mass * sizes, 1.0 - mass),
        epsilon=epsilon,
        marginals=(Exact(), columns),
        solver=solver,
        init=init,
    )


def sizes_of(prior: Float[Array, " K"] | None, k: int, dtype: Any) -> Float[Array, " K"]:
    """The prior, checked; equal sizes for None."""
    if prior is None:
        return jnp.full((k,), 1.0 / k, dtype)
    prior = checks.floating("prior", prior)
    if prior.shape != (k,):
        raise ValueError(f"prior must have one size per cluster, shape ({k},); got {prior.shape}.")
    if checks.concrete(prior):
        total = float(jnp.sum(prior))
        # Written so that NaN fails too.
        if not (abs(total - 1.0) <= 1e-4 and bool(jnp.all(prior >= 0))):
            raise ValueError(f"prior must be nonnegative and sum to 1; got the sum {total:g}; normalize it.")
    return prior.astype(dtype)
