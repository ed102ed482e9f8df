"""Deterministic solvers: roots, fixed points, least squares, smooth, proximal and primal-dual minimization."""

from jaxdiv.solvers.anderson import Anderson as Anderson
from jaxdiv.solvers.broyden import Broyden as Broyden
from jaxdiv.solvers.fista import Fista as Fista
from jaxdiv.solvers.fixed_point import FixedPoint as FixedPoint
from jaxdiv.solvers.gradient import Gradient as Gradient
from jaxdiv.solvers.lbfgs import LBFGS as LBFGS
from jaxdiv.solvers.least_squares import LeastSquares as LeastSquares
from jaxdiv.solvers.pdhg import PDHG as PDHG
from jaxdiv.solvers.root import Root as Root
