"""Bilevel optimization: problems, hypergradients, and algorithms of the form (init, step)."""

from jaxdiv.bilevel.algorithm import Algorithm as Algorithm
from jaxdiv.bilevel.algorithm import BilevelState as BilevelState
from jaxdiv.bilevel.algorithm import Info as Info
from jaxdiv.bilevel.implicit_gradient import implicit_gradient as implicit_gradient
from jaxdiv.bilevel.make_step import Estimator as Estimator
from jaxdiv.bilevel.make_step import make_step as make_step
from jaxdiv.bilevel.problem import Data as Data
from jaxdiv.bilevel.problem import Problem as Problem
from jaxdiv.bilevel.problem import problem as problem
from jaxdiv.bilevel.sampler import full_batch as full_batch
from jaxdiv.bilevel.sampler import minibatches as minibatches
from jaxdiv.bilevel.soba import soba as soba
from jaxdiv.bilevel.unrolled import unrolled as unrolled
