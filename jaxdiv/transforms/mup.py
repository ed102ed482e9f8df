"""The maximal-update parametrization as factors on initial values and updates of a network of the usual kind.

A kernel [.., in, out] is compared with that of a small base network. With r_in and r_out the growth of its two sides,

    kind of kernel             initial values    updates of SGD    updates of Adam
    grows out (inputs)         1                 r_out             1
    grows in and out (hidden)  1                 r_out / r_in      1 / r_in
    grows in (outputs)         1 / √r_in         1 / r_in          1 / r_in

and vectors (biases, scales) take part like kernels that grow out. The factors of the initial values apply to kernels
drawn with variance ∝ 1/in. A learning rate that is best for the base network is then near the best for the large one.

References:
    Yang, Hu, et al. (2022), Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer,
    table 3. Noci, Meterez, Hofmann, Orvieto (2024), Why do learning rates transfer?
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxdiv.core import checks
from jaxdiv.core.types import Params


class MuPScaling(NamedTuple):
    """Factors for each leaf, relative to the base network.

    Attributes:
        init: On initial values.
        sgd: On the updates of SGD.
        adam: On the updates of Adam and its like, which do not depend on the size of the gradient.
    """

    init: PyTree
    sgd: PyTree
    adam: PyTree


def mup_scaling(params: Params, base: Params) -> MuPScaling:
    """The table of factors, from the shapes alone.

    Args:
        params: Parameters of the network, or their shapes, as from ``jax.eval_shape``.
        base: Those of a network of the same structure and smaller width; equal widths give factors of 1. It may hold
            more than `params`.

    Returns:
        A `MuPScaling` of Python numbers. Kernels are the leaves of rank 2 and more, with the sides in and out last.

    Raises:
        ValueError: If a leaf is not in the base, or of another rank there.

    References:
        Yang, Hu, et al. (2022), table 3.

    Example:
        >>> wide = {"in": jnp.ones((3, 64)), "hidden": jnp.ones((64, 64)), "out": jnp.ones((64, 2))}
        >>> base = {"in": jnp.ones((3, 16)), "hidden": jnp.ones((16, 16)), "out": jnp.ones((16, 2))}
        >>> mup_scaling(wide, base).adam
        {'hidden': 0.25, 'in': 1.0, 'out': 0.25}
    """
    # By path, so that a part of the network, as a mask leaves it, finds its own.
    own = dict(jax.tree_util.tree_flatten_with_path(base)[0])
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    factors = []
    for path, leaf in leaves:
        if path not in own:
            raise ValueError(
                f"base must hold every leaf of params; got none at {jax.tree_util.keystr(path)}."
            )
        factors.append(_factors(jnp.shape(leaf), jnp.shape(own[path])))
    init, sgd, adam = (jax.tree.unflatten(structure, column) for column in (zip(*factors, strict=True)))
    return MuPScaling(init, sgd, adam)


def scale_by_mup(base: Params, *, kind: Literal["sgd", "adam"]) -> optax.GradientTransformation:
    """Scales updates so that one learning rate serves all widths; place it after ``scale_by_adam`` or alone.

    Args:
        base: Parameters, or their shapes, of the network the learning rate was tuned on.
        kind: ``"adam"`` for updates that do not depend on the size of the gradient, ``"sgd"`` for those that follow it.

    Returns:
        A stateless transformation.

    Raises:
        ValueError: If `kind` is unknown; on use, as `mup_scaling`.

    Example:
        >>> base, params = {"out": jnp.ones((16, 2))}, {"out": jnp.ones((64, 2))}
        >>> tx = optax.chain(optax.scale_by_adam(), scale_by_mup(base, kind="adam"), optax.scale(-1e-3))
        >>> update, _ = tx.update(params, tx.init(params))
        >>> round(float(update["out"][0, 0]), 6)
        -0.00025
    """
    checks.one_of("kind", kind, ("sgd", "adam"))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), base)

    def scale(updates: PyTree, params: Params | None = None) -> PyTree:
        factors = getattr(mup_scaling(updates, shapes), kind)

        def of_leaf(update: Array, factor: float) -> Array:
            return update * jnp.asarray(factor, update.dtype)

        return jax.tree.map(of_leaf, updates, factors)

    return optax.stateless(scale)


def _factors(shape: tuple[int, ...], base: tuple[int, ...]) -> tuple[float, float, float]:
    """Factors of one leaf on initial values, SGD and Adam."""
    if len(shape) != len(base):
        raise ValueError(f"base must have leaves of the ranks of params; got shape {base} for {shape}.")
    if not shape:
        return 1.0, 1.0, 1.0
    r_out = shape[-1] / base[-1]
    if len(shape) == 1:
        return 1.0, r_out, 1.0
    r_in = shape[-2] / base[-2]
    only_in = r_in != 1 and r_out == 1
    return 1 / math.sqrt(r_in) if only_in else 1.0, r_out / r_in, 1 / r_in
