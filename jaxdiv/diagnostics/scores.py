"""How good and how sure predictions are: likelihood, Brier score, accuracy, agreement, entropy.

All take logits. Probabilities p enter as ``log(p)``, which is a valid logit of p, -inf included.

References:
    Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty estimation
    using deep ensembles, section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv import losses
from jaxdiv.core import checks
from jaxdiv.core.types import Scalar
from jaxdiv.diagnostics import arguments
from jaxdiv.losses.arguments import class_logits


def nll(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Mean negative log-likelihood in nats.

    Example:
        >>> print(nll(jnp.zeros((2, 4)), jnp.array([0, 1])).round(4))
        1.3863
    """
    return arguments.weighted_mean(losses.cross_entropy(logits, labels), weights)


def brier(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Mean Brier score, between 0 and 2.

    Example:
        >>> print(brier(jnp.zeros((2, 4)), jnp.array([0, 1])))
        0.75
    """
    return arguments.weighted_mean(losses.brier(logits, labels), weights)


def accuracy(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Share of examples whose largest score is that of the label.

    Example:
        >>> print(accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])))
        0.5
    """
    logits = class_logits("logits", logits)
    return arguments.weighted_mean(arguments.hit(logits, labels), weights)


def agreement(
    logits: Float[Array, "B C"],
    other_logits: Float[Array, "B C"],
    *,
    weights: Float[Array, " B"] | None = None,
) -> Scalar:
    """Share of examples on which two models predict the same class.

    Example:
        >>> a, b = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([[3.0, 0.0], [0.0, 3.0]])
        >>> print(agreement(a, b))
        0.5
    """
    logits = class_logits("logits", logits)
    other_logits = class_logits("other_logits", other_logits)
    checks.same_shape(logits=logits, other_logits=other_logits)
    same = arguments.hit(logits, jnp.argmax(other_logits, axis=-1))
    same = jnp.where(jnp.any(jnp.isnan(other_logits), axis=-1), jnp.nan, same)
    return arguments.weighted_mean(same, weights)


def predictive_entropy(logits: Float[Array, "B C"]) -> Float[Array, " B"]:
    """Entropy of each predicted distribution in nats, [B].

    Example:
        >>> predictive_entropy(jnp.array([[0.0, 0.0], [0.0, -jnp.inf]])).round(4)
        Array([0.6931, 0.    ], dtype=float32)
    """
    log_p = jax.nn.log_softmax(class_logits("logits", logits))
    impossible = jnp.isneginf(log_p)
    return jnp.sum(jnp.exp(log_p) * jnp.where(impossible, 0.0, -log_p), axis=-1)
