"""Losses of class scores at every pixel, one value per image."""

from jaxdiv.losses.segmentation.dice import dice as dice
from jaxdiv.losses.segmentation.pixel_cross_entropy import pixel_cross_entropy as pixel_cross_entropy
from jaxdiv.losses.segmentation.softmax_focal import softmax_focal as softmax_focal
