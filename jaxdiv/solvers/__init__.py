"""Deterministic solvers: roots, fixed points, smooth, proximal, primal-dual, constrained and blockwise; learners."""

from jaxdiv.solvers.anderson import Anderson as Anderson
from jaxdiv.solvers.block_cd import BlockCD as BlockCD
from jaxdiv.solvers.broyden import Broyden as Broyden
from jaxdiv.solvers.dynamic_regret import Regret as Regret
from jaxdiv.solvers.dynamic_regret import dynamic_regret as dynamic_regret
from jaxdiv.solvers.eal_newton import EALNewton as EALNewton
from jaxdiv.solvers.fista import Fista as Fista
from jaxdiv.solvers.fixed_point import FixedPoint as FixedPoint
from jaxdiv.solvers.gns_newton import GNSNewton as GNSNewton
from jaxdiv.solvers.gradient import Gradient as Gradient
from jaxdiv.solvers.lbfgs import LBFGS as LBFGS
from jaxdiv.solvers.least_squares import LeastSquares as LeastSquares
from jaxdiv.solvers.optimistic_omd import OptimisticOMD as OptimisticOMD
from jaxdiv.solvers.pdhg import PDHG as PDHG
from jaxdiv.solvers.root import Root as Root
from jaxdiv.solvers.tree_block import TreeBlock as TreeBlock
from jaxdiv.solvers.tree_block import tree_blocks as tree_blocks
from jaxdiv.solvers.tree_block import tree_solve as tree_solve
