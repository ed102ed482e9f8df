"""Weight companding: weights as a bounded, odd, increasing function of what is trained.

    w = Ψ(v) = a φ(v/b),        φ = arctan or tanh,        |w| < a sup φ,        dw/dv = (a/b) φ'(v/b).

The slope is largest at 0 and vanishes for large v. Under gradient descent on v the weights move as if preconditioned
by Ψ'(v)²: small weights, for a/b > 1, faster than without, large ones hardly. So weights are pushed away from zero, and
none becomes much larger than the others. Training starts from v = Ψ⁻¹(w_0), with the same function as without.

This family is a reading of the paper's abstract, which names the properties of the function and not its formula.

References:
    Weight Compander: A simple weight reparameterization for regularization (2023), arXiv 2306.16993; abstract only.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric, Params

Kind: TypeAlias = Literal["arctan", "tanh"]

# φ, its inverse, and its supremum.
_FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array], float]] = {
    "arctan": (jnp.arctan, jnp.tan, 1.5707963267948966),
    "tanh": (jnp.tanh, jnp.arctanh, 1.0),
}


class Compander(NamedTuple):
    """A reparameterization of a pytree of parameters.

    Attributes:
        init: ``(params) -> trained``, a dictionary with v under ``"raw"`` and, if they are learned, log a under
            ``"log_scale"`` and log b under ``"log_width"``, each in the structure of the parameters.
        apply: ``(trained) -> params``: the weights that the model runs with.
    """

    init: Callable[[Params], Params]
    apply: Callable[[Params], Params]


def _is_kernel(leaf: Float[Array, "..."]) -> bool:
    return leaf.ndim >= 2


def compander(
    kind: Kind = "arctan",
    *,
    scale: Numeric = 0.5,
    width: Numeric = 0.25,
    learn: bool = False,
    where: Callable[[Array], bool] = _is_kernel,
    margin: Numeric = 0.95,
) -> Compander:
    """A pair of maps between the weights of a model and the variables that are trained in their place.

    Args:
        kind: φ.
        scale: a > 0; the weights are below a π/2 or a in size.
        width: b > 0; a/b is the slope at 0. With a = b large the map is the identity.
        learn: Whether a and b, one of each per leaf, are trained along with v, by their logarithms. Those of leaves
            that are not companded have no effect.
        where: Which leaves are companded: by default those of rank two or more, so that biases and the scales of
            norms stay what they are.
        margin: First weights are clipped to this share of the bound, where Ψ⁻¹ is still moderate.

    Returns:
        The pair ``(init, apply)``. Optimizer states live on v; a weight decay acts on v, unless it is a term of
        the loss in the weights themselves.

    Raises:
        ValueError: If `kind` is unknown, a concrete `scale` or `width` is not positive, or `margin` leaves (0, 1).

    Example:
        >>> reparameterization = compander(scale=0.5, width=0.25)
        >>> params = {"kernel": jnp.array([[0.1, -0.7]]), "bias": jnp.array([2.0])}
        >>> trained = reparameterization.init(params)
        >>> [round(float(v), 2) for v in trained["raw"]["kernel"][0]]
        [0.05, -1.45]
        >>> [round(float(w), 2) for w in reparameterization.apply(trained)["kernel"][0]]
        [0.1, -0.7]
    """
    function, inverse, supremum = checks.lookup("kind", kind, _FUNCTIONS)
    checks.in_range("scale", scale, 0.0, open_low=True)
    checks.in_range("width", width, 0.0, open_low=True)
    checks.in_range("margin", margin, 0.0, 1.0, open_low=True, open_high=True)

    def mapped(
        change: Callable[[Array, Numeric, Numeric], Array], tree: PyTree, a: PyTree, b: PyTree
    ) -> PyTree:
        return jax.tree.map(lambda x, a, b: change(x, a, b).astype(x.dtype) if where(x) else x, tree, a, b)

    def spread(number: Numeric, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(number, jnp.promote_types(x.dtype, jnp.float32)), tree)

    def init(params: Params) -> Params:
        params = jax.tree.map(jnp.asarray, params)
        a, b = spread(scale, params), spread(width, params)

        def expanded(w: Array, a: Numeric, b: Numeric) -> Array:
            return b * inverse(jnp.clip(w / (a * supremum), -margin, margin) * supremum)

        trained = {"raw": mapped(expanded, params, a, b)}
        if learn:
            trained |= {"log_scale": jax.tree.map(jnp.log, a), "log_width": jax.tree.map(jnp.log, b)}
        return trained

    def apply(trained: Params) -> Params:
        raw = trained["raw"]
        if learn:
            a, b = (jax.tree.map(jnp.exp, trained[name]) for name in ("log_scale", "log_width"))
        else:
            a, b = spread(scale, raw), spread(width, raw)
        return mapped(lambda v, a, b: a * function(v / b), raw, a, b)

    return Compander(init, apply)
