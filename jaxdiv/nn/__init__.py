"""Flax nnx layers and heads, and the bridge from an nnx module to a pure function."""

from jaxdiv.nn.auxiliary_head import AuxiliaryHead as AuxiliaryHead
from jaxdiv.nn.functional import Functional as Functional
from jaxdiv.nn.functional import functional as functional
from jaxdiv.nn.mlp import MLP as MLP
