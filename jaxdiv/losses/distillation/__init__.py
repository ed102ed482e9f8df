"""Losses of a student's logits against a teacher's."""

from .bd_kd import bd_kd_student as bd_kd_student
from .bd_kd import bd_kd_teacher as bd_kd_teacher
from .bd_kd import entropy_gap_weights as entropy_gap_weights
from .bd_kd import mirrored_entropy_gap_weights as mirrored_entropy_gap_weights
from .binary_kl import binary_kl as binary_kl
from .binary_kl_norm import binary_kl_norm as binary_kl_norm
from .dkd import dkd as dkd
from .kd import kd as kd
from .sinkhorn_kd import sinkhorn_kd as sinkhorn_kd
from .standardize_logits import standardize_logits as standardize_logits
from .trilateral_features import class_mean_predictions as class_mean_predictions
from .trilateral_features import trilateral_features as trilateral_features
