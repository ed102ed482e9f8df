"""Mixup: train on convex combinations of pairs of examples and of their targets.

    x~ = lam x_i + (1 - lam) x_j,   y~ = lam y_i + (1 - lam) y_j,   lam ~ Beta(alpha, alpha)

with j a random permutation of the batch and one `lam` per batch.

References:
    Zhang, Cisse, Dauphin, Lopez-Paz (2018), mixup: Beyond Empirical Risk Minimization, eq. (1).
"""

import jax
import jax.numpy as jnp

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params
from jaxdiv.objectives.record import Link, Record, stateless
from jaxdiv.objectives.targets import one_hot


def mixup(alpha: Numeric = 0.2, *, num_classes: int | None = None) -> Link:
    """Mixes inputs and targets of random pairs; stands before `forward`.

    Args:
        alpha: Concentration of the Beta distribution, > 0; the paper uses 0.1 to 0.4 on ImageNet.
        num_classes: Needed for integer targets, which become distributions [B, num_classes].

    Returns:
        A stateless link. A mixed example weighs ``lam w_i + (1 - lam) w_j``. Padding (weight 0) stays
        padding, and an example whose partner is padding stays as it is. In evaluation (``key=None``) nothing
        is mixed.

    Raises:
        ValueError: If targets are integers and `num_classes` is not given, or inputs are integers.

    Example:
        >>> import jax
        >>> from jaxdiv import objectives
        >>> link = objectives.mixup(0.4, num_classes=3)
        >>> batch = {"inputs": jnp.eye(2), "targets": jnp.array([0, 2])}
        >>> record, _ = link.update(None, (), objectives.from_batch(batch), jax.random.key(0))
        >>> record.targets.shape, bool(jnp.allclose(record.targets.sum(-1), 1.0))
        ((2, 3), True)
    """
    checks.in_range("alpha", alpha, 0.0, open_low=True)

    def update(params: Params, record: Record, key: Key | None) -> Record:
        targets = record.targets
        floats = [
            leaf.dtype for leaf in jax.tree.leaves(record.inputs) if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        dtype = jnp.result_type(jnp.float32, *floats)
        if any(jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.integer) for leaf in jax.tree.leaves(targets)):
            if num_classes is None or not hasattr(targets, "dtype"):
                raise ValueError(
                    "link mixup cannot mix integer targets; pass num_classes= to mix their one-hot rows."
                )
            targets = one_hot(targets, num_classes, dtype)
        if key is None:
            return record._replace(targets=targets)
        key_lam, key_perm = jax.random.split(key)
        # Beta(alpha, alpha) as an entry of Dirichlet(alpha, alpha), whose gammas compile to a single loop.
        lam = jax.random.dirichlet(key_lam, jnp.full(2, alpha, dtype), dtype=dtype)[0]
        size = record.weights.shape[0]
        partner = jax.random.permutation(key_perm, size)
        alone = (record.weights == 0) | (record.weights[partner] == 0)
        partner = jnp.where(alone, jnp.arange(size), partner)

        def mix(leaf: jax.Array) -> jax.Array:
            raised = checks.floating("link mixup: inputs", leaf)
            return (lam * raised + (1 - lam) * raised[partner]).astype(leaf.dtype)

        return record._replace(
            inputs=jax.tree.map(mix, record.inputs),
            targets=jax.tree.map(mix, targets),
            weights=lam * record.weights + (1 - lam) * record.weights[partner],
        )

    return stateless(update)
