r"""Geometries and problems from and to OTT-JAX.

For exact marginals OTT states a problem as here, ``<C, P> + epsilon KL(P | a b^T)``; only the objects differ. Its
iterations for penalized ones, ``u = (a / K v)^tau`` with ``tau = rho / (rho + epsilon)``, are those of the entropy,

    min_P  <C, P> + epsilon sum P (log P - 1) + rho_a KL(P1 | a) + rho_b KL(P^T 1 | b),

which is a problem relative to ``a b^T`` with the cost ``C + epsilon log(a b^T)``.

References:
    Cuturi et al. (2022), Optimal transport tools (OTT): a JAX toolbox for all things Wasserstein.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiv.core import checks, pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.ot.costs import Cosine, Euclidean, NegDotProduct, SqEuclidean, block
from jaxdiv.ot.geometry import CostMatrix, Geometry
from jaxdiv.ot.grid import Grid
from jaxdiv.ot.marginals import KL, Exact
from jaxdiv.ot.point_cloud import PointCloud

# Costs by the names that both libraries give them.
_COSTS = {
    "SqEuclidean": SqEuclidean,
    "Euclidean": Euclidean,
    "Cosine": Cosine,
    "NegDotProduct": NegDotProduct,
}


@pytree_dataclass
class OttCost:
    """A cost of OTT, times a factor.

    Args:
        cost: A ``CostFn`` of OTT, or a cost of this package.
        factor: The factor.
    """

    cost: Any
    factor: Numeric = 1.0

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost of two points."""
        return self.factor * self.cost(x, y)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The block of costs between two clouds."""
        return self.factor * block(self.cost, x, y)


def from_ott(problem: Any) -> Any:
    """A geometry or a linear problem of OTT, for `solve`.

    Args:
        problem: An ``ott.geometry`` object, or an ``ott.problems.linear`` ``LinearProblem``.

    Returns:
        For a geometry, a `PointCloud`, `Grid` or `CostMatrix` of the same costs, scaled as they are; its
        epsilon is left behind. For a problem, the arguments of `solve`: ``solve(**from_ott(problem))`` has the
        plan that OTT finds. With penalized marginals the geometry is a cost matrix, as the module says.

    Raises:
        ValueError: If the geometry has neither points nor a cost matrix.

    Example:
        >>> from ott.geometry import pointcloud
        >>> from ott.problems.linear import linear_problem
        >>> cloud = pointcloud.PointCloud(jnp.ones((3, 2)), jnp.zeros((4, 2)), epsilon=0.1)
        >>> from_ott(cloud).shape
        (3, 4)
        >>> sorted(from_ott(linear_problem.LinearProblem(cloud, tau_a=0.9)))
        ['a', 'b', 'epsilon', 'geometry', 'marginals']
    """
    if not hasattr(problem, "geom"):
        return _geometry(problem)
    epsilon, a, b = problem.geom.epsilon, problem.a, problem.b
    taus = (problem.tau_a, problem.tau_b)
    ours = _geometry(problem.geom)
    if not all(tau == 1.0 for tau in taus):
        log_a, log_b = (jnp.log(jnp.where(w > 0, w, 1.0)) for w in (a, b))
        ours = CostMatrix(ours.cost_matrix() + epsilon * (log_a[:, None] + log_b))
    marginals = tuple(Exact() if tau == 1.0 else KL(epsilon * tau / (1.0 - tau)) for tau in taus)
    return {"geometry": ours, "a": a, "b": b, "epsilon": epsilon, "marginals": marginals}


def to_ott(geometry: Geometry, *, epsilon: Numeric | None = None) -> Any:
    """A geometry for OTT.

    Args:
        geometry: A `PointCloud`, `Grid` or `CostMatrix`.
        epsilon: OTT's geometries hold it; its default, 5% of the standard deviation of the costs, if None.

    Returns:
        ``ott.geometry``'s ``PointCloud`` or ``Grid`` where OTT has the cost under the same name, otherwise
        its ``Geometry`` of the whole cost matrix.

    Example:
        >>> to_ott(PointCloud(jnp.ones((3, 2))), epsilon=0.1).shape
        (3, 3)
    """
    from ott.geometry import costs, grid, pointcloud
    from ott.geometry import geometry as base

    names = {cls: name for name, cls in _COSTS.items()}
    if isinstance(geometry, PointCloud) and type(geometry.cost) in names:
        cost_fn = getattr(costs, names[type(geometry.cost)])()
        return pointcloud.PointCloud(geometry.x, geometry.y, cost_fn=cost_fn, epsilon=epsilon)
    if isinstance(geometry, Grid) and _shared(geometry):
        kinds = [type(cost) for cost in jax.tree.leaves(geometry.cost, is_leaf=callable)]
        if all(kind in names for kind in kinds):
            cost_fns = [getattr(costs, names[kind])() for kind in kinds]
            return grid.Grid(x=list(geometry.x), cost_fns=cost_fns, epsilon=epsilon)
    return base.Geometry(cost_matrix=geometry.cost_matrix(), epsilon=epsilon)


def _shared(geometry: Grid) -> bool:
    """Whether the two grids are one, as OTT's are."""
    assert geometry.y is not None
    pairs = list(zip(geometry.x, geometry.y, strict=True))
    return all(
        u is v or (checks.concrete(u) and checks.concrete(v) and np.array_equal(u, v)) for u, v in pairs
    )


def _geometry(geometry: Any) -> Geometry:
    from ott.geometry import grid, pointcloud

    if isinstance(geometry, pointcloud.PointCloud):
        return PointCloud(geometry.x, geometry.y, _cost(geometry.cost_fn, geometry.inv_scale_cost))
    if isinstance(geometry, grid.Grid):
        # OTT uses the last cost for all axes that follow.
        given = list(geometry.cost_fns)
        given += [given[-1]] * (len(geometry.x) - len(given))
        return Grid(tuple(geometry.x), cost=tuple(_cost(cost, 1.0) for cost in given))
    matrix = geometry.cost_matrix
    if matrix is None:
        raise ValueError(f"the geometry must have points or a cost matrix; got {type(geometry).__name__}.")
    return CostMatrix(matrix)


def _cost(cost: Any, factor: Numeric) -> Any:
    known = _COSTS.get(type(cost).__name__)
    ours = cost if known is None else known()
    if known is not None and checks.concrete(factor) and float(factor) == 1.0:
        return ours
    return OttCost(ours, factor)
