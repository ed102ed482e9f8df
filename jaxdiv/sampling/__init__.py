"""Sampling: which examples, and how many, make the next batch."""

from jaxdiv.sampling.sampler import Sampler as Sampler
from jaxdiv.sampling.shuffle import shuffle as shuffle
