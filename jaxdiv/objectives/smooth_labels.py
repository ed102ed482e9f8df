"""Label smoothing: mixes the targets with the uniform distribution, ``(1 - alpha) y + alpha / C``.

References:
    Szegedy et al. (2016), Rethinking the Inception Architecture for Computer Vision, sec. 7.
"""

import optax

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params
from jaxdiv.objectives.record import Link, Record, select, stateless
from jaxdiv.objectives.targets import as_distributions


def smooth_labels(alpha: Numeric = 0.1, *, output: str = "logits") -> Link:
    """Smooths the targets; stands after `forward`, whose output gives the number of classes.

    Args:
        alpha: Mass of the uniform distribution, in [0, 1].
        output: The output whose last axis holds the classes.

    Returns:
        A stateless link that turns integer labels or distributions into smoothed distributions.

    Raises:
        ValueError: If output or targets are missing, or the targets are neither labels nor distributions.

    Example:
        >>> from jaxdiv import objectives
        >>> record = objectives.from_batch({"inputs": jnp.ones((1, 2)), "targets": jnp.array([0])})
        >>> record = record._replace(outputs={"logits": jnp.zeros((1, 4))})
        >>> record, _ = objectives.smooth_labels(0.4).update(None, (), record, None)
        >>> bool(jnp.allclose(record.targets, jnp.array([0.7, 0.1, 0.1, 0.1])))
        True
    """
    checks.in_range("alpha", alpha, 0.0, 1.0)

    def update(params: Params, record: Record, key: Key | None) -> Record:
        logits = select("smooth_labels", record, output)
        targets = select("smooth_labels", record, "targets")
        hard = as_distributions("smooth_labels", targets, logits)
        return record._replace(targets=optax.smooth_labels(hard, alpha))

    return stateless(update)
