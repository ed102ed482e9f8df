"""Optax transforms and schedules that optax lacks."""

from jaxdiv.transforms.adagrad_norm import scale_by_adagrad_norm as scale_by_adagrad_norm
from jaxdiv.transforms.cosine_power import cosine_power_schedule as cosine_power_schedule
from jaxdiv.transforms.freeze_by_gradient_disorder import (
    freeze_by_gradient_disorder as freeze_by_gradient_disorder,
)
from jaxdiv.transforms.mfac import scale_by_mfac as scale_by_mfac
