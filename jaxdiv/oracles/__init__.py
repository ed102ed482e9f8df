"""Oracles: how a value and a gradient are obtained."""

from jaxdiv.oracles.adversarial import adversarial as adversarial
from jaxdiv.oracles.align import align as align
from jaxdiv.oracles.oracle import Evaluation as Evaluation
from jaxdiv.oracles.oracle import Oracle as Oracle
from jaxdiv.oracles.plain import plain as plain
from jaxdiv.oracles.sam import sam as sam
