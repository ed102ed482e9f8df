"""Objectives: losses with memory, chained from links as optax chains transforms."""

from jaxdiv.objectives.chain import Objective as Objective
from jaxdiv.objectives.chain import chain as chain
from jaxdiv.objectives.cs_ib import cs_ib as cs_ib
from jaxdiv.objectives.depict import depict as depict
from jaxdiv.objectives.depict import layer_reconstruction as layer_reconstruction
from jaxdiv.objectives.forward import forward as forward
from jaxdiv.objectives.loss import batch_loss as batch_loss
from jaxdiv.objectives.loss import feature_regularizer as feature_regularizer
from jaxdiv.objectives.loss import loss as loss
from jaxdiv.objectives.loss import parameter_regularizer as parameter_regularizer
from jaxdiv.objectives.metric import metric as metric
from jaxdiv.objectives.mixup import mixup as mixup
from jaxdiv.objectives.ps_kd import ps_kd as ps_kd
from jaxdiv.objectives.record import Link as Link
from jaxdiv.objectives.record import Record as Record
from jaxdiv.objectives.record import from_batch as from_batch
from jaxdiv.objectives.record import select as select
from jaxdiv.objectives.record import stateless as stateless
from jaxdiv.objectives.record import take_losses as take_losses
from jaxdiv.objectives.reduction import cvar as cvar
from jaxdiv.objectives.reduction import kl_dro as kl_dro
from jaxdiv.objectives.reduction import mean as mean
from jaxdiv.objectives.reweight import reweight as reweight
from jaxdiv.objectives.smooth_labels import smooth_labels as smooth_labels
from jaxdiv.objectives.teacher import teacher as teacher
