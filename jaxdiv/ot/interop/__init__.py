"""Other libraries' objects and calls: OTT's geometries and problems, POT's functions."""

from .ott import OttCost as OttCost
from .ott import from_ott as from_ott
from .ott import to_ott as to_ott
from .pot import sinkhorn as sinkhorn
from .pot import sinkhorn2 as sinkhorn2
from .pot_relaxed import entropic_partial_wasserstein as entropic_partial_wasserstein
from .pot_relaxed import sinkhorn_unbalanced as sinkhorn_unbalanced
from .pot_relaxed import sinkhorn_unbalanced2 as sinkhorn_unbalanced2
