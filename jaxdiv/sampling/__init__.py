"""Sampling: which examples, and how many, make the next batch."""

from jaxdiv.sampling.batch_controller import batch_controller as batch_controller
from jaxdiv.sampling.batch_controller import requested_batch_size as requested_batch_size
from jaxdiv.sampling.hard_minibatches import hard_minibatches as hard_minibatches
from jaxdiv.sampling.sampler import Sampler as Sampler
from jaxdiv.sampling.shuffle import shuffle as shuffle
from jaxdiv.sampling.useful import useful_repeats as useful_repeats
