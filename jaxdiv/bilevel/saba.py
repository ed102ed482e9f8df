"""SABA: SOBA with a SAGA table for each of its five quantities.

The directions of `soba` are taken on one block of the examples of either loss and corrected by tables of what the five
parts ∂G/∂y, H v, J v, ∂F/∂x and ∂F/∂y were at each block's last draw. Their variance vanishes as (x, y, v) settles, so
that constant steps converge, linearly where Φ satisfies a Polyak-Łojasiewicz inequality.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, section 3.2. The tables are 0 at first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, report
from jaxdiv.bilevel.joint import Directions, Joint, JointState
from jaxdiv.bilevel.problem import Data, Problem
from jaxdiv.bilevel.saga import Table, saga, table
from jaxdiv.bilevel.sampler import count, rows
from jaxdiv.core.types import Key


class SabaState(NamedTuple):
    """What SABA remembers.

    Attributes:
        joint: v and the states of the three transforms.
        inner: Table of (∂G/∂y, H v, J v) on the blocks of the inner examples.
        outer: Table of (∂F/∂x, ∂F/∂y) on those of the outer.
    """

    joint: JointState
    inner: Table
    outer: Table


def saba(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    inner_size: int | None = None,
    outer_size: int | None = None,
    adjoint_tx: optax.GradientTransformation | None = None,
) -> Algorithm:
    """Single-loop bilevel optimization with variance reduction.

    It takes no sampler: the tables need fixed blocks of consecutive examples, of which each step draws one of either
    loss uniformly. They hold as many numbers as x and twice y for each inner block, as x and y for each outer one.

    Args:
        problem: The problem.
        inner_tx: Moves y along the direction of ∂G/∂y. Constant steps serve.
        outer_tx: Moves x along its direction.
        inner_size: Examples in a block of the inner loss; all by default. Must divide their number.
        outer_size: Examples in a block of the outer loss, alike.
        adjoint_tx: Moves v along its direction; like `inner_tx` by default.

    Returns:
        ``(init, step)``; a step takes two gradients and one product.

    Raises:
        ValueError: If a size does not divide the number of examples.

    References:
        Dagréou, Ablin, Vaiter, Moreau (2022), section 3.2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdiv import bilevel
        >>> problem = bilevel.problem(
        ...     lambda x, y, batch: jnp.mean((y - x - batch[:, None]) ** 2),
        ...     lambda x, y, batch: jnp.mean((y - batch[:, None]) ** 2),
        ... )
        >>> data = bilevel.Data(jnp.linspace(-1.0, 1.0, 8), jnp.arange(4.0))
        >>> init, step = bilevel.saba(problem, optax.sgd(0.2), optax.sgd(0.05), inner_size=1, outer_size=2)
        >>> state = init(jnp.zeros(2), jnp.zeros(2), data, jax.random.key(0))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, data), state, length=1000)
        >>> state.outer.round(2)
        Array([1.5, 1.5], dtype=float32)
    """
    joint = Joint(inner_tx, inner_tx if adjoint_tx is None else adjoint_tx, outer_tx)

    def pick(data: Data, key: Key) -> tuple[tuple[Array, Array], Data]:
        """The numbers of the blocks, and the examples in them."""
        keys = jax.random.split(key)
        i, inner = _block("inner", data.inner, inner_size, keys[0])
        j, outer = _block("outer", data.outer, outer_size, keys[1])
        return (i, j), Data(inner, outer)

    def start(draws: Draws, x: PyTree, y: PyTree) -> SabaState:
        state = joint.init(x, y)
        inner = table(_blocks("inner", draws.data.inner, inner_size), (y, state.adjoint, x))
        outer = table(_blocks("outer", draws.data.outer, outer_size), (x, y))
        return SabaState(state, inner, outer)

    def advance(
        draws: Draws, x: PyTree, y: PyTree, extra: SabaState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, SabaState, Info]:
        (i, j), batch = pick(draws.data, draws.key)
        losses = draws.on(batch, jax.random.fold_in(draws.key, 0))
        value, of_outer = losses.outer_gradients(x, y)
        g_y, product = losses.inner_products(x, y)
        (g_y, h_v, j_v), inner = saga(extra.inner, i, (g_y, *product(extra.joint.adjoint)))
        (f_x, f_y), outer = saga(extra.outer, j, of_outer)

        along = Directions(g_y, optax.tree.sub(h_v, f_y), optax.tree.sub(f_x, j_v))
        x, y, state = joint.move(x, y, extra.joint, along)
        return x, y, SabaState(state, inner, outer), report(value, along.outer, gradients=2, products=1)

    # The sampler serves losses with a memory.
    return algorithm(problem, lambda data, key: pick(data, key)[1], start, advance)


def _blocks(name: str, data: PyTree, size: int | None) -> int:
    if size is None:
        return 1
    examples = count(data)
    if size < 1 or examples % size:
        raise ValueError(
            f"{name}_size must divide the number of examples, {examples}; got {size}; leave some examples out."
        )
    return examples // size


def _block(name: str, data: PyTree, size: int | None, key: Key) -> tuple[Int[Array, ""], PyTree]:
    if size is None:
        return jnp.zeros((), jnp.int32), data
    i = jax.random.randint(key, (), 0, _blocks(name, data, size))
    return i, rows(data, i * size + jnp.arange(size))
