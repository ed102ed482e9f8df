"""Measurements of trained models: calibration, scores, disparities between groups."""

from jaxdiv.diagnostics.gn_smoothness import gn_smoothness as gn_smoothness
from jaxdiv.diagnostics.lion_lyapunov import LionLyapunov as LionLyapunov
from jaxdiv.diagnostics.lion_lyapunov import lion_lyapunov as lion_lyapunov

from .calibration import adaptive_ece as adaptive_ece
from .calibration import classwise_ece as classwise_ece
from .calibration import ece as ece
from .clustering_accuracy import clustering_accuracy as clustering_accuracy
from .gradient_noise import GradientNoise as GradientNoise
from .gradient_noise import gradient_noise as gradient_noise
from .group_jsd import GroupJSD as GroupJSD
from .group_jsd import group_jsd as group_jsd
from .scores import accuracy as accuracy
from .scores import agreement as agreement
from .scores import brier as brier
from .scores import nll as nll
from .scores import predictive_entropy as predictive_entropy
