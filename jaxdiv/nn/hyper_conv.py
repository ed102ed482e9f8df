"""A convolution whose weights are an affine function of the hyperparameters, gated per output channel.

As in `jaxdiv.nn.hyper_dense`, with convolutions in place of the products,

    y = s (W_e * x + b_e) + (V_w λ) ∘ (W_h * x) + (V_b λ) ∘ b_h,

where V_w λ and V_b λ hold one number per output channel, the same at all positions.

References:
    MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3, convolutional layers.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from jaxdiv.nn.hyper_dense import BestResponse


class HyperConv(BestResponse):
    """A convolution that answers hyperparameters.

    Called as ``layer(inputs, hyperparameters)`` with inputs [B, *spatial, in] and hyperparameters [B, h] or
    [h].

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Window, one number per spatial axis.
        n_hyper: Number of hyperparameters h.
        strides: Of the window, one number for all spatial axes or one per axis.
        padding: ``"SAME"``, ``"VALID"``, or what else `flax.nnx.Conv` takes.
        use_bias: Whether there are biases.
        rngs: Random streams for the initial values.

    Raises:
        ValueError: If `n_hyper` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> layer = HyperConv(3, 8, (3, 3), n_hyper=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 6, 6, 3)), jnp.zeros((5, 2))).shape
        (5, 6, 6, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        n_hyper: int,
        *,
        strides: int | Sequence[int] = 1,
        padding: Any = "SAME",
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        def layer(**options: Any) -> nnx.Conv:
            return nnx.Conv(
                in_features, out_features, tuple(kernel_size), strides=strides, padding=padding, **options
            )

        super().__init__(layer, n_hyper, spatial=len(kernel_size), use_bias=use_bias, rngs=rngs)
