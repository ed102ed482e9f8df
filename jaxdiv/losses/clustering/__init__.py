"""Targets and losses of deep clustering."""

from .depict_targets import depict_targets as depict_targets
