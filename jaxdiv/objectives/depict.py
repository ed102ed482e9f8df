"""DEPICT: clusters learned from targets that the clean path sets and the noisy path is to meet.

With p the soft assignments of the clean encoder, q = `losses.depict_targets` of them, p~ those of the noisy
encoder, z^l the clean layers and r^l the decoder's,

    L = -(1/N) sum_i sum_k q_ik log p~_ik + (1/N) sum_i sum_l c_l |z_i^l - r_i^l|^2 / dim z^l

where q is a constant; c_l = 1 in the paper, c_l = 0.1 for hidden layers in the authors' implementation. The
two alternate: q is set from the predictions of the last pass over the data, then the parameters move through
one pass. Here every example remembers the clean prediction of its last visit, from which a visit takes its
target, under the cluster frequencies of the whole memory.

References:
    Dizaji, Herandi, Deng, Cai, Huang (2017), Deep clustering via joint convolutional autoencoder embedding
    and relative entropy minimization, section 3. The memory is that of the
    authors' implementation, https://github.com/herandy/DEPICT.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv import core, losses
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Params
from jaxdiv.objectives import memory as memories
from jaxdiv.objectives.loss import loss
from jaxdiv.objectives.memory import Memory
from jaxdiv.objectives.record import Link, Option, Record, require_index, select
from jaxdiv.objectives.targets import as_distributions


def depict(num_samples: int, *, prior_weight: Numeric = 1.0, output: str = "clean_logits") -> Link:
    """Sets the targets from the clean predictions of each example's last visit.

    Args:
        num_samples: Size N of the data set that ``batch["index"]`` points into.
        prior_weight: Weight of the prior that all clusters are equally frequent, >= 0; 0 is
            self-training without it, in which clusters run empty.
        output: The output that holds the clean path's logits [B, K].

    Returns:
        A target link; it stands after `forward` and before the loss. Until an example has been visited its
        target stays the batch's: a first clustering, such as the labels of k-means. In evaluation
        (``key=None``) targets are those of the current predictions under the memory's frequencies, and
        neither index nor first clustering is needed. The memory takes N x K values, and each update sums
        over it.

    Raises:
        ValueError: If the batch has no index, output or targets are missing, the targets are neither
            labels nor distributions, or the prior weight is negative.

    Example:
        >>> from jaxdiv import losses, nn, objectives
        >>> from flax import nnx
        >>> model = nn.CorruptedAutoencoder((64, 64, 10), 10, rngs=nnx.Rngs(0))
        >>> objective = objectives.chain(
        ...     objectives.forward(model),
        ...     objectives.depict(1797),
        ...     objectives.loss(losses.cross_entropy, name="clustering"),
        ...     objectives.layer_reconstruction(),
        ...     objectives.mean(),
        ... )
    """
    checks.in_range("prior_weight", prior_weight, 0.0, open_high=True)

    def init(params: Params, record: Record, key: Key) -> Memory:
        logits = select("depict", record, output)
        return memories.empty(num_samples, 1, logits.shape[1:], jnp.dtype(jnp.float32))

    def update(params: Params, state: Memory, record: Record, key: Key | None) -> tuple[Record, Memory]:
        logits = checks.floating(f"link depict: {output}", select("depict", record, output))
        logits = jax.lax.stop_gradient(logits)
        visited = (state.visits > 0)[:, None]
        log_frequency = core.logsumexp(state.table[:, 0], 0, where=visited)

        def targets_of(log_p: Float[Array, "B K"]) -> Float[Array, "B K"]:
            return losses.depict_targets(
                log_p.astype(logits.dtype), prior_weight=prior_weight, log_frequency=log_frequency
            )

        if key is None:
            return record._replace(targets=targets_of(logits)), state
        index = require_index("depict", record)
        targets = as_distributions("depict", select("depict", record, "targets"), logits)
        past, known = memories.read(state, index)
        # An index out of range spoils its row, but padding may bear any index.
        known &= record.weights != 0
        targets = jnp.where(known[:, None], targets_of(past), targets)
        predictions = jax.nn.log_softmax(logits, axis=-1)
        return record._replace(targets=targets), memories.write(state, index, predictions, record.weights)

    return Link(init, update)


def layer_reconstruction(
    *,
    name: str = "reconstruction",
    weight: Option = 1.0,
    hidden_weight: Numeric = 1.0,
    output: str = "reconstruction",
    target: str = "clean",
) -> Link:
    """Adds the squared error of every layer's reconstruction, averaged over its units, to the losses.

    Args:
        name: Name of the loss.
        weight: A number, a traced scalar, or an optax schedule of this link's updates.
        hidden_weight: Weight of each layer but the first, beside that of the first.
        output: The reconstructions, a sequence of layers [B, ...], the input's first; or an array.
        target: What they reconstruct, of the same structure. The gradient passes both.

    Returns:
        A loss link; it stands before the reduction.

    Raises:
        ValueError: If a field is missing, or structures or shapes differ.

    Example:
        >>> from jaxdiv import objectives
        >>> link = objectives.layer_reconstruction(hidden_weight=0.1)
    """

    def errors(reconstruction: Any, clean: Any) -> Float[Array, " B"]:
        first, *hidden = jax.tree.leaves(jax.tree.map(losses.squared_error, reconstruction, clean))
        return first + hidden_weight * sum(hidden, jnp.zeros_like(first))

    return loss(errors, name=name, weight=weight, output=output, target=target)
