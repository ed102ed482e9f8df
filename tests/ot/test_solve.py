"""The one call: every kind of problem and solver, its result as a pytree, padding, statuses and messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import ot
from jaxdiv.core import Status
from jaxdiv.testing import ot as contract
from jaxdiv.testing.ot import FunctionMember, SolverMember

GROUPS = np.array([0, 0, 1, 1, 1])
SOLVERS = [
    SolverMember(
        "semi_dual", lambda tol, steps: ot.SemiDual(tol=tol, max_steps=steps),
        lambda s: {"regularizer": ot.Quadratic(s)}, strength=0.5,
        bad=(lambda: ot.SemiDual(memory=0),),
    ),
    SolverMember(
        "dual", lambda tol, steps: ot.Dual(tol=tol, max_steps=steps),
        lambda s: {"regularizer": ot.GroupLasso(s, 0.1, GROUPS)}, strength=0.5,
        bad=(lambda: ot.Dual(memory=0),),
    ),
]  # fmt: skip
KEY = jax.random.key(0)
FUNCTIONS = [
    FunctionMember("univariate", lambda x, y, a, b, p: ot.univariate(x, y, a, b, p=p), rank=1),
    FunctionMember("sliced", lambda x, y, a, b, p: ot.sliced(x, y, a, b, key=KEY, num_projections=8, p=p)),
    FunctionMember(
        "sinkhorn_divergence",
        lambda x, y, a, b, s: (
            ot.sinkhorn_divergence(x, y, a, b, epsilon=s, solver=ot.Sinkhorn(tol=1e-7, mode="log")).value
        ),
    ),
]
# Its derivative is that of the maximum, as far as the ascent has come.
MAX_SLICED = FunctionMember(
    "max_sliced",
    lambda x, y, a, b, p: ot.max_sliced(x, y, a, b, key=KEY, num_projections=4, steps=10, p=p),
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(SOLVERS, contract.SOLVER))
    def test_solver(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(FUNCTIONS, contract.FUNCTION))
    def test_function(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MAX_SLICED], contract.FUNCTION[:1]))
    def test_maximum(self, check, member):
        check(member, self.variant)


RNG = np.random.default_rng(5)
N, M = 5, 4
X, Y = np.float32(RNG.normal(size=(N, 2))), np.float32(RNG.normal(size=(M, 2)))
A, B = (np.float32(RNG.dirichlet(np.ones(n))) for n in (N, M))


def summary(out):
    names = ("status", "iterations", "error", "cost", "entropy_cost", "linear_cost", "dual", "primal", "gap")
    names = (*names, "f", "g")
    fields = {name: getattr(out, name) for name in names}
    return fields | {
        "plan": out.plan(),
        "marginals": out.marginals(),
        "apply": out.apply(jnp.ones((*jnp.shape(out.error), out.raw[1].shape[-1], 2))),
    }


@jax.jit
def on_clouds(x, y, a, b, epsilon):
    out = ot.solve(ot.PointCloud(x, y), a, b, epsilon=epsilon, solver=ot.Sinkhorn(tol=1e-5))
    return out, summary(out)


class TestResult:
    """The result is a pytree: what it offers is the same eagerly, under jit, vmap and scan."""

    @functools.cached_property
    def one(self):
        return on_clouds(X, Y, A, B, jnp.float32(0.5))[1]

    def same(self, got):
        chex.assert_trees_all_close(got, self.one, rtol=1e-5, atol=1e-6)

    def test_eager_and_after_jit(self):
        out, _ = on_clouds(X, Y, A, B, jnp.float32(0.5))
        self.same(summary(out))
        eager = ot.solve(ot.PointCloud(X, Y), A, B, epsilon=0.5, solver=ot.Sinkhorn(tol=1e-5))
        np.testing.assert_allclose(eager.plan(), self.one["plan"], rtol=1e-5)
        leaves, structure = jax.tree.flatten(out)
        self.same(summary(jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])))

    @pytest.mark.parametrize("lanes", ["vmap", "scan"])
    def test_lanes(self, lanes):
        epsilons = jnp.array([0.5, 0.2], jnp.float32)

        def solve(epsilon):
            return ot.solve(ot.PointCloud(X, Y), A, B, epsilon=epsilon, solver=ot.Sinkhorn(tol=1e-5))

        @jax.jit
        def results(epsilons):
            if lanes == "vmap":
                return jax.vmap(solve)(epsilons)
            return jax.lax.scan(lambda carry, e: (carry, solve(e)), None, epsilons)[1]

        out = results(epsilons)
        assert out.status.shape == (2,)
        self.same(jax.tree.map(lambda x: x[0], jax.jit(summary)(out)))
        out.raise_if_failed()

    def test_what_the_parts_say_of_each_other(self):
        one = {k: np.asarray(v, np.float64) for k, v in self.one.items() if k not in ("marginals",)}
        cost = np.sum((X[:, None] - Y) ** 2, -1)
        plan = one["plan"]
        np.testing.assert_allclose(one["linear_cost"], np.sum(plan * cost), rtol=1e-5)
        entropy = np.sum(plan * np.log(plan / np.outer(A, B)))
        np.testing.assert_allclose(one["cost"], np.sum(plan * cost) + 0.5 * entropy, rtol=1e-4)
        np.testing.assert_allclose(
            one["entropy_cost"], np.sum(plan * (cost + 0.5 * np.log(plan) - 0.5)), rtol=1e-4
        )
        np.testing.assert_allclose(one["cost"], A @ one["f"] + B @ one["g"], rtol=1e-4)
        np.testing.assert_allclose(A @ one["f"], B @ one["g"], rtol=1e-5)
        np.testing.assert_allclose(one["primal"] - one["dual"], one["gap"], atol=1e-6)
        np.testing.assert_allclose(one["apply"], plan.sum(1)[:, None] * np.ones(2), rtol=1e-5)
        np.testing.assert_allclose(self.one["marginals"][0], plan.sum(1), rtol=1e-5)

    def test_maps_and_rounding(self):
        out, more = on_clouds(X, Y, A, B, jnp.float32(0.5))
        rounded = np.asarray(out.round(), np.float64)
        np.testing.assert_allclose(rounded.sum(1), A, atol=1e-6)
        np.testing.assert_allclose(rounded.sum(0), B, atol=1e-6)
        expected = np.asarray(more["plan"]) @ Y / A[:, None]
        np.testing.assert_allclose(out.barycentric(), expected, rtol=1e-4)
        # The map extended to the cloud's own points is the barycentric one.
        np.testing.assert_allclose(out.transport(X), expected, atol=1e-3)

    def test_rounding_needs_exact_marginals(self):
        """A plan that may leave mass behind must not be filled up."""
        for marginals in ((ot.Partial(0.5), ot.AtMost()), (ot.KL(1.0), ot.KL(1.0))):
            solver = ot.Sinkhorn(mode="log")
            out = ot.solve(ot.PointCloud(X, Y), A, B, epsilon=0.5, marginals=marginals, solver=solver)
            with pytest.raises(ValueError, match="xact"):
                out.round()

    def test_failure_names_the_lanes(self):
        solver = ot.Sinkhorn(mode="log", max_steps=10)
        solve = jax.jit(jax.vmap(lambda e: ot.solve(ot.PointCloud(X, Y), A, B, epsilon=e, solver=solver)))
        out = solve(jnp.array([10.0, 0.01]))
        with pytest.raises(RuntimeError, match="MAX_STEPS"):
            out.raise_if_failed()


class TestInvariance:
    def test_translation_and_transposition_of_clouds(self):
        """With the squared distance, moving y adds <P, linear terms> alone; exchange gives the transpose."""
        one = on_clouds(X, Y, A, B, jnp.float32(0.5))[1]
        t = np.float32([2.0, -1.0])
        moved = on_clouds(X, Y + t, A, B, jnp.float32(0.5))[1]
        np.testing.assert_allclose(moved["plan"], one["plan"], atol=1e-5)
        np.testing.assert_allclose(moved["cost"], one["cost"] + t @ t - 2 * t @ (A @ X - B @ Y), rtol=1e-5)
        turned = jax.jit(
            lambda x, y: ot.solve(
                ot.PointCloud(x, y).transpose(), B, A, epsilon=0.5, solver=ot.Sinkhorn(tol=1e-5)
            ).plan()
        )(X, Y)
        np.testing.assert_allclose(turned.T, one["plan"], atol=2e-5)

    def test_points_without_weight_are_absent(self):
        """Both clouds are padded with one far point: for it alone both potentials are large."""
        far = np.zeros((2, 2), np.float32)
        x, y = (np.concatenate([z + 10, far]) for z in (X, Y))
        a, b = (np.concatenate([w, np.zeros(2, np.float32)]) for w in (A, B))
        alone = on_clouds(X + 10, Y + 10, A, B, jnp.float32(0.1))[1]

        def padded(x, solver):
            out = ot.solve(ot.PointCloud(x, y), a, b, epsilon=0.1, solver=solver)
            parts = (out.plan(), out.primal, out.linear_cost, out.apply(jnp.ones(M + 2)))
            return out.cost, (out.status, parts)

        (_, found), slope = jax.jit(jax.value_and_grad(padded, has_aux=True))(x, ot.Sinkhorn(tol=1e-5))
        _, by_newton = jax.jit(padded)(x, ot.SinkhornNewton(tol=1e-5))
        np.testing.assert_array_equal(slope[N:], 0.0)
        for status, got in (found, by_newton):
            assert status == Status.CONVERGED
            chex.assert_tree_all_finite((got, slope))
            np.testing.assert_allclose(got[0][:N, :M], alone["plan"], atol=2e-5)
            np.testing.assert_array_equal(got[0][N:], 0.0)
            np.testing.assert_allclose(got[1], alone["primal"], rtol=1e-4)

    def test_equal_points_share_a_potential(self):
        x = X[np.array([0, 0, 2, 2, 4])]
        f = on_clouds(x, Y, A, B, jnp.float32(0.5))[1]["f"]
        np.testing.assert_array_equal(f[:4:2], f[1:4:2])


class TestDefaults:
    def test_weights_and_epsilon(self):
        out = ot.solve(ot.PointCloud(X, Y))
        cost = np.sum((X[:, None] - Y) ** 2, -1)
        np.testing.assert_allclose(out.problem.epsilon, 0.05 * cost.mean(), rtol=1e-6)
        np.testing.assert_allclose(out.marginals()[0], 1 / N, atol=1e-4)
        assert out.status == Status.CONVERGED
        for name, unit in (("std", cost.std()), ("max", cost.max())):
            got = ot.solve(ot.PointCloud(X, Y), epsilon=0.5, relative_epsilon=name).problem.epsilon
            np.testing.assert_allclose(got, 0.5 * unit, rtol=1e-5)

    def test_default_solver_hands_over_to_newton(self):
        """At eta = 400 Sinkhorn needs more than its 2000 steps; as lanes beside an easy one, too."""
        cost = np.float32(np.random.default_rng(0).uniform(size=(3, 30, 30)))
        epsilons = jnp.float32([1 / 400, 1.0, 1 / 50])
        fn = jax.jit(jax.vmap(lambda c, e: ot.solve(ot.CostMatrix(c), epsilon=e, history=4)))
        out = fn(cost, epsilons)
        out.raise_if_failed()
        assert np.all(out.error <= 1e-4)
        assert out.iterations[0] < 200
        assert out.iterations[1] < 10
        np.testing.assert_array_equal(out.history[:, -1], out.error)

    @pytest.mark.parametrize("epsilon", [2.0, 0.2, 0.06])
    def test_history_ends_with_the_error(self, epsilon):
        cost = np.float32(np.random.default_rng(0).uniform(size=(30, 30)))
        out = default_with_history(cost, jnp.float32(epsilon))
        assert out.status == Status.CONVERGED
        assert out.history.shape == (10,)
        known = min(10, int(out.iterations))
        assert out.history[known - 1] == out.error or out.history[-1] == out.error
        assert np.sum(np.isfinite(out.history)) == known

    @pytest.mark.parametrize("adjoint", [ot.Implicit(), ot.Unroll()])
    def test_history_changes_nothing(self, adjoint):
        """Longer than the trial of the default, too; the errors are those that Sinkhorn's steps had."""
        cost = ot.CostMatrix(np.float32(np.random.default_rng(0).uniform(size=(30, 30))))
        solver = None if isinstance(adjoint, ot.Implicit) else ot.Sinkhorn(mode="log", max_steps=120)
        long, short = (
            ot.solve(cost, epsilon=0.02, history=k, solver=solver, adjoint=adjoint) for k in (80, 0)
        )
        assert long.status == short.status == Status.CONVERGED
        assert long.iterations == short.iterations > 50
        errors = long.history[np.isfinite(long.history)]
        assert errors.size == min(80, int(long.iterations))
        assert errors[-1] == long.error
        assert errors[0] > 10 * errors[-1]

    def test_extremes(self):
        one = ot.solve(ot.CostMatrix(np.zeros((1, 1), np.float32)))
        assert one.status == Status.CONVERGED
        assert one.cost == 0
        for cost in (0.0, 7.0):
            out = default_with_history(np.full((30, 30), cost, np.float32), jnp.float32(1.0))
            assert out.status == Status.CONVERGED
            np.testing.assert_allclose(out.dual, cost, rtol=1e-6, atol=1e-6)

    def test_weights_of_a_coarser_dtype(self):
        """Float32 weights sum to 1 within their own rounding, beside float64 points too."""
        with jax.enable_x64(True):
            third = jnp.ones(3, jnp.float32) / 3
            out = ot.solve(ot.CostMatrix(np.ones((3, M))), third, epsilon=0.5, solver=ot.Sinkhorn(mode="log"))
        assert out.raw[0].dtype == np.float64
        assert out.status == Status.CONVERGED


default_with_history = jax.jit(
    lambda cost, epsilon: ot.solve(ot.CostMatrix(cost), epsilon=epsilon, history=10)
)


class TestStatuses:
    def test_traced_penalties_out_of_range(self):
        def status(option):
            marginals = [
                (ot.KL(option), ot.Exact()),
                (ot.TV(option), ot.Exact()),
                (ot.Partial(option), ot.AtMost()),
            ]
            solver = ot.Sinkhorn(mode="log")
            cloud = ot.PointCloud(X, Y)
            return jnp.stack(
                [ot.solve(cloud, A, B, epsilon=0.5, marginals=m, solver=solver).status for m in marginals]
            )

        fn = jax.jit(status)
        np.testing.assert_array_equal(fn(jnp.float32(0.5)), Status.CONVERGED)
        for bad in (-1.0, 0.0, np.nan):
            np.testing.assert_array_equal(fn(jnp.float32(bad)), Status.INFEASIBLE)
        assert fn(jnp.float32(1.5))[2] == Status.INFEASIBLE

    def test_concrete_values_raise(self):
        cloud = ot.PointCloud(X, Y)
        bad = np.where(np.arange(N) == 1, -A, A)
        calls = {
            "nonneg": lambda: ot.solve(cloud, bad),
            "zero": lambda: ot.solve(cloud, 0 * A),
            "finite": lambda: ot.solve(cloud, np.where(np.arange(N) == 1, np.nan, A)),
            "mass": lambda: ot.solve(cloud, 2 * A, B),
            "normalize": lambda: ot.solve(cloud, 2 * A, B),
            "epsilon": lambda: ot.solve(cloud, epsilon=0.0),
            r"\(5,\)": lambda: ot.solve(cloud, B),
            "a must": lambda: ot.solve(cloud, np.ones((N, 1), np.float32)),
            "floating": lambda: ot.solve(cloud, np.ones(N, np.int32)),
            "hold": lambda: ot.solve(cloud, A, B, marginals=(ot.Partial(2.0), ot.AtMost())),
            "finite;": lambda: ot.CostMatrix(np.float32([[np.inf, 1.0]])),
            "init": lambda: ot.solve(cloud, init=(A, A)),
            "relative_epsilon": lambda: ot.solve(cloud, relative_epsilon="median"),
            "regularizer": lambda: ot.solve(cloud, epsilon=1.0, regularizer=ot.Entropy(1.0)),
            "pair": lambda: ot.solve(cloud, marginals=ot.KL(1.0)),
            "Unroll": lambda: ot.solve(cloud, adjoint=ot.Unroll()),
            "entropy_cost needs": lambda: ot.solve(cloud, regularizer=ot.Quadratic(1.0)).entropy_cost,
            "axis": lambda: ot.solve(cloud).apply(B, axis=2),
            "rows": lambda: ot.solve(cloud).apply(A),
            "for TopK": lambda: ot.solve(
                cloud, regularizer=ot.TopK(1.0, 2), marginals=(ot.KL(1.0), ot.Exact())
            ),
            "entropy": lambda: ot.solve(
                cloud, regularizer=ot.Quadratic(1.0), marginals=(ot.KL(1.0), ot.Exact())
            ),
        }
        for message, call in calls.items():
            with pytest.raises(ValueError, match=message):
                call()

    def test_what_does_not_fit_is_named(self):
        """Wrong objects and shapes end in one sentence, not in a trace of broadcasting."""
        cloud = ot.PointCloud(X, Y)
        calls = {
            "CostMatrix": lambda: ot.solve(np.ones((3, 3), np.float32)),
            "epsilon": lambda: ot.solve(cloud, epsilon=jnp.ones(3)),
            "marginals": lambda: ot.solve(cloud, marginals=(ot.KL, ot.Exact())),
            "rho": lambda: ot.solve(cloud, marginals=(ot.KL(np.ones(M, np.float32)), ot.Exact())),
            "mass": lambda: ot.solve(cloud, marginals=(ot.Partial(np.ones(N)), ot.AtMost())),
            "solver": lambda: ot.solve(cloud, epsilon=0.5, solver=ot.Dual()),
            "(?i)sinkhorn": lambda: ot.solve(cloud, regularizer=ot.Quadratic(1.0), solver=ot.Sinkhorn()),
            "adjoint": lambda: ot.solve(cloud, adjoint="unroll"),
        }
        for message, call in calls.items():
            with pytest.raises(ValueError, match=message):
                call()


def test_equal_shapes_trace_once():
    """Values, epsilons, tolerances and prices are traced, also without an outer jit."""
    calls = 0

    def cost(x, y):
        nonlocal calls
        calls += 1
        return jnp.sum((x - y) ** 2)

    for scale in (1.0, 2.0):
        for rho in (0.5, 1.0):
            out = ot.solve(
                ot.PointCloud(scale * X, Y, cost), A, B, epsilon=0.5 * scale, marginals=(ot.KL(rho), ot.Exact()),
                solver=ot.Sinkhorn(tol=1e-4 * scale),
            )  # fmt: skip
            first = calls if scale == 1.0 and rho == 0.5 else first
    assert out.status == Status.CONVERGED
    assert calls == first > 0
