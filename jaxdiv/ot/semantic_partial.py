r"""Semantic-regularized progressive partial transport (SP²OT): similar examples share clusters.

To the objective F of `jaxdiv.ot.progressive_partial`, entropy included, comes a reward of similarity S
[N, N],

    min_Q  F(Q) - lambda <S, Q Q^T>,

concave in Q for positive semidefinite S. It lies below its tangent at the plan at hand, so that

    Q <- argmin_Q  F(Q) - lambda <(S + S^T) Q_k, Q>,

progressive partial transport at the costs ``C - lambda (S + S^T) Q_k``, never increases the objective
(majorization-minimization). It starts at the product of the marginals; each solve starts at the potentials
of the last. An indefinite S, such as similarities of nearest neighbors alone, has no such guarantee: a step
that increases the objective is not taken and ends the iteration.

References:
    Zhang, Ren, He (2024), SP²OT: Semantic-regularized progressive partial optimal transport for imbalanced
    clustering, sec. 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import RUNNING, Status, checks, pytree_dataclass, raise_if_failed, run
from jaxdiv.core.types import Numeric
from jaxdiv.ot.progressive_partial import checked, sizes_of, with_slack


@pytree_dataclass
class SemanticAssignment:
    """A partial assignment with similarities; a pytree, with leading axes under `jax.vmap`.

    Attributes:
        extended: The plan with the slack as its last column [N, K + 1].
        objectives: The objective at the start and after each step [max_steps + 1]; the last value goes on
            where the iteration ended early.
        status: How it ended, a `core.Status` code: CONVERGED where the objective settled, STALLED where a
            step would have increased it, and that of a transport that did not converge.
        iterations: Steps, each one transport.
        error: Relative change of the objective in the last step.
    """

    extended: Float[Array, "*lanes N K1"]
    objectives: Float[Array, "*lanes steps"]
    status: Int[Array, "*lanes"]
    iterations: Int[Array, "*lanes"]
    error: Float[Array, "*lanes"]

    def plan(self) -> Float[Array, "*lanes N K"]:
        """Q, without the slack."""
        return self.extended[..., :-1]

    def slack(self) -> Float[Array, "*lanes N"]:
        """What each example keeps of its 1/N."""
        return self.extended[..., -1]

    def raise_if_failed(self) -> "SemanticAssignment":
        """Returns itself if every lane converged; raises as `Transport.raise_if_failed`."""
        raise_if_failed(self.status, steps=self.iterations, error=self.error)
        return self


class _State(NamedTuple):
    """The plan with its slack, and the objective there and before."""

    value: Float[Array, "N K1"]
    error: Float[Array, ""]
    status: Int[Array, ""]
    potentials: tuple[Float[Array, " N"], Float[Array, " K1"]]
    objectives: Float[Array, " steps"]
    steps: Int[Array, ""]


@pytree_dataclass
class _MajorizeMinimize:
    """The `core.Solver`: one transport a step."""

    tol: Numeric
    inner: Any

    def init(self, objectives: Array, problem: tuple[Any, ...]) -> _State:
        """The product of the marginals."""
        cost, similarity, mass, weight, sizes, _, _ = problem
        n, k = cost.shape
        columns = jnp.append(mass * sizes, 1.0 - mass)
        plan = jnp.broadcast_to(columns / n, (n, k + 1))
        q = plan[:, :-1]
        objective = jnp.sum(q * (cost - weight * _product(similarity, q)))
        potentials = jnp.zeros(n, cost.dtype), jnp.zeros(k + 1, cost.dtype)
        inf, zero = jnp.full((), jnp.inf, cost.dtype), jnp.zeros((), jnp.int32)
        return _State(plan, inf, zero + RUNNING, potentials, objectives + objective, zero)

    def step(self, state: _State, problem: tuple[Any, ...]) -> _State:
        """Minimizes the majorizer at the plan; a worse or a failed one is not taken."""
        cost, similarity, mass, weight, sizes, columns, epsilon = problem
        reward = weight * _product(similarity, state.value[:, :-1])
        arguments = (mass, sizes, columns, epsilon, self.inner, state.potentials)
        out = with_slack(cost - 2.0 * reward, *arguments)
        plan = out.plan()
        q = plan[:, :-1]
        # The dual is the majorizer's least value up to the square of what the masses miss; the primal of a
        # plan that misses some is off by their first power.
        objective = out.dual + jnp.sum(q * (2.0 * reward - weight * _product(similarity, q)))
        before = state.objectives[-1]
        change = (objective - before) / jnp.maximum(1.0, jnp.abs(before))
        settled, risen = jnp.abs(change) <= self.tol, ~(change <= self.tol)
        failed = out.status != Status.CONVERGED
        status = jnp.where(settled, Status.CONVERGED, jnp.where(risen, Status.STALLED, RUNNING))
        new = _State(
            plan,
            jnp.abs(change).astype(cost.dtype),
            jnp.where(failed, out.status, status).astype(jnp.int32),
            out.raw,
            # From this step on.
            jnp.where(jnp.arange(state.objectives.size) > state.steps, objective, state.objectives),
            state.steps + 1,
        )
        kept = state._replace(status=new.status, error=new.error, steps=new.steps)
        return jax.tree.map(lambda old, x: jnp.where(failed | risen, old, x), kept, new)


def semantic_partial(
    cost: Float[Array, "N K"],
    similarity: Float[Array, "N N"],
    mass: Numeric,
    *,
    weight: Numeric = 1000.0,
    epsilon: Numeric = 0.1,
    strength: Numeric = 1.0,
    prior: Float[Array, " K"] | None = None,
    tol: Numeric = 1e-6,
    max_steps: int = 10,
    solver: Any = None,
) -> SemanticAssignment:
    """Assigns a share of the examples to clusters, similar ones to the same.

    Args:
        cost: Costs [N, K], e.g. ``-jax.nn.log_softmax(logits)``.
        similarity: S [N, N]; its symmetric part counts. The paper's are cosines of features, the 20 largest
            of each row.
        mass: Share rho of the examples that is assigned, in (0, 1].
        weight: Price lambda of similarity, at least 0. It meets plans with entries of 1/(N K): the paper
            takes 1000 (1 - rho) for N of 5,000.
        epsilon: Strength of the entropy; the paper's 0.1.
        strength: Price gamma of sizes other than the prior's, positive; the paper's 1. Infinity fixes them.
        prior: Sizes pi of the clusters [K], of sum 1; equal by default.
        tol: Converged when the objective changes by at most `tol` times the larger of 1 and itself.
        max_steps: Most steps, each one transport.
        solver: Of the transport problems, as in `jaxdiv.ot.solve`.

    Returns:
        A `SemanticAssignment`: labels to learn from, without derivatives.

    Raises:
        ValueError: If shapes, dtypes or concrete values do not fit.

    Example:
        >>> cost = jnp.array([[0.0, 3.0], [1.0, 1.1], [3.0, 0.0], [1.1, 1.0]])
        >>> same = jnp.array([[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
        >>> out = semantic_partial(cost, same, 0.9, weight=10.0)
        >>> jnp.argmax(out.plan(), axis=1)
        Array([0, 1, 1, 0], dtype=int32)
    """
    cost, columns = checked(cost, mass, strength)
    n, k = cost.shape
    similarity = checks.floating("similarity", similarity).astype(cost.dtype)
    if similarity.shape != (n, n):
        raise ValueError(
            f"similarity must have shape {(n, n)} for costs {cost.shape}; got {similarity.shape}."
        )
    checks.in_range("weight", weight, 0.0)
    checks.in_range("tol", tol, 0.0)
    checks.in_range("max_steps", max_steps, 1)
    mass, weight, epsilon = (jnp.asarray(x, cost.dtype) for x in (mass, weight, epsilon))
    sizes = sizes_of(prior, k, cost.dtype)
    problem = (cost, (similarity + similarity.T) / 2, mass, weight, sizes, columns, epsilon)
    out = run(
        _MajorizeMinimize(tol, solver),
        jnp.zeros(max_steps + 1, cost.dtype),
        jax.lax.stop_gradient(problem),
        max_steps=max_steps,
    )
    return SemanticAssignment(out.value, out.state.objectives, out.status, out.steps, out.error)


def _product(similarity: Float[Array, "N N"], q: Float[Array, "N K"]) -> Float[Array, "N K"]:
    return jnp.matmul(similarity, q, precision=jax.lax.Precision.HIGHEST)
