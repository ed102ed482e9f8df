"""Losses of logits against labels or distributions."""

from .brier import brier as brier
from .cross_entropy import cross_entropy as cross_entropy
