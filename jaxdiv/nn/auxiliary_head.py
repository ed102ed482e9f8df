"""Auxiliary classification head for a second loss on the same backbone.

Two losses whose gradients conflict in the linear classifier, but not in the backbone, get one head
each. The main head is used at test time; the auxiliary one is discarded after training.

References:
    Yang, Zong, Huang, Feng, An (2024), Dual-head knowledge distillation: enhancing logits
    utilization with an auxiliary head.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxdiv.core import checks


class AuxiliaryHead(nnx.Module):
    """Linear - Dropout - BatchNorm - ReLU - Linear, or one Linear.

    Args:
        in_features: Size d of the backbone's features.
        num_classes: Number of logits C.
        hidden: Width of the hidden layer; None makes the linear head of the paper's ablation.
        dropout: Probability with which a hidden unit is dropped.
        rngs: Random streams for initial values and dropout.

    Raises:
        ValueError: If `dropout` leaves [0, 1].

    Example:
        >>> from flax import nnx
        >>> AuxiliaryHead(32, 10, rngs=nnx.Rngs(0))(jnp.ones((4, 32))).shape
        (4, 10)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: int | None = 200,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        checks.in_range("dropout", dropout, 0.0, 1.0)
        if hidden is None:
            self.layers = nnx.Sequential(nnx.Linear(in_features, num_classes, rngs=rngs))
            return
        self.layers = nnx.Sequential(
            nnx.Linear(in_features, hidden, rngs=rngs),
            nnx.Dropout(dropout, rngs=rngs),
            # Momentum and epsilon of torch's BatchNorm1d, with which the paper trained.
            nnx.BatchNorm(hidden, momentum=0.9, epsilon=1e-5, rngs=rngs),
            jax.nn.relu,
            nnx.Linear(hidden, num_classes, rngs=rngs),
        )

    def __call__(self, features: Float[Array, "B d"]) -> Float[Array, "B C"]:
        """Returns the auxiliary logits."""
        return self.layers(features)
