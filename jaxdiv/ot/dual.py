"""L-BFGS on the dual of regularized transport.

    max_{f, g}  <f, a> + <g, b> - sum_j Omega*(f + g_j - C_j)

with gradient (a - P1, b - P^T 1).

References:
    Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport.
    Liu, Puigcerver, Blondel (2023), Sparsity-constrained optimal transport.
"""

from jaxtyping import Array

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.ot import ascent
from jaxdiv.ot.smooth_problem import SmoothProblem, l1


@pytree_dataclass
class Dual:
    """L-BFGS on the dual; a `core.Solver` of problems with `Quadratic`, `TopK` or `GroupLasso`.

    Args:
        tol: Converged when ``|P1 - a|_1 + |P^T 1 - b|_1`` is at most `tol`.
        max_steps: Most steps; a step evaluates the dual once or a few times.
        memory: Past steps that the directions are made of. Many help at the kinks of `TopK`: as many as there
            are rows find the optimum of small problems to many digits.

    Raises:
        ValueError: If an option is out of its range.

    Note:
        Both masses are met only up to `tol`; `SemiDual`, where there is one, needs fewer steps. At the ties
        of `TopK` the marginal error does not go to 0: the run ends STALLED at the optimum.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdiv import ot
        >>> lasso = ot.GroupLasso(0.1, 0.1, jnp.array([0, 0, 1]))
        >>> out = ot.solve(ot.CostMatrix(1.0 - jnp.eye(3)), regularizer=lasso, solver=ot.Dual(tol=1e-5))
        >>> int(out.status)
        0
    """

    tol: Numeric = 1e-4
    max_steps: int = static_field(default=2000)
    memory: int = static_field(default=20)

    def __post_init__(self) -> None:
        checks.in_range("tol", self.tol, 0.0)
        checks.in_range("max_steps", self.max_steps, 1)
        checks.in_range("memory", self.memory, 1)

    def init(self, y0: tuple[Array, Array], problem: SmoothProblem) -> ascent.AscentState:
        """The first state, at potentials (f, g)."""
        return ascent.start(_evaluate(problem, y0), self.tol, self.memory)

    def step(self, state: ascent.AscentState, problem: SmoothProblem) -> ascent.AscentState:
        """One step of f and g."""
        return ascent.advance(lambda y: _evaluate(problem, y), state, self.tol, self.memory)


def _evaluate(problem: SmoothProblem, y: tuple[Array, Array]) -> ascent.Point:
    objective, masses = problem.evaluate(*y)
    gap = problem.gap(masses)
    return ascent.Point(y, y, l1(gap), objective, gap, problem.rounding(*y))
