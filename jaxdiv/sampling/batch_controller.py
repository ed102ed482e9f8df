"""Batch sizes that grow with the gradient noise: the tests of AdAdaGrad.

From the moments of the gradients of a batch (see `diagnostics.gradient_noise`) each test asks for a batch size,

    norm        ⌈V / (η² ‖ḡ‖²)⌉,
    inner       ⌈V_ip / (ϑ² ‖ḡ‖⁴)⌉,
    orthogonal  ⌈V_o / (ν² ‖ḡ‖²)⌉,
    augmented   the larger of inner and orthogonal,
    coordinate  max_j ⌈Var(∂_j) / (η² ḡ_j²)⌉   (or a quantile over j),

and the batch size is the largest one asked for so far, at most that of the cap.

References:
    Lau, Liu, Kolar (2024), AdAdaGrad: Adaptive batch size schemes for adaptive gradient methods, section 3.
"""

import math
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Scalar
from jaxdiv.diagnostics.gradient_noise import GradientNoise
from jaxdiv.sampling.sampler import Sampler
from jaxdiv.sampling.shuffle import ShuffleState, shuffle

Test: TypeAlias = Literal["norm", "inner", "orthogonal", "augmented", "coordinate"]


def requested_batch_size(
    noise: GradientNoise,
    test: Test = "norm",
    *,
    eta: Numeric = 0.1,
    theta: Numeric = 0.1,
    nu: Numeric = 5.84,
) -> Scalar:
    """How many examples a test asks for; runs inside a compiled step.

    Args:
        noise: Moments of the gradients of a batch.
        test: Which test.
        eta: η > 0 of the norm and the coordinate test: the tolerated relative error of the mean gradient.
        theta: ϑ > 0 of the inner-product test.
        nu: ν > 0 of the orthogonality test; the value of Bollapragada et al. (2018).

    Returns:
        A whole number in the dtype of the moments, at least 1; infinite where the mean gradient is 0 and noise is
        left, NaN where the moments are.

    Raises:
        ValueError: If the test is unknown or a concrete tolerance is not positive.

    References:
        Lau, Liu, Kolar (2024), eqs. (6)-(9).

    Example:
        >>> from jaxdiv.diagnostics.gradient_noise import gradient_noise
        >>> noise = gradient_noise(jnp.array([[1.0, 1.0], [1.0, -1.0], [4.0, 0.0]]))
        >>> float(requested_batch_size(noise, eta=0.5))
        4.0
    """
    checks.one_of("test", test, get_args(Test))
    for name, value in (("eta", eta), ("theta", theta), ("nu", nu)):
        checks.in_range(name, value, 0.0, open_low=True)

    def over(variance: Scalar, square: Scalar) -> Scalar:
        # 0/0 is no noise: nothing is asked for.
        return jnp.where(variance > 0, variance / square, jnp.where(jnp.isnan(variance), variance, 0))

    square = noise.mean_square
    inner = over(over(noise.inner_variance, square), square) / theta**2
    orthogonal = over(noise.orthogonal_variance, square) / nu**2
    asked = {
        "norm": over(noise.variance, square) / eta**2,
        "inner": inner,
        "orthogonal": orthogonal,
        "augmented": jnp.maximum(inner, orthogonal),
        "coordinate": noise.coordinate_ratio / eta**2,
    }
    return jnp.maximum(jnp.ceil(asked[test]), 1)


class BatchControllerState(NamedTuple):
    """State of the sampler.

    Attributes:
        size: The size of the next batches.
        recorded: Number of batches recorded.
        shuffled: State of the shuffle that deals them.
    """

    size: Int[np.ndarray, ""]
    recorded: Int[np.ndarray, ""]
    shuffled: ShuffleState


def batch_controller(batch_size: int, max_batch_size: int, *, every: int = 1) -> Sampler:
    """Deals reshuffled data in batches that grow to the size asked for.

    What is recorded with it are requests, not losses: the step reports ``"losses"`` [B] that are all
    `requested_batch_size`. Sizes are ``batch_size`` times powers of two, the last one capped, so that a step is
    compiled at most ``log2(max_batch_size / batch_size) + 2`` times; they never decrease.

    Args:
        batch_size: The first size.
        max_batch_size: The largest size.
        every: Only every so many batches the test is taken. `train.fit` records, and so lets the size change, at the
            end of each chunk.

    Returns:
        A sampler. Of a batch the mean of what is recorded counts; NaN asks for nothing, infinity for the cap.

    Raises:
        ValueError: If the sizes are not ``1 <= batch_size <= max_batch_size``, at most the size of the data, or
            `every` is below 1.

    References:
        Lau, Liu, Kolar (2024), algorithm 1.

    Example:
        >>> import jax
        >>> sampler = batch_controller(2, 16)
        >>> state = sampler.init(100, jax.random.key(0))
        >>> index, state = sampler.draw(state)
        >>> state = sampler.record(state, index, np.full(2, 5.0))
        >>> len(index), len(sampler.draw(state)[0])
        (2, 8)
    """
    if not 1 <= batch_size <= max_batch_size:
        raise ValueError(
            "batch_size must lie between 1 and max_batch_size; "
            f"got batch_size={batch_size}, max_batch_size={max_batch_size}."
        )
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}.")

    def init(n: int, key: Key) -> BatchControllerState:
        if max_batch_size > n:
            raise ValueError(
                f"max_batch_size must be at most the number of examples, {n}; got {max_batch_size}."
            )
        return BatchControllerState(np.array(batch_size), np.array(0), shuffle(batch_size).init(n, key))

    def draw(state: BatchControllerState) -> tuple[np.ndarray, BatchControllerState]:
        index, shuffled = shuffle(int(state.size)).draw(state.shuffled)
        return index, state._replace(shuffled=shuffled)

    def record(
        state: BatchControllerState, index: Int[np.ndarray, " B"], losses: Float[np.ndarray, " B"]
    ) -> BatchControllerState:
        del index
        recorded = int(state.recorded) + 1
        state = state._replace(recorded=np.array(recorded))
        asked = float(np.mean(losses))
        if recorded % every or not asked > int(state.size):
            return state
        doublings = math.ceil(math.log2(min(asked, max_batch_size) / batch_size))
        return state._replace(size=np.array(min(batch_size * 2**doublings, max_batch_size)))

    return Sampler(init, draw, record)
