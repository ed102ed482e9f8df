"""Uncertainty weighting: the weights of several terms are learned with the network.

    Σ_k  L_k / (2 max(s_k², floor)) + log(1 + s_k²)

over the named terms L_k with a learned s_k each. For a fixed L_k > 0 the stationary point has 2 s⁴ = L (1 + s²),

    s_k² = (L_k + sqrt(L_k² + 8 L_k)) / 4,

so that larger terms weigh less. Without the floor the sum has no lower bound once a term is negative (the negative
Dice overlap of the original, L_k >= -1: s_k -> 0 gives -∞), and 0/0 at s_k = 0; the floor bounds the weights by
1 / (2 floor), and leaves the stationary point where it is for every L_k >= 2 floor². Terms should still be >= 0.

References:
    Tsai, Lin, Hu, Chang, Zhu, Wang (2024), UU-Mamba: Uncertainty-aware U-Mamba for Cardiovascular Segmentation.
    Kendall, Gal, Cipolla (2018), Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params
from jaxdiv.objectives.record import Link, Record, add_term, stateless


def uncertainty_weighting(
    *terms: str,
    where: Callable[[Params], Float[Array, " k"]],
    floor: Numeric = 1e-2,
    name: str = "uncertainty",
) -> Link:
    """Divides each of the named terms by twice its learned variance and adds what keeps the variances small.

    Args:
        *terms: Names of the terms, e.g. ``"dice", "ce", "focal"``.
        where: Picks the learned s [k], one for each term in their order, from the chain's parameters. Start them at 1
            and leave them out of weight decay.
        floor: Least s², positive.
        name: Name of the term Σ log(1 + s²).

    Returns:
        A stateless link; it stands after the reduction.

    Raises:
        ValueError: If no term is given or one is missing, there is not one s for each, the name is taken, or the floor
            is not positive.

    References:
        Tsai et al. (2024).

    Example:
        >>> from jaxdiv import losses, objectives
        >>> objective = objectives.chain(
        ...     objectives.forward(lambda params, state, x, key: (x @ params["w"], state)),
        ...     objectives.loss(losses.cross_entropy, name="ce"),
        ...     objectives.loss(losses.brier, name="brier"),
        ...     objectives.mean(),
        ...     objectives.uncertainty_weighting("ce", "brier", where=lambda params: params["s"]),
        ... )
    """
    if not terms:
        raise ValueError("uncertainty_weighting must get the name of at least one term; got none.")
    checks.in_range("floor", floor, 0.0, open_low=True, open_high=True)

    def update(params: Params, record: Record, key: Key | None) -> Record:
        missing = [term for term in terms if term not in record.terms]
        if missing:
            raise ValueError(
                f"link uncertainty_weighting needs the terms {list(terms)}; the record holds "
                f"{sorted(record.terms)}; put objectives.loss(..., name={missing[0]!r}) and a reduction before it."
            )
        s = checks.floating("link uncertainty_weighting: s", where(params))
        if s.shape != (len(terms),):
            raise ValueError(
                f"link uncertainty_weighting needs one s for each term, shape {(len(terms),)}; got {s.shape}."
            )
        weights = 0.5 / jnp.maximum(s**2, floor)
        weighted = {term: weights[k] * record.terms[term] for k, term in enumerate(terms)}
        record = record._replace(terms={**record.terms, **weighted})
        return add_term("uncertainty_weighting", record, name, jnp.sum(jnp.log1p(s**2)))

    return stateless(update)
