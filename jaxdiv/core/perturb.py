"""Perturbations of parameters along a direction, of a given radius in a given geometry.

For parameters w, a direction d (a gradient) and a radius ρ, the step that increases ⟨d, ε⟩ most within
the ball of each geometry, as sharpness-aware oracles and sharpness diagnostics use it:

* ``"l2"``: ε = ρ d / ‖d‖, over all leaves together [SAM, eq. (2)];
* ``"linf"``: ε = ρ sign(d);
* ``"leafwise"``: ε_k = ρ d_k / ‖d_k‖, for each leaf k;
* ``"adaptive"``: ε = ρ T² d / ‖T d‖, T = |w| + η elementwise: ‖T⁻¹ε‖ = ρ, which is invariant to a
  rescaling of the weights when η = 0 [ASAM, eq. (8)];
* ``"adaptive_linf"``: ε = ρ T sign(d) [ASAM, eq. (8), p = ∞].

References:
    Foret, Kleiner, Mobahi, Neyshabur (2021), Sharpness-aware minimization for efficiently improving
    generalization. Kwon, Kim, Park, Choi (2021), ASAM: adaptive sharpness-aware minimization for
    scale-invariant learning of deep neural networks.
"""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdiv.core import checks
from jaxdiv.core.numerics import safe_norm, widen
from jaxdiv.core.types import Numeric, Params

Geometry: TypeAlias = Literal["l2", "linf", "leafwise", "adaptive", "adaptive_linf"]


def perturbation(
    params: Params,
    direction: PyTree,
    radius: Numeric,
    *,
    geometry: Geometry = "l2",
    eta: Numeric = 0.01,
) -> PyTree:
    """The perturbation ε alone.

    Args:
        params: Parameters w.
        direction: d, of the structure of `params`; anything (None too) where a leaf of `params` is
            not inexact.
        radius: ρ; negative to go down the direction.
        geometry: One of the names above.
        eta: η of the adaptive geometries, 0.01 in the paper: with 0 a zero weight never moves.

    Returns:
        ε in the dtypes of `params`, None where a leaf is not inexact. It is 0 where the norm that
        divides is 0.

    Raises:
        ValueError: If the geometry is unknown, or the structures or shapes differ.

    Note:
        Norms are taken in float32 or wider. Nothing is stopped: put ``jax.lax.stop_gradient`` around
        it where ε is to count as constant.

    Example:
        >>> perturbation({"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}, 0.5)["w"].tolist()
        [0.30000001192092896, 0.4000000059604645]
    """
    wide = _wide(params, direction, radius, geometry, eta)
    return jax.tree.map(
        lambda w, e: None if e is None else e.astype(jnp.result_type(w)), params, wide, is_leaf=_is_none
    )


def perturb(
    params: Params,
    direction: PyTree,
    radius: Numeric,
    *,
    geometry: Geometry = "l2",
    eta: Numeric = 0.01,
) -> Params:
    """The perturbed parameters w + ε.

    Args:
        params: Parameters w.
        direction: d, of the structure of `params`; anything (None too) where a leaf of `params` is
            not inexact.
        radius: ρ; negative to go down the direction.
        geometry: One of the names above.
        eta: η of the adaptive geometries, 0.01 in the paper: with 0 a zero weight never moves.

    Returns:
        Parameters in their own dtypes; leaves that are not inexact are returned as they are.

    Raises:
        ValueError: If the geometry is unknown, or the structures or shapes differ.

    Note:
        The sum is rounded once, to the dtype of the leaf: in bfloat16 a component of ε below 1/256
        of its weight is lost.

    Example:
        >>> perturb({"w": jnp.ones(2), "step": 3}, {"w": jnp.array([2.0, -1.0]), "step": None}, 0.5,
        ...         geometry="linf")
        {'step': 3, 'w': Array([1.5, 0.5], dtype=float32)}
    """
    wide = _wide(params, direction, radius, geometry, eta)
    return jax.tree.map(
        lambda w, e: w if e is None else (w + e).astype(jnp.result_type(w)), params, wide, is_leaf=_is_none
    )


def _is_none(x: Any) -> bool:
    return x is None


def _wide(params: Params, direction: PyTree, radius: Numeric, geometry: str, eta: Numeric) -> PyTree:
    checks.one_of("geometry", geometry, get_args(Geometry))
    leaves = jax.tree.leaves(params, is_leaf=_is_none)
    structure: Any = jax.tree.structure(params, is_leaf=_is_none)
    try:
        directions = structure.flatten_up_to(direction)
    except ValueError as error:
        got = jax.tree.structure(direction)
        raise ValueError(f"direction must have the structure of params {structure}; got {got}.") from error
    moved = [i for i, w in enumerate(leaves) if w is not None and _inexact(w)]
    w, d = ([widen(tree[i]) for i in moved] for tree in (leaves, directions))
    for x, y in zip(w, d, strict=True):
        checks.same_shape(params=x, direction=y)
    scale = [jnp.abs(x) + eta if geometry.startswith("adaptive") else jnp.ones_like(x) for x in w]
    if geometry.endswith("linf"):
        unit = [jnp.sign(y) for y in d]
    else:
        unit = [t * y for t, y in zip(scale, d, strict=True)]
        norms = [safe_norm(jnp.abs(u)) for u in unit]
        if geometry != "leafwise":
            norms = [safe_norm(jnp.stack(_promoted(norms)))] * len(norms)
        # Divided before the radius multiplies, so that a tiny norm does not overflow.
        unit = [u / jnp.where(n == 0, 1, n).astype(n.dtype) for u, n in zip(unit, norms, strict=True)]
    out: list[Array | None] = [None] * len(leaves)
    for i, t, u in zip(moved, scale, unit, strict=True):
        out[i] = radius * t * u
    return jax.tree.unflatten(structure, out)


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _promoted(xs: list[Array]) -> list[Array]:
    dtype = jnp.result_type(*xs)
    return [x.astype(dtype) for x in xs]
