"""Tree blocks: message passing against dense solves, acyclic cuts, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import solvers

RNG = np.random.default_rng(0)


def laplacian(side, ridge=0.3):
    """Of a grid, plus a multiple of the identity."""
    path = np.diag(np.ones(side - 1), 1) + np.diag(np.ones(side - 1), -1)
    adjacency = np.kron(np.eye(side), path) + np.kron(path, np.eye(side))
    return np.diag(adjacency.sum(1) + ridge) - adjacency


@pytest.mark.paper(81)
def test_a_chain_is_a_tridiagonal_system():
    off, diagonal, rhs = RNG.normal(size=7), RNG.uniform(3.0, 4.0, 7), RNG.normal(size=7)
    matrix = np.diag(diagonal) + np.diag(off[1:], 1) + np.diag(off[1:], -1)
    with jax.enable_x64(True):
        d = solvers.tree_solve(*map(jnp.asarray, (diagonal, off, rhs)), jnp.arange(7) - 1)
    np.testing.assert_allclose(d, np.linalg.solve(matrix, rhs), rtol=1e-12)


@pytest.mark.paper(81)
def test_blocks_of_a_grid_are_forests_that_solve_like_dense_matrices():
    matrix = laplacian(5)
    blocks = solvers.tree_blocks(matrix)
    np.testing.assert_array_equal(np.sort(np.concatenate([b.nodes for b in blocks])), np.arange(25))
    # The largest induced forest of a grid has about two thirds of it.
    assert len(blocks) <= 3
    assert blocks[0].nodes.size >= 13
    rhs = RNG.normal(size=25)
    for nodes, parent in blocks:
        own = matrix[np.ix_(nodes, nodes)]
        edges = np.count_nonzero(np.triu(own, 1))
        assert edges == np.sum(parent >= 0)
        assert np.all(parent < np.arange(nodes.size))
        coupling = np.where(parent < 0, 0.0, own[np.arange(nodes.size), parent])
        with jax.enable_x64(True):
            got = solvers.tree_solve(*map(jnp.asarray, (np.diag(own), coupling, rhs[nodes], parent)))
        np.testing.assert_allclose(got, np.linalg.solve(own, rhs[nodes]), rtol=1e-10)


@pytest.mark.paper(81)
def test_a_graph_without_cycles_is_one_block_and_a_clique_pairs():
    star = np.zeros((6, 6))
    star[3, :] = star[:, 3] = 1
    (block,) = solvers.tree_blocks(star)
    assert block.nodes.size == 6
    assert [b.nodes.size for b in solvers.tree_blocks(np.ones((5, 5)))] == [2, 2, 1]


def test_derivatives_and_lanes():
    """Of d = H⁻¹ r by r: H⁻¹ v; roots are not read."""
    parent = np.array([-1, 0, 0, 2])
    diagonal, coupling = jnp.array([3.0, 2.0, 4.0, 2.0]), jnp.array([jnp.nan, 1.0, -1.0, 0.5])
    matrix = np.diag(diagonal)
    for i, p in enumerate(parent[1:], 1):
        matrix[i, p] = matrix[p, i] = coupling[i]
    rhs = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    solve = jax.jit(jax.vmap(lambda r: solvers.tree_solve(diagonal, coupling, r, parent)))
    np.testing.assert_allclose(solve(rhs), np.linalg.solve(matrix, np.asarray(rhs).T).T, rtol=1e-5)
    pulled = jax.vjp(solve, rhs)[1](jnp.ones((2, 4)))[0]
    np.testing.assert_allclose(pulled[0], np.linalg.solve(matrix, np.ones(4)), rtol=1e-5)


def test_bad_input():
    ones, chain = jnp.ones(3), jnp.arange(3) - 1
    for call in (
        lambda: solvers.tree_solve(ones, ones, ones, chain + 1),
        lambda: solvers.tree_solve(ones, ones[:2], ones, chain),
        lambda: solvers.tree_solve(ones, ones, ones, ones),
        lambda: solvers.tree_solve(chain, ones, ones, chain),
        lambda: solvers.tree_blocks(np.triu(np.ones((3, 3)))),
        lambda: solvers.tree_blocks(np.ones((3, 2))),
        lambda: jax.jit(lambda a: solvers.tree_blocks(a))(jnp.ones((3, 3))),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
