"""Quadratic, cardinality-constrained and group-sparse transport: linear programs, POT, scipy, differences."""

import dataclasses
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.optimize

from jaxdiv import ot
from jaxdiv.core import Status

RNG = np.random.default_rng(1)
N, M = 7, 5
X, Y = RNG.normal(size=(N, 2)), RNG.normal(size=(M, 2)) + 1.0
A, B = RNG.dirichlet(np.full(N, 5.0)), RNG.dirichlet(np.full(M, 5.0))
COST = ((X[:, None] - Y) ** 2).sum(-1)
GROUPS = np.array([0, 0, 0, 1, 1, 2, 2])
GAMMA = 2.0
SEMI, DUAL = ot.SemiDual(tol=1e-12), ot.Dual(tol=1e-12)


@jax.jit
def solved(cost, a, b, regularizer, solver):
    out = ot.solve(ot.CostMatrix(cost), a, b, regularizer=regularizer, solver=solver)
    return {
        "plan": out.plan(),
        "cost": out.cost,
        "error": out.error,
        "status": out.status,
    }


def in64(regularizer, solver=SEMI, cost=COST, a=A, b=B):
    """A solution in float64, of numpy arrays."""
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, jnp.float64) for x in (cost, a, b))
        return jax.tree.map(np.asarray, solved(*arrays, regularizer, solver))


def quadratic(plan, cost=COST, gamma=GAMMA):
    return (plan * cost).sum() + 0.5 * gamma * (plan**2).sum()


@pytest.mark.paper(106)
class TestTopK:
    def test_one_entry_per_column_is_unregularized_transport(self):
        """k = 1 on equal weights: the assignment, at W + gamma/2 sum b^2."""
        square = np.random.default_rng(0).normal(size=(N, N))
        uniform = np.full(N, 1 / N)
        rows, columns = scipy.optimize.linear_sum_assignment(square)
        best = np.zeros((N, N))
        best[rows, columns] = 1 / N
        for solver in (SEMI, DUAL):
            out = in64(ot.TopK(GAMMA, 1), solver, square, uniform, uniform)
            assert out["status"] == Status.CONVERGED
            np.testing.assert_allclose(out["cost"], (best * square).sum() + GAMMA / 2 / N, rtol=1e-10)
            np.testing.assert_allclose(out["plan"], best, atol=1e-10)

    def test_one_entry_per_column_has_the_value_of_the_linear_program(self):
        """For other weights no such plan need exist; the dual's value is W + gamma/2 sum b^2 all the same."""
        expected = pot.emd2(A, B, COST) + GAMMA / 2 * (B**2).sum()
        out = in64(ot.TopK(GAMMA, 1))
        assert out["status"] == Status.STALLED
        np.testing.assert_allclose(out["cost"], expected, rtol=1e-10)

    def test_all_entries_is_quadratic(self):
        expected = in64(ot.Quadratic(GAMMA))
        for k in (N + 3, 5):  # no column of the quadratic plan has more than 5 entries
            out = in64(ot.TopK(GAMMA, k))
            np.testing.assert_allclose(out["plan"], expected["plan"], atol=1e-10)
            np.testing.assert_allclose(out["cost"], expected["cost"], rtol=1e-12)
        assert (expected["plan"] > 0).sum(0).max() == 5

    def test_semi_dual_equals_dual(self):
        for k in (2, 5):
            semi, dual = in64(ot.TopK(GAMMA, k)), in64(ot.TopK(GAMMA, k), DUAL)
            np.testing.assert_allclose(semi["cost"], dual["cost"], rtol=1e-8)
        np.testing.assert_allclose(semi["plan"], dual["plan"], atol=1e-10)

    def test_cardinality_is_exact_and_the_value_falls_with_k(self):
        costs = []
        for k, solver in ((1, SEMI), (2, DUAL), (2, SEMI), (5, SEMI)):
            out = in64(ot.TopK(10.0, k), solver)
            assert (out["plan"] != 0).sum(0).max() <= k
            assert out["plan"].min() >= 0
            costs.append(out["cost"])
        assert np.all(np.diff(costs) <= 1e-6)
        assert costs[0] - costs[-1] > 0.1

    def test_ties_end_stalled_with_the_error_of_the_plan(self):
        out = in64(ot.TopK(10.0, 2))
        error = abs(out["plan"].sum(1) - A).sum() + abs(out["plan"].sum(0) - B).sum()
        assert out["status"] == Status.STALLED
        np.testing.assert_allclose(out["error"], error, rtol=1e-6)
        assert error > 1e-3

    def test_conjugates_by_hand(self):
        """s = (3, 1, 2), gamma = 1/2: of 3t - t^2/4 and so on; mass 1 over (3, 2) leaves (1, 0), 3 - 1/4."""
        top = ot.TopK(0.5, 2)
        s = jnp.array([[3.0, 1.0, 2.0], [-1.0, -3.0, -jnp.inf]])
        np.testing.assert_allclose(top.conjugate(s), [13.0, 0.0])
        np.testing.assert_allclose(ot.Quadratic(0.5).conjugate(s), [14.0, 0.0])
        value, g = top.scaled_conjugate(s, jnp.array([1.0, 0.0]))
        np.testing.assert_allclose(value, [2.75, 0.0])
        np.testing.assert_allclose(g, [-2.5, 1.0])
        t = jax.grad(lambda s: top.scaled_conjugate(s, jnp.array([4.0, 0.0]))[0].sum())(s)
        np.testing.assert_allclose(t, [[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


class TestQuadratic:
    def test_equals_pot(self):
        options = {"reg_type": "l2", "stopThr": 1e-12, "numItermax": 2000}
        for solver, peer in ((SEMI, pot.smooth.smooth_ot_semi_dual), (DUAL, pot.smooth.smooth_ot_dual)):
            out = in64(ot.Quadratic(GAMMA), solver)
            with warnings.catch_warnings():  # POT passes scipy an option that is on its way out
                warnings.simplefilter("ignore", DeprecationWarning)
                expected = peer(A, B, COST, GAMMA, **options)
            assert out["status"] == Status.CONVERGED
            np.testing.assert_allclose(out["plan"], expected, atol=1e-6)
            np.testing.assert_allclose(out["cost"], quadratic(expected), rtol=1e-6)

    def test_streamed_point_cloud_is_the_cost_matrix(self):
        """Blocks of 3 rows and as many columns; all methods, and the plan's own numbers."""

        @jax.jit
        def of_cloud(x, y):
            cloud = ot.PointCloud(x, y, block=3)
            out = ot.solve(cloud, A, B, regularizer=ot.Quadratic(GAMMA), solver=SEMI)
            products = out.apply(y), out.apply(x, axis=0), out.marginals()
            return out.plan(), out.cost, out.primal, out.linear_cost, products

        with jax.enable_x64(True):
            plan, cost, primal, linear, products = jax.tree.map(np.asarray, of_cloud(X, Y))
        np.testing.assert_allclose(plan, in64(ot.Quadratic(GAMMA))["plan"], atol=1e-10)
        np.testing.assert_allclose(linear, (plan * COST).sum(), rtol=1e-10)
        for value in (cost, primal):
            np.testing.assert_allclose(value, quadratic(plan), rtol=1e-10)
        chex.assert_trees_all_close(products, (plan @ Y, plan.T @ X, (A, B)), atol=1e-10)

    def test_float32(self):
        for solver in (ot.SemiDual(tol=1e-5), ot.Dual(tol=1e-5)):
            out = solved(*(jnp.asarray(x, jnp.float32) for x in (COST, A, B)), ot.Quadratic(GAMMA), solver)
            chex.assert_type([out["plan"], out["cost"], out["error"]], jnp.float32)
            assert out["status"] == Status.CONVERGED
            np.testing.assert_allclose(out["plan"], in64(ot.Quadratic(GAMMA))["plan"], atol=1e-5)

    def test_tolerance_out_of_reach_stalls(self):
        arrays = (jnp.asarray(x, jnp.float32) for x in (COST, A, B))
        out = solved(*arrays, ot.Quadratic(GAMMA), ot.SemiDual(tol=1e-12))
        assert out["status"] == Status.STALLED
        assert out["error"] < 1e-5

    def test_lanes_and_traces(self):
        """Lanes of gamma and weights are the single solutions, in one trace each."""
        solve = jax.jit(chex.assert_max_traces(lambda *args: solved(*args), n=1))
        arrays = [jnp.asarray(x, jnp.float32) for x in (COST, A, B)]
        solver = ot.SemiDual(tol=1e-5)
        gammas = jnp.array([0.5, 2.0, 8.0])
        lanes = jax.jit(jax.vmap(lambda gamma: solved(*arrays, ot.Quadratic(gamma), solver)))(gammas)
        for i, gamma in enumerate(gammas):
            single = solve(*arrays, ot.Quadratic(gamma), solver)
            np.testing.assert_allclose(lanes["plan"][i], single["plan"], atol=2e-5)
            assert lanes["status"][i] == Status.CONVERGED


class TestGroupLasso:
    def test_equals_a_general_solver(self):
        """scipy's SLSQP on the primal; strong enough norms empty groups of columns exactly."""
        gamma, eta = 1.0, 1.0
        out = in64(ot.GroupLasso(gamma, eta, GROUPS), DUAL)

        def objective(flat):
            plan = flat.reshape(N, M)
            norms = [np.sqrt((plan[group == GROUPS] ** 2).sum(0) + 1e-20).sum() for group in range(3)]
            return quadratic(plan, gamma=gamma) + eta * sum(norms)

        def gradient(flat):
            plan = flat.reshape(N, M)
            norms = np.stack([np.sqrt((plan[group == GROUPS] ** 2).sum(0) + 1e-20) for group in range(3)])
            return (COST + gamma * plan + eta * plan / norms[GROUPS]).ravel()

        sums = np.vstack([np.kron(np.eye(N), np.ones(M)), np.kron(np.ones(N), np.eye(M))[:-1]])
        masses = {"type": "eq", "fun": lambda flat: sums @ flat - np.r_[A, B[:-1]], "jac": lambda flat: sums}
        peer = scipy.optimize.minimize(
            objective,
            np.outer(A, B).ravel(),
            jac=gradient,
            bounds=[(0, None)] * (N * M),
            constraints=masses,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert out["status"] == Status.CONVERGED
        np.testing.assert_allclose(out["cost"], peer.fun, rtol=1e-5)
        np.testing.assert_allclose(out["plan"], peer.x.reshape(N, M), atol=1e-3)
        np.testing.assert_allclose(objective(out["plan"].ravel()), out["cost"], rtol=1e-8)

    def test_columns_use_fewer_groups(self):
        def groups_used(plan):
            return sum((plan[group == GROUPS].sum(0) > 0).sum() for group in range(3))

        dense = in64(ot.Quadratic(20.0))["plan"]
        grouped = in64(ot.GroupLasso(20.0, 10.0, GROUPS), DUAL)["plan"]
        assert groups_used(grouped) < groups_used(dense)

    def test_no_norm_is_quadratic(self):
        out = in64(ot.GroupLasso(GAMMA, 0.0, GROUPS), DUAL)
        np.testing.assert_allclose(out["plan"], in64(ot.Quadratic(GAMMA))["plan"], atol=1e-10)


REGULARIZERS = {
    "quadratic": (ot.Quadratic, SEMI),
    "top_k": (lambda gamma: ot.TopK(gamma, 5), SEMI),
    "group_lasso": (lambda gamma: ot.GroupLasso(gamma, 0.3, GROUPS), DUAL),
}


def directions():
    """Where derivatives are taken, and along what."""
    rng = np.random.default_rng(2)
    at = {"x": X, "y": Y, "a": A, "b": B, "gamma": 2.0}
    along = {name: rng.normal(size=np.shape(value)) for name, value in at.items()}
    for name in "ab":  # only changes that leave the masses equal have a derivative
        along[name] = 0.1 * (along[name] - along[name].mean())
    return ({name: jnp.asarray(value) for name, value in tree.items()} for tree in (at, along))


class TestDerivatives:
    @pytest.mark.parametrize("name", REGULARIZERS)
    def test_are_differences_of_solutions(self, name):
        """Cost, its gradient, plan, potentials: along one direction of points, weights and gamma at once."""
        make, solver = REGULARIZERS[name]
        weights = np.random.default_rng(3).normal(size=(N, M))

        @jax.jit
        def found(p):
            geometry = ot.PointCloud(p["x"], p["y"])
            return ot.solve(geometry, p["a"], p["b"], regularizer=make(p["gamma"]), solver=solver)

        def measured(p, out):
            cloud = ot.CostMatrix(ot.PointCloud(p["x"], p["y"]).cost_matrix())
            problem = type(out.problem)(cloud, p["a"], p["b"], make(p["gamma"]))
            # One linear solve serves all of them.
            f, g = problem.centered(*problem.differentiable(*out.raw))
            linear = problem.linear_cost(f, g)
            aux = {"plan": jnp.vdot(problem.plan(f, g), weights), "f": f, "g": g, "linear": linear}
            return dataclasses.replace(out, problem=problem).cost, aux

        def everything(p, out):
            (cost, aux), gradient = jax.value_and_grad(measured, has_aux=True)(p, out)
            return cost, aux, gradient

        @jax.jit
        def derivatives(p, t, out):
            forward = jax.jvp(lambda p: everything(p, out), (p,), (t,))[1]
            reverse = jax.grad(lambda p: measured(p, out)[1]["plan"])(p)
            return forward, sum(jnp.vdot(reverse[name], t[name]) for name in t)

        with jax.enable_x64(True):
            p, t = directions()
            out = found(p)
            forward, plan_slope = derivatives(p, t, out)
            values, h = jax.jit(everything), 1e-5
            up, down = (jax.tree.map(lambda x, d, s=s: x + s * d, p, t) for s in (h, -h))
            up, down = (values(moved, found(moved)) for moved in (up, down))
            differences = jax.tree.map(lambda u, d: (u - d) / (2 * h), up, down)
            chex.assert_trees_all_close(forward, differences, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(plan_slope, forward[1]["plan"], rtol=1e-8)
            gradient = values(p, out)[2]
            np.testing.assert_allclose(sum(jnp.vdot(gradient[k], t[k]) for k in t), forward[0], rtol=1e-8)
            np.testing.assert_allclose(gradient["a"], out.f, rtol=1e-12)

    def test_cost_by_costs_is_the_plan(self):
        """Also where the plan has unconnected parts, as an assignment, and in float32."""
        square = jnp.asarray(np.random.default_rng(0).normal(size=(N, N)), jnp.float32)

        def of(cost):
            return ot.solve(ot.CostMatrix(cost), regularizer=ot.TopK(GAMMA, 1), solver=ot.SemiDual(tol=1e-5))

        gradient = jax.jit(jax.grad(lambda cost: of(cost).cost))(square)
        np.testing.assert_allclose(gradient, jax.jit(lambda cost: of(cost).plan())(square), atol=1e-6)
        moved = jax.jit(jax.grad(lambda cost: jnp.vdot(of(cost).plan(), square)))(square)
        np.testing.assert_allclose(moved, 0.0, atol=1e-5)

    @pytest.mark.parametrize("name", ["quadratic", "group_lasso"])
    def test_weights_of_zero(self, name):
        """They change nothing, get no mass, have finite derivatives and subgradients as potentials."""
        make, solver = REGULARIZERS[name]
        keep = np.array([0, 1, 3, 4, 5, 6]), np.array([0, 2, 3, 4])
        a, b = np.zeros(N), np.zeros(M)
        a[keep[0]], b[keep[1]] = A[keep[0]] / A[keep[0]].sum(), B[keep[1]] / B[keep[1]].sum()

        @jax.jit
        def of(a, b):
            def cost(a, b, gamma):
                out = ot.solve(ot.CostMatrix(COST), a, b, regularizer=make(gamma), solver=solver)
                return out.cost, (out.plan(), out.status)

            (value, aux), gradients = jax.value_and_grad(cost, (0, 1, 2), has_aux=True)(a, b, GAMMA)
            second = jax.jvp(lambda gamma: cost(a, b, gamma)[1][0], (GAMMA,), (1.0,))[1]
            return value, aux, gradients, second

        with jax.enable_x64(True):
            value, (plan, status), gradients, second = jax.tree.map(np.asarray, of(a, b))
            chex.assert_tree_all_finite((value, plan, gradients, second))
            assert status == Status.CONVERGED
            assert np.all(plan[a == 0] == 0)
            assert np.all(plan[:, b == 0] == 0)
            h = 1e-5
            moved = np.where(a > 0, a * (1 - h), h)
            slope = (of(moved, b)[0] - value) / h
            bound = np.vdot(gradients[0], (moved - a) / h)
            assert slope >= bound - 1e-8
            if name == "quadratic":
                np.testing.assert_allclose(slope, bound, rtol=1e-3)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ot.Quadratic(0.0), "gamma"),
            (lambda: ot.TopK(1.0, 0), "k must"),
            (lambda: ot.TopK(-1.0, 2), "gamma"),
            (lambda: ot.GroupLasso(1.0, -1.0, GROUPS), "eta"),
            (lambda: ot.GroupLasso(1.0, 1.0, np.array([0, 7])), "groups"),
            (lambda: ot.GroupLasso(1.0, 1.0, np.array([0.5, 0.5])), "groups"),
            (lambda: ot.Entropy(0.0), "epsilon"),
            (lambda: ot.SemiDual(tol=-1.0), "tol"),
            (lambda: ot.Dual(memory=0), "memory"),
        ],
    )
    def test_options(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_combinations(self):
        cost, short = ot.CostMatrix(jnp.ones((3, 2))), ot.GroupLasso(1.0, 1.0, np.array([0, 1]))
        with pytest.raises(ValueError, match="Dual for GroupLasso"):
            ot.solve(cost, regularizer=ot.GroupLasso(1.0, 1.0, np.array([0, 1, 1])), solver=ot.SemiDual())
        with pytest.raises(ValueError, match="one label for each of the 3 rows"):
            ot.solve(cost, regularizer=short)
