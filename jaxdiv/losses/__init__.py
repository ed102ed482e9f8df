"""Losses as pure functions: per-example [B] or, where no per-example value exists, a batch scalar."""

from .classification import brier as brier
from .classification import cross_entropy as cross_entropy
from .classification import log_stablemax as log_stablemax
from .classification import stablemax as stablemax
from .classification import stablemax_cross_entropy as stablemax_cross_entropy
from .clustering import depict_targets as depict_targets
from .contrastive import wpc as wpc
from .distillation import bd_kd_student as bd_kd_student
from .distillation import bd_kd_teacher as bd_kd_teacher
from .distillation import binary_kl as binary_kl
from .distillation import binary_kl_norm as binary_kl_norm
from .distillation import class_mean_predictions as class_mean_predictions
from .distillation import dkd as dkd
from .distillation import entropy_gap_weights as entropy_gap_weights
from .distillation import kd as kd
from .distillation import mirrored_entropy_gap_weights as mirrored_entropy_gap_weights
from .distillation import sinkhorn_kd as sinkhorn_kd
from .distillation import standardize_logits as standardize_logits
from .distillation import trilateral_features as trilateral_features
from .gradient_penalty import gradient_penalty as gradient_penalty
from .gradient_penalty import random_interpolates as random_interpolates
from .gradient_variance_gap import gradient_variance_gap as gradient_variance_gap
from .segmentation import dice as dice
from .segmentation import pixel_cross_entropy as pixel_cross_entropy
from .segmentation import softmax_focal as softmax_focal
from .squared_error import squared_error as squared_error
