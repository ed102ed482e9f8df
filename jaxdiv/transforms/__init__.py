"""Optax transforms and schedules that optax lacks."""

from optax import add_noise as add_noise

from jaxdiv.transforms.adagrad_norm import scale_by_adagrad_norm as scale_by_adagrad_norm
from jaxdiv.transforms.adan import adan as adan
from jaxdiv.transforms.adan import scale_by_adan as scale_by_adan
from jaxdiv.transforms.clip_by_quantile import clip_by_quantile as clip_by_quantile
from jaxdiv.transforms.cosine_power import cosine_power_schedule as cosine_power_schedule
from jaxdiv.transforms.freeze_by_gradient_disorder import (
    freeze_by_gradient_disorder as freeze_by_gradient_disorder,
)
from jaxdiv.transforms.kappa import Kappa as Kappa
from jaxdiv.transforms.kappa import ball_kappa as ball_kappa
from jaxdiv.transforms.kappa import dead_zone_kappa as dead_zone_kappa
from jaxdiv.transforms.kappa import huber_kappa as huber_kappa
from jaxdiv.transforms.kappa import lp_kappa as lp_kappa
from jaxdiv.transforms.kappa import pseudo_huber_kappa as pseudo_huber_kappa
from jaxdiv.transforms.lion_k import lion_k as lion_k
from jaxdiv.transforms.lion_k import scale_by_lion_k as scale_by_lion_k
from jaxdiv.transforms.lmo import LMO as LMO
from jaxdiv.transforms.lmo import Ball as Ball
from jaxdiv.transforms.lmo import newton_schulz as newton_schulz
from jaxdiv.transforms.lmo import rms_operator as rms_operator
from jaxdiv.transforms.mfac import scale_by_mfac as scale_by_mfac
from jaxdiv.transforms.mup import MuPScaling as MuPScaling
from jaxdiv.transforms.mup import mup_scaling as mup_scaling
from jaxdiv.transforms.mup import scale_by_mup as scale_by_mup
from jaxdiv.transforms.noise_adaptive_lmo import scale_by_noise_adaptive_lmo as scale_by_noise_adaptive_lmo
from jaxdiv.transforms.perp_grad import perp_grad as perp_grad
from jaxdiv.transforms.powerprop import powerprop as powerprop
from jaxdiv.transforms.powerprop import scale_by_powerprop as scale_by_powerprop
from jaxdiv.transforms.proximal_weight_decay import add_proximal_weight_decay as add_proximal_weight_decay
