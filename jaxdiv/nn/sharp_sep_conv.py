"""sharpDARTS' separable convolution: two depthwise-separable convolutions with a choice of the width between.

    ReLU − depthwise k×k (stride, dilation) − 1×1 to the middle width − BatchNorm −
    ReLU − depthwise k×k                    − 1×1 to the outgoing width − BatchNorm

The middle width is a free choice, where the stacked separable convolution of earlier search spaces has the incoming
width there: a wide one (the paper's "flood") or a narrow one ("choke").

References:
    Hundt, Jain, Hager (2019), sharpDARTS: Faster and More Accurate Differentiable Architecture Search.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float


class SharpSepConv(nnx.Module):
    """Two depthwise-separable convolutions, each behind a ReLU and before a batch normalization.

    Args:
        in_features: Incoming channels.
        out_features: Outgoing channels.
        kernel_size: Width k of both depthwise kernels, odd.
        stride: Of the first convolution.
        dilation: Of the first convolution.
        mid_features: Channels in between; `out_features` by default. The paper's "flood" has four times as many, its
            "choke" 32.
        rngs: Random streams for the initial values.

    Raises:
        ValueError: If the kernel size is even.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> SharpSepConv(3, 8, stride=2, rngs=nnx.Rngs(0))(jnp.ones((1, 8, 8, 3))).shape
        (1, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        mid_features: int | None = None,
        rngs: nnx.Rngs,
    ):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd and positive, so that the output is centered; got {kernel_size}."
            )
        middle = out_features if mid_features is None else mid_features

        def depthwise(features: int, stride: int, dilation: int) -> nnx.Conv:
            # The same on all sides whatever the size: "SAME" pads one side more where the stride is 2.
            margin = dilation * (kernel_size - 1) // 2
            return nnx.Conv(
                features,
                features,
                (kernel_size, kernel_size),
                strides=stride,
                padding=margin,
                kernel_dilation=dilation,
                feature_group_count=features,
                use_bias=False,
                rngs=rngs,
            )

        def pointwise(features: int, to: int) -> nnx.Conv:
            return nnx.Conv(features, to, (1, 1), use_bias=False, rngs=rngs)

        def norm(features: int) -> nnx.BatchNorm:
            # Momentum and epsilon of torch's BatchNorm2d, with which the paper trained.
            return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)

        self.layers = nnx.Sequential(
            jax.nn.relu,
            depthwise(in_features, stride, dilation),
            pointwise(in_features, middle),
            norm(middle),
            jax.nn.relu,
            depthwise(middle, 1, 1),
            pointwise(middle, out_features),
            norm(out_features),
        )

    def __call__(self, inputs: Float[Array, "B h w in"]) -> Float[Array, "B h2 w2 out"]:
        """Returns features of ⌈h / stride⌉ × ⌈w / stride⌉ pixels."""
        return self.layers(inputs)
