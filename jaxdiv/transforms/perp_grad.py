"""Gradients orthogonal to the parameters, so that no step merely scales the logits.

    g_⊥ = g - (⟨θ, g⟩/⟨θ, θ⟩) θ,        and, rescaled,   g_⊥ ‖g‖/‖g_⊥‖,

for each leaf or for all leaves together. Once a homogeneous model fits its data, its gradient turns towards -θ:
the loss then falls because the logits grow, not because the predictions change.

References:
    Prieto, Barsbey, Mediano, Birdal (2025), Grokking at the edge of numerical stability, sec. 5.
"""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxdiv import core
from jaxdiv.core import checks
from jaxdiv.transforms import precision

Scope: TypeAlias = Literal["leaf", "global"]


def perp_grad(scope: Scope = "leaf", *, rescale: bool = True) -> optax.GradientTransformation:
    """Removes from the gradient what points along the parameters.

    Args:
        scope: ``"leaf"`` takes each leaf for itself, as the authors' code does; ``"global"`` all together.
        rescale: Whether the rest gets the norm that the gradient had, as the authors' code does.

    Returns:
        A stateless transform. It needs the parameters, stands before the moments of an optimizer, and weight
        decay undoes it by design. Leaves of normalization layers and biases can be left out by `optax.masked`.

    Raises:
        ValueError: If the scope is unknown or, in an update, the parameters are missing.

    Note:
        It projects twice, so that also a small rest is orthogonal to rounding. A rest below 8 eps ‖g‖ is nothing
        but rounding and comes back as 0, where rescaling alone would blow it up; so does one for zero g.

    References:
        Prieto et al. (2025).

    Example:
        >>> import optax
        >>> from jaxdiv import transforms
        >>> tx = optax.chain(transforms.perp_grad(), optax.adam(1e-3))
        >>> theta, gradient = jnp.array([1.0, 1.0]), jnp.array([3.0, 1.0])
        >>> transforms.perp_grad(rescale=False).update(gradient, optax.EmptyState(), theta)[0].round(3).tolist()
        [1.0, -1.0]
    """
    checks.one_of("scope", scope, get_args(Scope))
    geometry: Any = {"leaf": "leafwise", "global": "l2"}[scope]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be passed to the update of perp_grad; got None.")
        wide = precision.widen("updates", updates)
        unit = core.perturbation(precision.widen("params", params), params, 1.0, geometry=geometry)

        def total(tree: PyTree) -> PyTree:
            # Of each leaf, or of all leaves at every leaf.
            return tree if scope == "leaf" else jax.tree.map(lambda _: optax.tree.sum(tree), tree)

        def project(g: PyTree) -> PyTree:
            along = total(jax.tree.map(lambda x, u: jnp.sum(x * u), g, unit))
            return jax.tree.map(lambda x, a, u: x - a * u, g, along, unit)

        def norm(g: PyTree) -> PyTree:
            norms = jax.tree.map(lambda x: core.safe_norm(jnp.abs(x)), g)
            if scope == "leaf":
                return norms
            whole = core.safe_norm(jnp.stack(jax.tree.leaves(norms)))
            return jax.tree.map(lambda _: whole, norms)

        def finish(rest: Any, before: Any, after: Any) -> Any:
            kept = after > 8 * float(np.finfo(rest.dtype).eps) * before
            ratio = before / jnp.where(kept, after, 1.0) if rescale else 1.0
            # NaN is no rounding: it stays.
            return jnp.where(kept | jnp.isnan(after), ratio * rest, 0.0).astype(rest.dtype)

        rest = project(project(wide))
        rest = jax.tree.map(finish, rest, norm(wide), norm(rest))
        return optax.tree.cast_like(rest, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
