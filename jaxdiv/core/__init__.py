"""Types, statuses, the solver loop, perturbations of pytrees and log-space numerics."""

from . import checks as checks
from .pytree import pytree_dataclass as pytree_dataclass
from .pytree import static_field as static_field
from .solver import Learner as Learner
from .solver import Progress as Progress
from .solver import Solution as Solution
from .solver import Solver as Solver
from .solver import run as run
from .status import RUNNING as RUNNING
from .status import Status as Status
from .status import raise_if_failed as raise_if_failed
from .types import Apply as Apply
from .types import Aux as Aux
from .types import Batch as Batch
from .types import Key as Key
from .types import LossFn as LossFn
from .types import Numeric as Numeric
from .types import Params as Params
from .types import Scalar as Scalar
from .types import State as State
