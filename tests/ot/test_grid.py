"""Grids: the same numbers as the cost matrix, derivatives included, in the memory of a few vectors."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import ot
from jaxdiv.ot.geometry import mean_cost

RNG = np.random.default_rng(21)
X = (RNG.random(3), np.sort(RNG.random(4)), np.array([0.0, 0.5]))
Y = (RNG.random(2), RNG.random(3), RNG.random(2))
COSTS = (ot.SqEuclidean(), ot.Euclidean(), ot.PNorm(1.5))
N, M = 24, 12
F, G = RNG.normal(size=N) / 5, RNG.normal(size=M) / 5


def weights(n, absent):
    """Random weights, absent at places and along a whole line."""
    w = RNG.random(n)
    w[absent] = 0
    return w / w.sum()


A, B = weights(N, np.r_[3, 8:16]), weights(M, np.r_[0:6, 9])
V, U = RNG.normal(size=(M, 2)), RNG.normal(size=N)


def grid(x, y=Y, cost=COSTS):
    return ot.Grid(x, y, cost, dense_limit=0)


def reduce_all(x, y, f, g, a, b, epsilon, whole=False):
    geometry = grid(x, y)
    geometry = ot.CostMatrix(geometry.cost_matrix()) if whole else geometry
    return (
        geometry.softmin(g, b, epsilon, 1),
        geometry.softmin(f, a, epsilon, 0),
        geometry.apply(f - 0.3, g, epsilon, V, 1),
        geometry.apply(f - 0.3, g, epsilon, U, 0),
    )


def differentiate_all(*args, whole=False):
    """The reductions, and the derivatives of a generic function of them by everything."""

    def total(*args):
        out = reduce_all(*args, whole=whole)
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in out), out

    grads, values = jax.grad(total, tuple(range(7)), has_aux=True)(*args)
    return values, grads


reductions = jax.jit(reduce_all)
gradients = jax.jit(differentiate_all, static_argnames="whole")


@functools.partial(jax.jit, static_argnames="limit")
def solved(x, a, b, epsilon, limit):
    solver = ot.Sinkhorn(tol=1e-12, max_steps=2000)

    def value(x, a, b):
        out = ot.solve(ot.Grid(x, Y, COSTS, dense_limit=limit), a, b, epsilon=epsilon, solver=solver)
        moved = out.apply(V)
        results = {"cost": out.dual, "f": out.f, "moved": moved, "status": out.status}
        return out.cost + jnp.sum(jnp.sin(moved)), results

    return jax.value_and_grad(value, (0, 1, 2), has_aux=True)(x, a, b)


class TestReductions:
    def test_costs_add_up(self):
        """By hand, from the points in row-major order."""
        x, y = (np.stack(np.meshgrid(*z, indexing="ij"), -1).reshape(-1, 3) for z in (X, Y))
        gap = np.abs(x[:, None] - y)
        with jax.enable_x64(True):
            geometry = grid(X)
            cost = jax.jit(ot.Grid.cost_matrix)(geometry)
            back = jax.jit(ot.Grid.cost_matrix)(geometry.transpose())
        assert geometry.shape == (N, M)
        np.testing.assert_allclose(cost, gap[..., 0] ** 2 + gap[..., 1] + gap[..., 2] ** 1.5, rtol=1e-13)
        np.testing.assert_array_equal(back, cost.T)

    @pytest.mark.parametrize("epsilon", [1.0, 0.05, 2e-3])
    def test_equal_those_of_the_cost_matrix(self, epsilon):
        """Values, and derivatives by axes, potentials, weights (of 0 as well) and epsilon."""
        args = (X, Y, F, G, A, B, epsilon)
        with jax.enable_x64(True):
            both = (jax.tree.leaves(gradients(*args, whole=whole)) for whole in (False, True))
            for ours, whole in zip(*both, strict=True):
                np.testing.assert_allclose(ours, whole, rtol=1e-9, atol=1e-9 * (1 + np.abs(whole).max()))

    def test_may_be_built_of_constants_while_tracing(self):
        axis = jnp.linspace(0.0, 1.0, 3)
        np.testing.assert_allclose(jax.jit(lambda: ot.Grid((axis, axis)).cost_matrix()[0, -1])(), 2.0)

    def test_no_weight_at_all(self):
        values = reductions(X, Y, F, G, 0 * A, 0 * B, 0.1)
        assert np.all(np.isposinf(values[0]))
        assert np.all(np.isposinf(values[1]))

    def test_small_epsilon_in_float32(self):
        """exp(-C / epsilon) is 0 nearly everywhere; the softmin is within epsilon log(M / min b) of a minimum."""
        values, grads = gradients(X, Y, F, G, A, B, 1e-5)
        cost = np.asarray(grid(X).cost_matrix())
        np.testing.assert_allclose(values[0], np.min((cost - G)[:, B > 0], 1), atol=1e-4)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))

    def test_blocks_change_nothing(self, monkeypatch):
        expected = gradients(X, Y, F, G, A, B, 0.05)
        module = sys.modules[ot.Grid.__module__]
        monkeypatch.setattr(module, "_HELD", 40)
        monkeypatch.setattr(module, "BLOCK_LIMIT", 5 * M)
        streamed = jax.jit(lambda *args: differentiate_all(*args))(X, Y, F, G, A, B, 0.05)
        rows = jax.jit(lambda f: grid(X).map_rows(lambda cost, f: (cost @ G, f), f))(F)
        chex.assert_trees_all_close(streamed, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rows[0], np.asarray(grid(X).cost_matrix()) @ G, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rows[1], F, rtol=1e-6)

    def test_means_and_sums_of_costs(self):
        kernel = jax.jit(lambda v, axis: grid(X).apply_costs(F, G, 0.5, v, axis), static_argnums=1)
        with jax.enable_x64(True):
            cost = np.asarray(grid(X).cost_matrix())
            matrix = cost * np.exp((F[:, None] + G - cost) / 0.5)
            np.testing.assert_allclose(kernel(V, 1), matrix @ V, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(kernel(U, 0), matrix.T @ U, rtol=1e-10, atol=1e-12)
            for geometry in (grid(X), grid(X, cost=ot.NegDotProduct())):
                mean = jax.jit(ot.Grid.mean_cost)(geometry, A, B)
                np.testing.assert_allclose(mean, jax.jit(mean_cost)(geometry, A, B), rtol=1e-12)

    def test_a_cost_with_an_array_serves_every_axis(self):
        metric = np.float32([[2.0]])
        whole = ot.Grid(X, Y, ot.Mahalanobis(metric)).cost_matrix()
        twice = ot.Grid(X, Y, (ot.Mahalanobis(metric),) * 3).cost_matrix()
        plain = ot.Grid(X, Y, ot.SqEuclidean()).cost_matrix()
        np.testing.assert_array_equal(whole, twice)
        assert np.ptp(whole / plain) < 1e-5


class TestSolve:
    @pytest.mark.parametrize("epsilon", [0.3, 0.03])
    def test_equals_the_cost_matrix(self, epsilon):
        """Value, potentials, and the derivatives of a function of the plan."""
        with jax.enable_x64(True):
            (_, ours), grads = solved(X, A, B, epsilon, 0)
            (_, whole), expected = solved(X, A, B, epsilon, 2**20)
        assert ours["status"] == 0
        chex.assert_trees_all_close(ours, whole, rtol=1e-8, atol=1e-9)
        chex.assert_trees_all_close(grads[0], expected[0], rtol=1e-6, atol=1e-8)
        for one, other, w in zip(grads[1:], expected[1:], (A, B), strict=True):
            # Up to the constant by which all weights may grow together.
            np.testing.assert_allclose(*(np.asarray(z) - np.vdot(w, z) for z in (one, other)), atol=1e-7)

    def test_vmap_over_images(self):
        axis = jnp.linspace(0.0, 1.0, 5)
        geometry = ot.Grid((axis, axis), dense_limit=0)
        a = jnp.asarray(RNG.dirichlet(np.ones(25), 3), jnp.float32)

        def cost(a):
            return ot.solve(geometry, a, jnp.full(25, 1 / 25), epsilon=0.1).cost

        many = jax.jit(jax.vmap(cost))(a)
        np.testing.assert_allclose(many, [jax.jit(cost)(row) for row in a], rtol=1e-4, atol=1e-6)

    def test_memory_grows_with_the_points_not_their_square(self):
        """A step of Sinkhorn and its gradient on 64 x 64 points: the cost matrix would be 67 MB."""
        axis = jnp.linspace(0.0, 1.0, 64)
        geometry, w = ot.Grid((axis, axis)), jnp.full(64 * 64, 1 / 64**2)
        assert geometry.dense() is geometry

        def step(h):
            return jnp.sum(geometry.softmin(geometry.softmin(h, w, 0.01, 1), w, 0.01, 0) ** 2)

        compiled = jax.jit(jax.value_and_grad(step)).lower(w).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2e7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3),), "x must be a tuple"),
        (((),), "x must be a tuple"),
        ((([1, 2],),), "must be floating"),
        (((np.ones((2, 2)),),), r"x\[0\] must have rank 1"),
        (((np.ones(2), np.array([np.nan])),), r"x\[1\] must be finite"),
        (((np.ones(2),), (np.ones(2), np.ones(2))), "as many axes; got 1 and 2"),
        (((np.ones(2),), None, COSTS), "one for each of the 1 axes"),
        (((np.ones(2),), None, COSTS[0], -1), "dense_limit must lie in"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ot.Grid(*arguments)
