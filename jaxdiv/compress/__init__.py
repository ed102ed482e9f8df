"""Quantizers, pruning and masks."""

from jaxdiv.compress.lsq import lsq_quantize as lsq_quantize
from jaxdiv.compress.lsq import lsq_scale as lsq_scale
