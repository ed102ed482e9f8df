"""Optax transforms and schedules that optax lacks."""

from jaxdiv.transforms.cosine_power import cosine_power_schedule as cosine_power_schedule
