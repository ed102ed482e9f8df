"""A multilayer perceptron whose hidden activations can be read."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.core import checks


class MLP(nnx.Module):
    """Linear layers with an activation between them.

    Args:
        widths: Sizes from input to output, e.g. ``(64, 32, 10)`` for one hidden layer of 32.
        activation: Applied after every layer but the last.
        output_scale: Factor on the last layer's initial kernel. Small values start from nearly
            constant outputs, which losses with vanishing tails (kernels) need.
        features: Whether to return the last hidden activations beside the logits.
        rngs: Random streams for the initial values.

    Raises:
        ValueError: If there are fewer than two widths.

    Example:
        >>> from flax import nnx
        >>> model = MLP((64, 32, 10), features=True, rngs=nnx.Rngs(0))
        >>> {name: value.shape for name, value in sorted(model(jnp.ones((2, 8, 8))).items())}
        {'features': (2, 32), 'logits': (2, 10)}
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        output_scale: float = 1.0,
        features: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2:
            raise ValueError(f"widths must hold at least the input and the output size; got {tuple(widths)}.")
        checks.in_range("output_scale", output_scale, 0.0)
        initial = jax.nn.initializers.lecun_normal()

        def scaled(*args: Any, **kwargs: Any) -> Array:
            return output_scale * initial(*args, **kwargs)

        *hidden, last = itertools.pairwise(widths)
        self.hidden = nnx.List([nnx.Linear(*sizes, rngs=rngs) for sizes in hidden])
        self.output = nnx.Linear(*last, kernel_init=scaled, rngs=rngs)
        self.activation = activation
        self.features = features

    def __call__(
        self, inputs: Float[Array, "B *d"]
    ) -> Float[Array, "B out"] | dict[str, Float[Array, "B _"]]:
        """Returns the logits, or a dict of ``"logits"`` and ``"features"``; inputs are flattened."""
        x = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
        for layer in self.hidden:
            x = self.activation(layer(x))
        logits = self.output(x)
        return {"logits": logits, "features": x} if self.features else logits
