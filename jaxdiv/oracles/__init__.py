"""Oracles: how a value and a gradient are obtained."""

from jaxdiv.oracles.adversarial import adversarial as adversarial
from jaxdiv.oracles.align import align as align
from jaxdiv.oracles.confidence_normalized import confidence_normalized as confidence_normalized
from jaxdiv.oracles.ignite import ignite as ignite
from jaxdiv.oracles.oracle import Evaluation as Evaluation
from jaxdiv.oracles.oracle import Oracle as Oracle
from jaxdiv.oracles.plain import plain as plain
from jaxdiv.oracles.sam import sam as sam
from jaxdiv.oracles.target_surrogate import target_surrogate as target_surrogate
from jaxdiv.oracles.tram import tram as tram
from jaxdiv.oracles.tram import tram_x as tram_x
from jaxdiv.oracles.udim import udim as udim
