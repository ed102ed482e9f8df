"""Bilevel optimization: problems, hypergradients, and algorithms of the form (init, step)."""

from jaxdiv.bilevel.algorithm import Algorithm as Algorithm
from jaxdiv.bilevel.algorithm import BilevelState as BilevelState
from jaxdiv.bilevel.algorithm import Info as Info
from jaxdiv.bilevel.finite_difference import finite_difference as finite_difference
from jaxdiv.bilevel.first_order import first_order as first_order
from jaxdiv.bilevel.implicit_gradient import implicit_gradient as implicit_gradient
from jaxdiv.bilevel.make_step import Estimator as Estimator
from jaxdiv.bilevel.make_step import make_step as make_step
from jaxdiv.bilevel.one_step import one_step as one_step
from jaxdiv.bilevel.problem import Data as Data
from jaxdiv.bilevel.problem import Losses as Losses
from jaxdiv.bilevel.problem import Problem as Problem
from jaxdiv.bilevel.problem import problem as problem
from jaxdiv.bilevel.pzobo import pzobo as pzobo
from jaxdiv.bilevel.sampler import full_batch as full_batch
from jaxdiv.bilevel.sampler import minibatches as minibatches
from jaxdiv.bilevel.soba import soba as soba
from jaxdiv.bilevel.unrolled import unrolled as unrolled
from jaxdiv.bilevel.zeroth_order import zeroth_order as zeroth_order
