"""Losses as pure functions: per-example [B] or, where no per-example value exists, a batch scalar."""

from .classification import brier as brier
from .classification import cross_entropy as cross_entropy
from .distillation import bd_kd_student as bd_kd_student
from .distillation import bd_kd_teacher as bd_kd_teacher
from .distillation import binary_kl as binary_kl
from .distillation import binary_kl_norm as binary_kl_norm
from .distillation import dkd as dkd
from .distillation import entropy_gap_weights as entropy_gap_weights
from .distillation import kd as kd
from .distillation import mirrored_entropy_gap_weights as mirrored_entropy_gap_weights
from .distillation import standardize_logits as standardize_logits
from .squared_error import squared_error as squared_error
