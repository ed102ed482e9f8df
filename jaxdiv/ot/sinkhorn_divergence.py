r"""The Sinkhorn divergence: entropic transport without its bias.

    S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2 + epsilon/2 (m(a) - m(b))^2

with OT the value of `jaxdiv.ot.solve`, m the mass and one epsilon in all three terms. It lies between the
transport cost (epsilon to 0) and ``<C, a b^T - a a^T / 2 - b b^T / 2>``, half an energy distance (epsilon to
infinity). Where it is nonnegative, it is so by a sum of two parts. Let D be the dual of OT(a, b), p and q the
potentials of a and of b against themselves, u = a exp(p / epsilon) and v = b exp(q / epsilon). Then

    S(a, b) = [max D - D(p, q)] + epsilon/2 |u - v|_k^2,        k(x, y) = exp(-c(x, y) / epsilon),

and ``D(p, q) + epsilon/2 (m(a) - m(b))^2`` exceeds the duals of the two other terms by the second part at any
p and q whatever, solved or not. So the solver starts from (p, q), and D counts at the better of both ends:
no tolerance makes the value negative, provided that k is positive semidefinite.

References:
    Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré (2019), Interpolating between optimal transport and MMD
    using Sinkhorn divergences, theorem 1.
    Séjourné, Feydy, Vialard, Trouvé, Peyré (2019), Sinkhorn divergences for unbalanced optimal transport,
    eq. (15).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cost, SqEuclidean
from jaxdiv.ot.geometry import mean_cost
from jaxdiv.ot.marginals import Exact, Marginal
from jaxdiv.ot.measures import weights_of
from jaxdiv.ot.newton import SinkhornNewton
from jaxdiv.ot.point_cloud import PointCloud
from jaxdiv.ot.sinkhorn import Sinkhorn
from jaxdiv.ot.solve import EPSILON, solve
from jaxdiv.ot.transport import Transport

# Units of rounding, relative to the terms, by which the value may fall below 0 and still be 0.
_SLACK = 16


@pytree_dataclass
class Divergence:
    """A Sinkhorn divergence and the transport problems behind it; a pytree.

    Attributes:
        value: The divergence, differentiable.
        xy: Transport from x to y.
        xx: Transport of x to itself. Between exact marginals ``xy.f - xx.f`` is, up to a constant, the
            derivative of the value in the weights of x.
        yy: Transport of y to itself.
    """

    value: Float[Array, "*lanes"]
    xy: Transport
    xx: Transport
    yy: Transport

    @property
    def status(self) -> Int[Array, "*lanes"]:
        """The worst `core.Status` of the three; CONVERGED if all are."""
        return jnp.maximum(self.xy.status, jnp.maximum(self.xx.status, self.yy.status))

    @property
    def error(self) -> Float[Array, "*lanes"]:
        """The largest error of the three."""
        return jnp.maximum(self.xy.error, jnp.maximum(self.xx.error, self.yy.error))

    def raise_if_failed(self) -> "Divergence":
        """Returns itself if all three converged in every lane.

        Raises:
            RuntimeError: If one did not; the message names lanes and statuses.
            ValueError: If the status is traced.
        """
        for transport in (self.xy, self.xx, self.yy):
            transport.raise_if_failed()
        return self


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    cost: Cost = SqEuclidean(),
    epsilon: Numeric | None = None,
    marginals: Sequence[Marginal] = (Exact(), Exact()),
    solver: Sinkhorn | SinkhornNewton | None = None,
) -> Divergence:
    """The Sinkhorn divergence between weighted clouds of points.

    Args:
        x: Points, [n, d].
        y: Points, [m, d].
        a: Nonnegative weights of x, [n]; 1/n by default. A point of weight 0 takes no part.
        b: Weights of y, [m]; 1/m by default.
        cost: A symmetric cost between points, as `PointCloud` takes it.
        epsilon: Strength of the entropy in all three terms; by default 0.05 times the mean absolute cost
            between x and y under their weights, a constant in derivatives.
        marginals: How far masses may leave a and b, a penalty each; that of x holds on both sides of
            OT(a, a), that of y on both of OT(b, b).
        solver: For OT(a, b), as `solve` takes it. The other two terms take symmetric `Sinkhorn` steps, whose
            error halves in each, up to the same tolerance.

    Returns:
        A `Divergence`, with `value` for the loss and `status` for how it was found. The value is at least 0
        if the kernel exp(-cost / epsilon) is positive semidefinite, as for |x - y|^r with 0 < r <= 2, and 0
        at equal measures: a smaller one by no more than rounding comes back as 0, with its gradient. Other
        kernels may give negative values, which are kept.

    Raises:
        ValueError: As `solve` does, or if the solver is symmetric.

    Note:
        Rounding in float32 is a few 1e-7 of the mean cost, however close the clouds. An epsilon far beyond
        the costs loses digits: rounding then is a few 1e-7 epsilon.

    References:
        Feydy et al. (2019), Interpolating between optimal transport and MMD using Sinkhorn divergences.
        Séjourné et al. (2019), Sinkhorn divergences for unbalanced optimal transport.

    Example:
        >>> x = jnp.array([[0.0, 0.0], [1.0, 2.0]])
        >>> divergence = sinkhorn_divergence(x, x + 1.0).raise_if_failed()
        >>> print(f"{divergence.value:.2f}")
        2.00
        >>> gradient = jax.grad(lambda x, y: sinkhorn_divergence(x, y).value)(x, x)
    """
    cross, left, right = PointCloud(x, y, cost), PointCloud(x, cost=cost), PointCloud(y, cost=cost)
    n, m = cross.shape
    a = jnp.full((n,), 1.0 / n, cross.dtype) if a is None else weights_of("a", a, n).astype(cross.dtype)
    b = jnp.full((m,), 1.0 / m, cross.dtype) if b is None else weights_of("b", b, m).astype(cross.dtype)
    row, column = marginals
    symmetric = _symmetric(solver)
    mass_a, mass_b = jnp.sum(a), jnp.sum(b)
    unit = jax.lax.stop_gradient(mean_cost(cross, a, b))
    if epsilon is None:
        epsilon = EPSILON * jnp.where(unit > 0, unit, 1.0)

    xx = solve(left, a, a, epsilon=epsilon, marginals=(row, row), solver=symmetric)
    yy = solve(right, b, b, epsilon=epsilon, marginals=(column, column), solver=symmetric)
    p, q = xx.raw[0], yy.raw[0]
    xy = solve(cross, a, b, epsilon=epsilon, marginals=marginals, solver=solver, init=(p, q))
    start = jax.lax.stop_gradient(xy.problem.dual(p, q))
    transported = xy.cost + jnp.maximum(start - xy.dual, 0.0)

    strength = xy.problem.epsilon
    value = transported - 0.5 * (xx.cost + yy.cost) + 0.5 * strength * (mass_a - mass_b) ** 2
    terms = (unit + strength) * jnp.maximum(mass_a, mass_b) ** 2
    terms = terms + jnp.abs(xy.dual) + jnp.abs(xx.dual) + jnp.abs(yy.dual)
    rounded = (value < 0) & (value >= -_SLACK * jnp.finfo(value.dtype).eps * terms)
    # Only the number: its gradient is that of the value.
    value = value - jax.lax.stop_gradient(jnp.where(rounded, value, 0.0))
    return Divergence(value, xy, xx, yy)


def _symmetric(solver: Sinkhorn | SinkhornNewton | None) -> Sinkhorn:
    """The solver of the terms with f = g."""
    if solver is None:
        return Sinkhorn(symmetric=True)
    if isinstance(solver, SinkhornNewton):
        return Sinkhorn(tol=solver.tol, symmetric=True)
    if solver.symmetric:
        raise ValueError(
            "solver must not be symmetric, since x and y differ; the other two terms are anyway."
        )
    return dataclasses.replace(solver, symmetric=True, anneal=0, anderson=0)
