"""A network whose learning rate is the same at every width and depth: the maximal-update parametrization.

With all weights drawn from N(0, 1), inputs of d numbers, N hidden units and L hidden layers,

    h_1 = W_0 x / √d,    h_{l+1} = W_l φ(h_l) / √N,    f = v φ(h_L) / (γ √N),

or h_{l+1} = h_l + W_l φ(h_l) / √(N (L − 1)) with residual branches. NTK parametrization has γ = 1, under which features
move less the wider the network; the maximal update has γ = γ_0 √N and, for SGD, the learning rate η = η_0 γ². Sharpness
in units of that learning rate, γ² λmax(H), is compared with 2/η_0.

References:
    Noci, Meterez, Hofmann, Orvieto (2024), Why do learning rates transfer? Reconciling optimization and scaling limits
    for deep learning. Bordelon, Pehlevan (2022), Self-consistent dynamical field theory of kernel
    evolution in wide neural networks. Yang, Hu (2021), Tensor programs IV: feature learning in infinite-width neural
    networks.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.core import checks


class MuMLP(nnx.Module):
    """A multilayer perceptron without biases in the maximal-update or the NTK parametrization.

    Args:
        in_features: d.
        width: N.
        out_features: Number of outputs.
        depth: Number L of hidden layers.
        parametrization: ``"mup"`` or ``"ntp"``.
        gamma0: γ_0 > 0 of the maximal update; small values are lazy. Unused by ``"ntp"``.
        activation: φ.
        residual: Whether hidden layers after the first are residual branches.
        rngs: Random streams for the initial values.

    Attributes:
        gamma: γ.
        learning_rate_scale: γ², to multiply the learning rate η_0 of SGD with.

    Raises:
        ValueError: If the parametrization is unknown, a size is not positive or γ_0 not either.

    Example:
        >>> model = MuMLP(4, 64, 2, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((3, 4))).shape, model.learning_rate_scale
        ((3, 2), 64.0)
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int = 1,
        *,
        depth: int = 1,
        parametrization: Literal["mup", "ntp"] = "mup",
        gamma0: float = 1.0,
        activation: Callable[[Array], Array] = jnp.tanh,
        residual: bool = False,
        rngs: nnx.Rngs,
    ):
        checks.one_of("parametrization", parametrization, ("mup", "ntp"))
        for name, size in (
            ("in_features", in_features),
            ("width", width),
            ("out_features", out_features),
            ("depth", depth),
        ):
            checks.in_range(name, size, 1)
        checks.in_range("gamma0", gamma0, 0.0, open_low=True)

        def weight(*shape: int) -> nnx.Param[Array]:
            return nnx.Param(jax.random.normal(rngs.params(), shape))

        self.first = weight(in_features, width)
        self.hidden = nnx.List([weight(width, width) for _ in range(depth - 1)])
        self.last = weight(width, out_features)
        self.gamma = gamma0 * math.sqrt(width) if parametrization == "mup" else 1.0
        self.learning_rate_scale = self.gamma**2
        self.activation = activation
        self.residual = residual

    def __call__(self, inputs: Float[Array, "B d"]) -> Float[Array, "B out"]:
        """Returns f, for each row of the inputs."""
        h = inputs @ self.first[...] / math.sqrt(inputs.shape[-1])
        for weight in self.hidden:
            branch = self.activation(h) @ weight[...] / math.sqrt(weight.shape[0])
            h = h + branch / math.sqrt(len(self.hidden)) if self.residual else branch
        return self.activation(h) @ self.last[...] / (self.gamma * math.sqrt(self.last.shape[0]))
