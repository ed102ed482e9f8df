"""Roots, fixed points and their derivatives, apart from the solver that found them."""

from jaxdiv.implicit.adjoint import Adjoint as Adjoint
from jaxdiv.implicit.adjoint import root_jvp as root_jvp
from jaxdiv.implicit.adjoint import root_vjp as root_vjp
from jaxdiv.implicit.custom_root import custom_fixed_point as custom_fixed_point
from jaxdiv.implicit.custom_root import custom_root as custom_root
from jaxdiv.implicit.error_bound import ErrorBound as ErrorBound
from jaxdiv.implicit.error_bound import error_bound as error_bound
from jaxdiv.implicit.fixed_points import block_proximal_gradient as block_proximal_gradient
from jaxdiv.implicit.fixed_points import mirror_descent as mirror_descent
from jaxdiv.implicit.fixed_points import projected_gradient as projected_gradient
from jaxdiv.implicit.fixed_points import proximal_gradient as proximal_gradient
from jaxdiv.implicit.optimality import KKT as KKT
from jaxdiv.implicit.optimality import conic_residual as conic_residual
from jaxdiv.implicit.optimality import kkt as kkt
from jaxdiv.implicit.optimality import newton as newton
from jaxdiv.implicit.optimality import stationarity as stationarity
from jaxdiv.implicit.run import run as run
