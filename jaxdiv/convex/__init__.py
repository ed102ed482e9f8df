"""Norms with dual norm, linear minimization oracle and ball projection; projections onto convex sets."""

from jaxdiv.convex.box import project_box as project_box
from jaxdiv.convex.l1 import l1 as l1
from jaxdiv.convex.l1 import project_l1_ball as project_l1_ball
from jaxdiv.convex.l2 import l2 as l2
from jaxdiv.convex.l2 import project_l2_ball as project_l2_ball
from jaxdiv.convex.linf import linf as linf
from jaxdiv.convex.linf import project_linf_ball as project_linf_ball
from jaxdiv.convex.norm import Norm as Norm
from jaxdiv.convex.nuclear import nuclear as nuclear
from jaxdiv.convex.nuclear import project_nuclear_ball as project_nuclear_ball
from jaxdiv.convex.simplex import project_simplex as project_simplex
from jaxdiv.convex.spectral import project_spectral_ball as project_spectral_ball
from jaxdiv.convex.spectral import spectral as spectral
