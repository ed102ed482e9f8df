"""jaxdiv: pure, composable JAX pieces for training models by minimizing divergences.

Rooms load on first access, so ``import jaxdiv`` costs nothing:

>>> import jaxdiv
>>> jaxdiv.divergences.get("kl").name
'kl'
"""

import importlib
from types import ModuleType

from jaxdiv.version import __version__ as __version__

# Top to bottom: a room imports only rooms that stand after it.
ROOMS = (
    "train",
    "bilevel",
    "oracles",
    "objectives",
    "sampling",
    "adversarial",
    "diagnostics",
    "transforms",
    "compress",
    "losses",
    "nn",
    "solvers",
    "divergences",
    "ot",
    "convex",
    "implicit",
    "linalg",
    "core",
)


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS or name == "testing":
        return importlib.import_module(f"jaxdiv.{name}")
    raise AttributeError(f"module 'jaxdiv' has no attribute {name!r}; its rooms are {', '.join(ROOMS)}")


def __dir__() -> list[str]:
    return [*ROOMS, "testing", "__version__"]
