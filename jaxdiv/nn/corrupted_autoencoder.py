"""An autoencoder with a noisy and a clean encoder of the same weights, and a clustering head.

With z^0 the input, g the activation of a layer and D dropout, for the layers l = 1..L

    clean     z^l = g(W_l z^{l-1})
    noisy     s^l = g(W_l D(s^{l-1})),          s^0 = z^0
    decoder   r^{l-1} = g(V_l r^l),             r^L = s^L

where the code z^L has an activation of its own, tanh, and the reconstruction r^0 none. A linear head scores
the clusters of both codes. Each r^l, l < L, is to reconstruct the clean z^l, so that every layer learns at
once and none needs to be trained before the others.

References:
    Dizaji, Herandi, Deng, Cai, Huang (2017), Deep clustering via joint convolutional autoencoder embedding
    and relative entropy minimization, section 3.2; activations as in the
    authors' implementation, https://github.com/herandy/DEPICT.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.core import checks


class CorruptedAutoencoder(nnx.Module):
    """A multilayer autoencoder, its input and hidden layers corrupted by dropout.

    Args:
        widths: Sizes from the input to the code, e.g. ``(64, 64, 10)`` for one hidden layer; the decoder
            mirrors them.
        num_clusters: Number of clusters K.
        activation: Of hidden layers, those of the decoder too; leaky ReLU of slope 0.01 by default.
        code_activation: Of the code.
        dropout: Probability with which a unit of the input or of a hidden layer is dropped.
        rngs: Random streams for initial values and dropout.

    Raises:
        ValueError: If there are fewer than two widths or `dropout` leaves [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> model = CorruptedAutoencoder((64, 32, 10), 5, rngs=nnx.Rngs(0))
        >>> outputs = model(jnp.ones((2, 8, 8)))
        >>> outputs["logits"].shape, outputs["code"].shape
        ((2, 5), (2, 10))
        >>> [layer.shape for layer in outputs["reconstruction"]]
        [(2, 64), (2, 32)]
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_clusters: int,
        *,
        activation: Callable[[Array], Array] = jax.nn.leaky_relu,
        code_activation: Callable[[Array], Array] = jax.nn.tanh,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2:
            raise ValueError(f"widths must hold at least the input and the code size; got {tuple(widths)}.")
        checks.in_range("dropout", dropout, 0.0, 1.0)
        pairs = list(itertools.pairwise(widths))
        self.encoder = nnx.List([nnx.Linear(*sizes, rngs=rngs) for sizes in pairs])
        self.decoder = nnx.List([nnx.Linear(*sizes[::-1], rngs=rngs) for sizes in reversed(pairs)])
        self.corruption = nnx.List([nnx.Dropout(dropout, rngs=rngs) for _ in pairs])
        self.head = nnx.Linear(widths[-1], num_clusters, rngs=rngs)
        self.activations = (*(activation for _ in pairs[1:]), code_activation)
        self.activation = activation

    def __call__(self, inputs: Float[Array, "B *d"]) -> dict[str, Any]:
        """Returns both paths' outputs; inputs are flattened.

        Returns:
            ``"logits"`` and ``"clean_logits"`` [B, K] from the noisy and the clean code, the clean
            ``"code"``, and the tuples ``"clean"`` (z^0 to z^{L-1}) and ``"reconstruction"`` (r^0 to r^{L-1}).
            In evaluation mode both paths are the clean one.
        """
        x = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
        clean = [x]
        noisy = x
        for layer, corrupt, g in zip(self.encoder, self.corruption, self.activations, strict=True):
            clean.append(g(layer(clean[-1])))
            noisy = g(layer(corrupt(noisy)))
        code = clean.pop()
        reconstruction = [noisy]
        for layer in self.decoder[:-1]:
            reconstruction.append(self.activation(layer(reconstruction[-1])))
        reconstruction.append(self.decoder[-1](reconstruction[-1]))
        return {
            "logits": self.head(noisy),
            "clean_logits": self.head(code),
            "code": code,
            "clean": tuple(clean),
            "reconstruction": tuple(reconstruction[:0:-1]),
        }
