"""Losses of logits against labels or distributions."""

from .brier import brier as brier
from .cross_entropy import cross_entropy as cross_entropy
from .stablemax import log_stablemax as log_stablemax
from .stablemax import stablemax as stablemax
from .stablemax import stablemax_cross_entropy as stablemax_cross_entropy
