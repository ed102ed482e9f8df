"""Norms with dual norm, linear minimization oracle and ball projection; projections; proximal operators."""

from jaxdiv.convex.affine import project_affine as project_affine
from jaxdiv.convex.box import project_box as project_box
from jaxdiv.convex.box_section import project_box_section as project_box_section
from jaxdiv.convex.halfspace import project_halfspace as project_halfspace
from jaxdiv.convex.hyperplane import project_hyperplane as project_hyperplane
from jaxdiv.convex.l1 import l1 as l1
from jaxdiv.convex.l1 import project_l1_ball as project_l1_ball
from jaxdiv.convex.l2 import l2 as l2
from jaxdiv.convex.l2 import project_l2_ball as project_l2_ball
from jaxdiv.convex.linf import linf as linf
from jaxdiv.convex.linf import project_linf_ball as project_linf_ball
from jaxdiv.convex.norm import Norm as Norm
from jaxdiv.convex.nuclear import nuclear as nuclear
from jaxdiv.convex.nuclear import project_nuclear_ball as project_nuclear_ball
from jaxdiv.convex.prox_elastic_net import prox_elastic_net as prox_elastic_net
from jaxdiv.convex.prox_group_lasso import prox_group_lasso as prox_group_lasso
from jaxdiv.convex.prox_l1 import prox_l1 as prox_l1
from jaxdiv.convex.prox_nuclear import prox_nuclear as prox_nuclear
from jaxdiv.convex.prox_tv import prox_tv as prox_tv
from jaxdiv.convex.simplex import project_simplex as project_simplex
from jaxdiv.convex.spectral import project_spectral_ball as project_spectral_ball
from jaxdiv.convex.spectral import spectral as spectral
