"""The table of f-divergences by name."""

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.divergences.alpha import alpha_divergence
from jaxdiv.divergences.f_divergence import FDivergence
from jaxdiv.divergences.generators import PLAIN
from jaxdiv.divergences.skewed import skewed_js, skewed_kl, skewed_reverse_kl

_PARAMETRIC = {
    "alpha": alpha_divergence,
    "skewed_js": skewed_js,
    "skewed_kl": skewed_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
}

NAMES = (*PLAIN, *_PARAMETRIC)
"""The names `get` knows."""


def get(name: str, **options: Numeric) -> FDivergence:
    """Returns the f-divergence of that name.

    Args:
        name: "kl", "reverse_kl", "js", "js2" (twice js), "jeffreys", "softened_reverse_kl",
            "softened_kl", "squared_hellinger", "tv", "pearson_chi2", "neyman_chi2", "le_cam"; with the
            option ``alpha``: "alpha", "skewed_kl", "skewed_reverse_kl", "skewed_js".
        **options: Options of the last four; they may be traced.

    Returns:
        The divergence ``D_f(P‖Q)``.

    Raises:
        ValueError: If the name is unknown, or an option is one the divergence does not have.

    Example:
        >>> get("js").on_logits(jnp.array([0.0, -1e4]), jnp.array([-1e4, 0.0])).round(4)
        Array(0.6931, dtype=float32)
        >>> get("skewed_kl", alpha=0.2).options
        (0.2,)
    """
    checks.one_of("name", name, NAMES)
    for option in options:
        checks.one_of(f"the option of {name}", option, ("alpha",) if name in _PARAMETRIC else ())
    return _PARAMETRIC[name](**options) if name in _PARAMETRIC else PLAIN[name]
