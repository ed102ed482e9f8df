"""Average-case sharpness: how far the loss rises under Gaussian noise on the parameters.

    S_avg^ρ(w) = E_chunk E_{δ ~ N(0, ρ² diag(c²))} [ L(w + δ) − L(w) ],     c = |w| (adaptive) or 1,

which is (ρ²/2) tr(diag(c) H diag(c)) + O(ρ⁴). One draw of the noise is δ = ρ c ⊙ z with the same z for every w of
one shape and key, so the adaptive value is invariant to a rescaling of weights that keeps the function.

References:
    Andriushchenko, Croce, Müller, Hein, Flammarion (2023), A modern look at the relationship between sharpness and
    generalization.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params, Scalar
from jaxdiv.diagnostics import batches
from jaxdiv.diagnostics.batches import BatchLoss


def sharpness_average(
    loss_fn: BatchLoss,
    params: Params,
    batch: PyTree,
    rho: Numeric,
    *,
    adaptive: bool = True,
    m: int | None = None,
    samples: int = 100,
    key: Key,
) -> tuple[Scalar, Scalar]:
    """Mean rise of the loss under noise of size ρ, relative to each weight or absolute.

    Args:
        loss_fn: ``(params, batch) -> scalar``, in evaluation mode.
        params: Parameters w, floating.
        batch: Arrays with one row per example.
        rho: Standard deviation ρ >= 0 of the noise, in units of |w| if `adaptive`.
        adaptive: Whether the noise of a weight is proportional to its size.
        m: Examples in a chunk, each with its own noise. The whole batch by default.
        samples: Draws for each chunk; each costs one evaluation.
        key: Random key.

    Returns:
        The estimate and its standard error over the draws (NaN from a single one); float32 or wider.

    Raises:
        ValueError: If ρ is negative, there is no draw, or m does not divide the batch.

    References:
        Andriushchenko et al. (2023).

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2)
        >>> value, error = sharpness_average(
        ...     loss, jnp.array([1.0, 2.0]), jnp.ones(2), 0.1, samples=2000, key=jax.random.key(0))
        >>> bool(abs(value - 0.01 * (1 + 4)) < 4 * error)
        True
    """
    checks.in_range("rho", rho, 0.0)
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}.")
    params = batches.widened(loss_fn, params, batch)
    scale = batches.scale(params, adaptive)

    def of_chunk(chunk: PyTree, key: Key) -> Scalar:
        here = loss_fn(params, chunk)

        def rise(key: Key) -> Scalar:
            noise = optax.tree.random_like(key, params, jax.random.normal)
            moved = jax.tree.map(lambda w, c, z: w + (rho * c * z).astype(w.dtype), params, scale, noise)
            return loss_fn(moved, chunk) - here

        return jax.lax.map(rise, jax.random.split(key, samples))

    rises = batches.over_chunks(of_chunk, batch, m, key)
    if rises.size == 1:
        return rises[0, 0], jnp.full((), jnp.nan, rises.dtype)
    # Chunks differ in their means, which is no error of the draws.
    within = jnp.mean(jnp.var(rises, axis=1, ddof=1)) if samples > 1 else jnp.nan
    return jnp.mean(rises), jnp.sqrt(within / rises.size)
