"""Losses of scores between paired examples."""

from .wpc import wpc as wpc
