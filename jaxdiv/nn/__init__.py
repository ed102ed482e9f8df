"""Flax nnx layers and heads, and the bridge from an nnx module to a pure function."""

from .auxiliary_head import AuxiliaryHead as AuxiliaryHead
from .compander import Compander as Compander
from .compander import compander as compander
from .corrupted_autoencoder import CorruptedAutoencoder as CorruptedAutoencoder
from .functional import Functional as Functional
from .functional import functional as functional
from .hyper_conv import HyperConv as HyperConv
from .hyper_dense import HyperDense as HyperDense
from .mlp import MLP as MLP
from .mup_mlp import MuMLP as MuMLP
from .sharp_sep_conv import SharpSepConv as SharpSepConv
