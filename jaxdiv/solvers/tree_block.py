r"""Blocks whose dependencies form a forest, and their linear systems by message passing.

Let the graph of a symmetric positive definite matrix H have no cycle, p(i) be the parent of variable i and
w_i = H_{i,p(i)}. Messages from the leaves to the roots eliminate one variable at a time, and a pass back substitutes:

    D_p <- D_p - w_i² / D_i,    r_p <- r_p - w_i r_i / D_i        children first
    d_i = (r_i - w_i d_p) / D_i                                   parents first

which solves H d = r with k variables in O(k), where a dense factorization takes O(k³): exact Newton or matrix updates
of huge blocks. A graph with cycles is cut into few such blocks greedily.

References:
    Nutini, Laradji, Schmidt (2022), Let's make block coordinate descent converge faster.
    Shental, Siegel, Wolf, Bickson, Dolev (2008), Gaussian belief propagation solver for systems of linear equations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiv.core import checks


class TreeBlock(NamedTuple):
    """A block of variables whose graph is a forest.

    Attributes:
        nodes: Variables, parents before their children. [k]
        parent: Position in `nodes` of each one's parent; -1 for a root. [k]
    """

    nodes: np.ndarray
    parent: np.ndarray


def tree_blocks(adjacency: ArrayLike) -> tuple[TreeBlock, ...]:
    """Cuts a graph into blocks without cycles, each as large as a greedy pass makes it.

    Args:
        adjacency: Symmetric [n, n]; an entry that is not 0 is an edge, the diagonal does not count. Concrete.

    Returns:
        Blocks that partition the variables; one alone if the graph has no cycle.

    Raises:
        ValueError: If `adjacency` is traced, not square or not symmetric.

    Note:
        Runs on the host. A variable joins a block if all its neighbors there lie in different trees; the order is that
        of the variables, so that a grid gives combs.

    Example:
        >>> ring = np.roll(np.eye(4), 1, 1) + np.roll(np.eye(4), -1, 1)
        >>> [block.nodes.tolist() for block in tree_blocks(ring)]
        [[0, 1, 2], [3]]
    """
    if not checks.concrete(adjacency):
        raise ValueError("adjacency must be concrete; got a traced array; choose blocks outside of jit.")
    edges = np.asarray(adjacency) != 0
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1] or not np.array_equal(edges, edges.T):
        raise ValueError(
            f"adjacency must be square and symmetric; got shape {edges.shape}; add its transpose."
        )
    np.fill_diagonal(edges := edges.copy(), False)
    waiting, blocks = list(range(len(edges))), []
    while waiting:
        tree: dict[int, int] = {}
        left = []
        for node in waiting:
            met = [tree[other] for other in np.flatnonzero(edges[node]).tolist() if other in tree]
            if len(set(met)) < len(met):
                left.append(node)
                continue
            tree = {other: node if label in met else label for other, label in tree.items()} | {node: node}
        blocks.append(_ordered(edges, list(tree)))
        waiting = left
    return tuple(blocks)


def _ordered(edges: np.ndarray, members: list[int]) -> TreeBlock:
    """A forest in the order of a search from its roots."""
    inside = set(members)
    nodes: list[int] = []
    parent: list[int] = []
    for root in members:
        if root not in inside:
            continue
        stack = [(root, -1)]
        inside.discard(root)
        while stack:
            node, above = stack.pop()
            nodes.append(node)
            parent.append(above)
            below = [int(other) for other in np.flatnonzero(edges[node]) if other in inside]
            inside.difference_update(below)
            stack.extend((other, len(nodes) - 1) for other in below)
    return TreeBlock(np.array(nodes, np.int32), np.array(parent, np.int32))


def tree_solve(
    diagonal: Float[Array, " k"], coupling: Float[Array, " k"], rhs: Float[Array, " k"], parent: ArrayLike
) -> Float[Array, " k"]:
    """Solves H d = r on a forest.

    Args:
        diagonal: Of H.
        coupling: w, the entry of H between each variable and its parent; not read at a root.
        rhs: r.
        parent: Position of each variable's parent, before its own; -1 for a root. ``arange(k) - 1`` is a chain, whose H
            is tridiagonal.

    Returns:
        d, in float32 or float64. Differentiable.

    Raises:
        ValueError: If the shapes differ, an array is not floating, or a concrete parent does not come before its child.

    Note:
        No pivots: H must be positive definite, or diagonally dominant. The passes are sequential.

    References:
        Shental et al. (2008), Gaussian belief propagation solver for systems of linear equations.

    Example:
        >>> chain = jnp.arange(3) - 1
        >>> tree_solve(jnp.full(3, 2.0), jnp.full(3, -1.0), jnp.array([1.0, 0.0, 1.0]), chain).round(3).tolist()
        [1.0, 1.0, 1.0]
    """
    diagonal, coupling, rhs = (
        checks.floating(name, x) for name, x in (("diagonal", diagonal), ("coupling", coupling), ("rhs", rhs))
    )
    checks.rank("rhs", rhs, 1)
    parents = checks.integers("parent", parent)
    checks.same_shape(diagonal=diagonal, coupling=coupling, rhs=rhs, parent=parents)
    k = rhs.size
    if checks.concrete(parent) and np.any(np.asarray(parent) >= np.arange(k)):
        raise ValueError(
            "parent must come before its children; got a later one; order them as tree_blocks does."
        )
    root = parents < 0
    coupling = jnp.where(root, 0.0, coupling)
    above = jnp.where(root, 0, parents)

    def gather(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        d, r = carry
        ratio = coupling[i] / d[i]
        return (d.at[above[i]].add(-coupling[i] * ratio), r.at[above[i]].add(-ratio * r[i])), None

    (pivots, reduced), _ = jax.lax.scan(gather, (diagonal, rhs), jnp.arange(k), reverse=True)

    def spread(out: Array, i: Array) -> tuple[Array, None]:
        return out.at[i].set((reduced[i] - coupling[i] * out[above[i]]) / pivots[i]), None

    return jax.lax.scan(spread, jnp.zeros_like(reduced), jnp.arange(k))[0]
