"""Sign-gradient attacks: FGSM, and PGD in the max norm.

    x <- clip(x + step_size sign(grad_x loss(x)), x_0 - epsilon, x_0 + epsilon),   then into `bounds`.

References:
    Goodfellow, Shlens, Szegedy (2015), Explaining and Harnessing Adversarial Examples, sec. 4.
    Madry et al. (2018), Towards Deep Learning Models Resistant to Adversarial Attacks, eq. (2.2).
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Scalar

Attack: TypeAlias = Callable[[Callable[[PyTree], Scalar], PyTree, Key], PyTree]
"""``(loss_of_inputs, inputs, key) -> inputs``: inputs of the same shapes with a higher loss."""


def sign_gradient(
    epsilon: Numeric,
    *,
    steps: int = 1,
    step_size: Numeric | None = None,
    random_start: bool = False,
    bounds: tuple[Numeric, Numeric] | None = None,
) -> Attack:
    """Climbs the loss by the sign of its gradient inside a box around the inputs.

    Args:
        epsilon: Half width of the box, in units of the inputs; >= 0.
        steps: Number of gradient steps; 1 is FGSM.
        step_size: Length of a step; ``epsilon`` for one step, else ``2.5 epsilon / steps`` (Madry et al.).
        random_start: Whether to start at a uniform point of the box.
        bounds: Lowest and highest valid input.

    Returns:
        An attack ``(loss_of_inputs, inputs, key) -> inputs``. It costs one gradient per step and perturbs
        the floating leaves only.

    Raises:
        ValueError: If a number is negative, `steps` is 0, the bounds are reversed, or no input is floating.

    Example:
        >>> import jax
        >>> from jaxdiv import adversarial
        >>> attack = adversarial.sign_gradient(0.5)
        >>> attack(lambda x: jnp.sum(x**2), jnp.array([1.0, -2.0, 0.0]), jax.random.key(0)).tolist()
        [1.5, -2.5, 0.0]
    """
    checks.in_range("epsilon", epsilon, 0.0)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    if step_size is None:
        step_size = epsilon if steps == 1 else 2.5 * epsilon / steps
    checks.in_range("step_size", step_size, 0.0)
    if bounds is not None:
        low, high = bounds
        if checks.concrete(low) and checks.concrete(high) and not low <= high:
            raise ValueError(f"bounds must be (lowest, highest) with lowest <= highest; got {bounds}.")

    def attack(loss_of_inputs: Callable[[PyTree], Scalar], inputs: PyTree, key: Key) -> PyTree:
        leaves, treedef = jax.tree.flatten(inputs)
        floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not floats:
            raise ValueError(
                f"sign_gradient needs a floating input to perturb; got {[leaf.dtype for leaf in leaves]}."
            )
        clean = [leaves[i] for i in floats]

        def loss(perturbed: list[jax.Array]) -> Scalar:
            merged = list(leaves)
            for i, leaf in zip(floats, perturbed, strict=True):
                merged[i] = leaf
            return loss_of_inputs(jax.tree.unflatten(treedef, merged))

        def project(x: jax.Array, center: jax.Array) -> jax.Array:
            x = jnp.clip(x, center - epsilon, center + epsilon)
            if bounds is not None:
                x = jnp.clip(x, *bounds)
            return x.astype(center.dtype)

        def step(x: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
            # The sign is locally constant: no derivative passes it, while those by epsilon and x remain.
            gradient = jax.lax.stop_gradient(jax.grad(loss)(x))
            return [
                project(leaf + step_size * jnp.sign(g), center)
                for leaf, g, center in zip(x, gradient, clean, strict=True)
            ], None

        start = clean
        if random_start:
            keys = jax.random.split(key, len(clean))
            start = [
                project(leaf + epsilon * jax.random.uniform(k, leaf.shape, minval=-1.0), leaf)
                for k, leaf in zip(keys, clean, strict=True)
            ]
        perturbed, _ = jax.lax.scan(step, start, length=steps)
        for i, leaf in zip(floats, perturbed, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(treedef, leaves)

    return attack
