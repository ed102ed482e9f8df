"""CS-IB: the information bottleneck for regression under the Cauchy-Schwarz divergence.

With inputs x, targets y, predictions ŷ and the features t = f(x) of the same batch, the link adds the terms

    prediction     D_CS( p(y | x); q(ŷ | x) )
    compression    beta I_CS(x; t)

the conditional Cauchy-Schwarz divergence and the quadratic mutual information, both estimated from Gram
matrices of Gaussian kernels. Neither variational approximation nor noise in the encoder is needed.

References:
    Yu, Yu, Løkse, Jenssen, Príncipe (2024), Cauchy-Schwarz divergence information bottleneck for
    regression, eqs. (10), (13), (18).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv import divergences
from jaxdiv.core.types import Key, Numeric, Params, Scalar
from jaxdiv.objectives.record import Link, Option, Record, add_term, of_present, resolve, select


def cs_ib(
    beta: Option = 0.0,
    *,
    sigma_x: Numeric | None = None,
    sigma_y: Option | None = None,
    sigma_t: Numeric | None = None,
    normalized: bool = False,
    denominator: str = "paper",
    output: str = "logits",
    features: str = "features",
    target: str = "targets",
) -> Link:
    """Adds the conditional divergence of the predictions and the information kept in the features.

    Args:
        beta: Weight of the compression: a number, or an optax schedule of this link's updates.
        sigma_x: Width of the Gaussian kernel on the inputs; by default their median distance in the batch.
        sigma_y: Width on targets and predictions, likewise; a schedule may narrow it over the training.
        sigma_t: Width on the features, likewise.
        normalized: Whether to divide the information by ``sqrt(I(x; x) I(t; t))``, as the released code does.
        denominator: ``"paper"`` or ``"code"``, see `jaxdiv.divergences.conditional_cs`.
        output: The predictions, [B] or [B, ...].
        features: The bottleneck, [B, ...].
        target: The targets, of the predictions' shape up to an axis of length 1.

    Returns:
        A link that stands after `forward`, needs no reduction, and counts its updates.

    Raises:
        ValueError: If a field is missing, an array is not floating, or predictions and targets do not match.

    Note:
        Kernels have no gradient far from the data: normalize the inputs, and start from small outputs
        (`jaxdiv.nn.MLP`'s ``output_scale``) or from a wide `sigma_y`. The cost is quadratic in the batch.

    Example:
        >>> import jax
        >>> from jaxdiv import objectives
        >>> model = lambda params, state, x, key: ({"features": x, "logits": x @ params}, state)
        >>> objective = objectives.chain(objectives.forward(model), objectives.cs_ib(0.1))
        >>> batch = {"inputs": jnp.eye(4), "targets": jnp.arange(4.0)}
        >>> params = jnp.arange(4.0)
        >>> state = objective.init(params, batch, jax.random.key(0))
        >>> value, (state, aux) = objective.apply(params, state, batch, jax.random.key(1))
        >>> sorted(aux["terms"]), float(aux["terms"]["prediction"])
        (['compression', 'prediction'], 0.0)
    """

    def update(
        params: Params, count: Int[Array, ""], record: Record, key: Key | None
    ) -> tuple[Record, Int[Array, ""]]:
        x, y, y_hat, t = (
            _rows(jnp.asarray(select("cs_ib", record, name))) for name in ("inputs", target, output, features)
        )
        width = None if sigma_y is None else resolve(sigma_y, count)

        def estimates(weights: Float[Array, " B"]) -> tuple[Scalar, Scalar]:
            prediction = divergences.conditional_cs(
                x, y, y_hat, sigma_x=sigma_x, sigma_y=width, denominator=denominator, weights=weights
            )
            information = divergences.cs_qmi(
                x, t, sigma_x=sigma_x, sigma_t=sigma_t, normalized=normalized, weights=weights
            )
            return prediction, information

        prediction, information = of_present(estimates, record.weights)
        record = add_term("cs_ib", record, "prediction", prediction)
        record = add_term("cs_ib", record, "compression", resolve(beta, count) * information)
        return record, count + 1

    return Link(init=lambda params, record, key: jnp.zeros((), jnp.int32), update=update)


def _rows(x: Float[Array, "B *d"]) -> Float[Array, "B n"]:
    """One row per example; [B] is a single column."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
