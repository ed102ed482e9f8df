"""Types that flow between the rooms.

The corridor of a training step is ``batch -> objective -> oracle -> optax transform -> params``.
`LossFn` is what an objective offers to an oracle, `Aux` what it reports beside its value.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypedDict

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Params: TypeAlias = PyTree
State: TypeAlias = PyTree
Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
Numeric: TypeAlias = float | Scalar
"""A numeric option: a Python number or a traced scalar."""

Batch: TypeAlias = Mapping[str, PyTree]
"""``"inputs"``, ``"targets"``; optional ``"index"`` [B] int32 and ``"weights"`` [B]; other keys are extras.

Every entry has one row per example, but ``"shared"``: what belongs to the whole batch, such as another
player's parameters, stands there and is never gathered, chunked or permuted.
"""


class Aux(TypedDict):
    """What a loss reports beside its value.

    Attributes:
        terms: Named scalars that sum to the value; differentiable.
        losses: Named per-example losses, each [B].
        metrics: Named scalars that are reported and not minimized.
    """

    terms: dict[str, Scalar]
    losses: dict[str, Float[Array, " B"]]
    metrics: dict[str, Array]


LossFn: TypeAlias = Callable[[Params, State, Batch, Key], tuple[Scalar, tuple[State, Aux]]]
"""``(params, state, batch, key) -> (value, (state, aux))``: exactly ``Objective.apply``."""

Apply: TypeAlias = Callable[[Params, State, Any, Key | None], tuple[PyTree, State]]
"""The model: ``(params, model_state, inputs, key) -> (outputs, model_state)``; ``key=None`` is evaluation."""
