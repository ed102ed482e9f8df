"""Steps of given length whose rates within a group of layers follow the noise of their gradients.

Layer ℓ of a group 𝒢, the layers that share a norm ‖·‖ with dual norm ‖·‖_*, has

    B_t = β1 B_{t-1} + (1 - β1) G_t                     momentum
    O_t = argmin {⟨B_t, X⟩ : ‖X‖ ≤ 1}                   direction
    H_t = β2 H_{t-1} + (1 - β2) ‖G_t - G̃_t‖_*²          noise
    a_ℓ = α/√(α² + H_ℓ),    X_ℓ ← X_ℓ + η √(a_ℓ/max_{j∈𝒢} a_j) O_ℓ,

with G̃_t the last gradient, at the first step G_t itself, or an independent gradient at the same point. The
least noisy layer of a group keeps the rate η; the others have ((α² + min H)/(α² + H_ℓ))^{1/4} of it. Groups of
equal noise take the plain steps (Muon's for the spectral norm).

References:
    Hao, Zhang, Fang, Liu (2025), Noise-adaptive layerwise learning rates: accelerating geometry-aware optimization
    for deep neural network training. The outer square root and the division by the largest rate are read from
    secondary sources.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.transforms import precision
from jaxdiv.transforms.lmo import Ball


class NoiseAdaptiveLMOState(NamedTuple):
    """State of `scale_by_noise_adaptive_lmo`, in float32 or float64.

    Attributes:
        momentum: B.
        noise: H, one scalar per leaf.
        previous: The last gradient; ``()`` if independent ones are given.
        first: Whether there was no gradient yet.
    """

    momentum: PyTree
    noise: PyTree
    previous: PyTree
    first: Array


def scale_by_noise_adaptive_lmo(
    balls: Mapping[str, Ball],
    labels: PyTree | Callable[[PyTree], PyTree],
    *,
    alpha: Numeric,
    b1: Numeric = 0.95,
    b2: Numeric = 0.9,
    independent: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Directions by linear minimization oracles with noise-adaptive rates, to be scaled by the learning rate.

    Args:
        balls: For each group its unit ball: a `convex.Norm`, `rms_operator` or `newton_schulz`.
        labels: The group of each leaf, as a tree of names (a prefix is enough), or a function that makes it from
            the tree.
        alpha: α > 0, the dual norm of noise at which a rate falls noticeably; dual norms grow with a layer's size.
        b1: Decay of the momentum.
        b2: Decay of the noise.
        independent: Whether `update` gets ``independent_gradient=``, a second gradient at the same point. Without
            it the last gradient stands in, whose distance counts the way between the two points as noise.

    Returns:
        A transform that has to see all leaves of a group: partition the tree by `labels`, not by
        `optax.partition`. It holds two copies of the parameters, one if `independent`.

    Raises:
        ValueError: If α is not above 0, β1 or β2 leaves [0, 1], a label names no ball or, in an update, the
            independent gradient is missing.

    References:
        Hao et al. (2025).

    Example:
        >>> from jaxdiv import convex, transforms
        >>> tx = transforms.scale_by_noise_adaptive_lmo({"all": convex.linf}, "all", alpha=1.0)
        >>> gradient = {"a": jnp.array([2.0]), "b": jnp.array([-3.0])}
        >>> _, state = tx.update(gradient, tx.init(gradient))
        >>> noisier = {"a": jnp.array([2.0]), "b": jnp.array([9.0])}
        >>> {name: round(float(u[0]), 1) for name, u in tx.update(noisier, state)[0].items()}
        {'a': 1.0, 'b': 0.5}
    """
    checks.in_range("alpha", alpha, 0.0, open_low=True, open_high=True)
    checks.in_range("b1", b1, 0.0, 1.0)
    checks.in_range("b2", b2, 0.0, 1.0)

    def groups(tree: PyTree) -> list[str]:
        given = labels(tree) if callable(labels) else labels
        spread = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), given, tree)
        return [checks.one_of("labels", label, tuple(balls)) for label in jax.tree.leaves(spread)]

    def init(params: optax.Params) -> NoiseAdaptiveLMOState:
        momentum = precision.zeros(params)
        noise = jax.tree.map(lambda b: jnp.zeros((), b.dtype), momentum)
        previous = () if independent else precision.zeros(params)
        return NoiseAdaptiveLMOState(momentum, noise, previous, jnp.array(True))

    def update(
        updates: Any,
        state: NoiseAdaptiveLMOState,
        params: Any = None,
        *,
        independent_gradient: Any = None,
        **extra: Any,
    ) -> tuple[Any, NoiseAdaptiveLMOState]:
        if independent and independent_gradient is None:
            raise ValueError(
                "independent_gradient must be passed to the update where independent=True; got None."
            )
        wide = precision.widen("updates", updates)
        other = (
            precision.widen("independent_gradient", independent_gradient) if independent else state.previous
        )
        names, structure = groups(wide), jax.tree.structure(wide)
        gradients, others, momenta, noises = map(jax.tree.leaves, (wide, other, state.momentum, state.noise))

        momenta = [(b1 * b + (1 - b1) * g).astype(b.dtype) for b, g in zip(momenta, gradients, strict=True)]
        squares = [
            jnp.sum(balls[name].dual(g - o)) ** 2 for name, g, o in zip(names, gradients, others, strict=True)
        ]
        if not independent:
            squares = [jnp.where(state.first, 0.0, s) for s in squares]
        noises = [(b2 * h + (1 - b2) * s).astype(h.dtype) for h, s in zip(noises, squares, strict=True)]
        least = {
            group: jnp.min(jnp.stack([h for name, h in zip(names, noises, strict=True) if name == group]))
            for group in set(names)
        }
        direction = [
            # √(a_ℓ/max a). To be subtracted, like a gradient.
            -(((alpha**2 + least[name]) / (alpha**2 + h)) ** 0.25 * balls[name].lmo(b)).astype(b.dtype)
            for name, h, b in zip(names, noises, momenta, strict=True)
        ]
        momentum, noise, out = (jax.tree.unflatten(structure, x) for x in (momenta, noises, direction))
        state = NoiseAdaptiveLMOState(momentum, noise, () if independent else wide, jnp.array(False))
        return optax.tree.cast_like(out, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
