"""A dense layer whose weights are an affine function of the hyperparameters: a structured best response.

Let w*(λ) be the weights that minimize a training loss at hyperparameters λ ∈ R^h. A full linear model of w*
would need h + 1 copies of the weights; the layer's model moves each output unit along one direction only,

    w_φ(λ) = s W_e + (V_w λ) ∘_row W_h,      b_φ(λ) = s b_e + (V_b λ) ∘ b_h,

    y = s (W_e x + b_e) + (V_w λ) ∘ (W_h x) + (V_b λ) ∘ b_h,

so that it costs two dense layers whatever h, and every example may have hyperparameters of its own. The
kernels W_e, W_h and biases b_e, b_h start uniform in ±1/√fan_in, V = (V_w, V_b) as N(0, 0.01²), s at 1. For
a linear network with an L2-regularized Jacobian (ridge regression is one) such a gate of the hidden units,
with a sigmoid around it, is the exact best response.

References:
    MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3; the scalar s and the
    initial values as in the authors' implementation, https://github.com/asteroidhouse/self-tuning-networks.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

# Uniform in ±1/sqrt(fan_in).
_UNIFORM = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BestResponse(nnx.Module):
    """What best-response layers have in common: two layers of one kind and a gate per output unit.

    Args:
        layer: Makes a layer from the keyword arguments `use_bias`, `kernel_init`, `bias_init` and `rngs`; its
            kernel's last axis is the output.
        n_hyper: Number of hyperparameters h.
        spatial: Number of axes between the batch and the output units.
        use_bias: Whether there are biases.
        rngs: Random streams for the initial values.

    Raises:
        ValueError: If `n_hyper` is less than 1.
    """

    def __init__(
        self, layer: Callable[..., Any], n_hyper: int, *, spatial: int, use_bias: bool, rngs: nnx.Rngs
    ):
        if n_hyper < 1:
            raise ValueError(f"n_hyper must be at least 1; got {n_hyper}; use a plain layer without any.")
        fan_in = 0

        def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -1, 1) / math.sqrt(fan_in)

        self.response = layer(use_bias=False, kernel_init=_UNIFORM, rngs=rngs)
        *window, features = self.response.kernel.shape
        fan_in = math.prod(window)
        self.elementary = layer(use_bias=use_bias, kernel_init=_UNIFORM, bias_init=bias_init, rngs=rngs)
        self.response_bias = nnx.Param(bias_init(rngs.params(), (features,))) if use_bias else None
        self.gates = nnx.Linear(
            n_hyper, 2 * features, use_bias=False, kernel_init=jax.nn.initializers.normal(0.01), rngs=rngs
        )
        self.scale = nnx.Param(jnp.ones(()))
        self.spatial = spatial

    def squared_norm(self, hyperparameters: Float[Array, "*B h"]) -> Float[Array, "*B"]:
        """Returns ‖w_φ(λ)‖² of the kernel, biases apart, for each row of hyperparameters.

        It is what a weight decay that is itself a hyperparameter multiplies, and costs no kernel per row.
        """
        gate, _ = jnp.split(self.gates(hyperparameters), 2, -1)
        e = self.scale[...] * self.elementary.kernel[...]
        h = self.response.kernel[...]
        ee, eh, hh = (jnp.sum(a * b, axis=range(a.ndim - 1)) for a, b in ((e, e), (e, h), (h, h)))
        return jnp.sum(ee + 2 * gate * eh + gate**2 * hh, axis=-1)

    def __call__(
        self, inputs: Float[Array, "*B _"], hyperparameters: Float[Array, "*B h"]
    ) -> Float[Array, "*B out"]:
        """Returns the outputs under the weights that answer the hyperparameters.

        Args:
            inputs: What the layer takes.
            hyperparameters: Unconstrained λ, one row per example or one, [h], for all.

        Raises:
            ValueError: If the hyperparameters are not h per row, or their rows do not go with the examples.
        """
        n_hyper = self.gates.kernel.shape[0]
        shape, rows = jnp.shape(hyperparameters), inputs.shape[: inputs.ndim - 1 - self.spatial]
        if not shape or shape[-1] != n_hyper:
            raise ValueError(
                f"hyperparameters must have {n_hyper} entries on the last axis; got shape {shape}."
            )
        try:
            np.broadcast_shapes(shape[:-1], rows)
        except ValueError:
            raise ValueError(
                f"hyperparameters must have one row for each of the {rows} examples, or be one [{n_hyper}] "
                f"for all; got shape {shape}."
            ) from None
        gates = self.gates(hyperparameters)
        # The gate is one number per example and output unit, the same at all positions.
        gates = gates.reshape(*gates.shape[:-1], *(1,) * self.spatial, gates.shape[-1])
        weight_gate, bias_gate = jnp.split(gates, 2, -1)
        outputs = self.scale[...] * self.elementary(inputs) + weight_gate * self.response(inputs)
        return outputs if self.response_bias is None else outputs + bias_gate * self.response_bias[...]


class HyperDense(BestResponse):
    """A dense layer that answers hyperparameters.

    Called as ``layer(inputs, hyperparameters)`` with inputs [B, in] and hyperparameters [B, h] or [h].

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        n_hyper: Number of hyperparameters h.
        use_bias: Whether there are biases.
        rngs: Random streams for the initial values.

    Raises:
        ValueError: If `n_hyper` is less than 1.

    Example:
        >>> from flax import nnx
        >>> layer = HyperDense(4, 3, n_hyper=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 4)), jnp.zeros((5, 2))).shape
        (5, 3)
    """

    def __init__(
        self, in_features: int, out_features: int, n_hyper: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        def layer(**options: Any) -> nnx.Linear:
            return nnx.Linear(in_features, out_features, **options)

        super().__init__(layer, n_hyper, spatial=0, use_bias=use_bias, rngs=rngs)
