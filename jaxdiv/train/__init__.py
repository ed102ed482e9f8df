"""Training: compose a step, run it, save it."""

from jaxdiv.train.alternate import alternate as alternate
from jaxdiv.train.checkpoint import Checkpoints as Checkpoints
from jaxdiv.train.fit import Fit as Fit
from jaxdiv.train.fit import NonFiniteError as NonFiniteError
from jaxdiv.train.fit import fit as fit
from jaxdiv.train.step import TrainState as TrainState
from jaxdiv.train.step import make_step as make_step
