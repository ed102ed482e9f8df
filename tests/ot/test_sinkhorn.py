"""Sinkhorn's algorithm: contract, parity with POT and OTT, limits, variants, and how a run may end."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
from absl.testing import parameterized
from jax.extend.core import jaxprs_in_params
from ott.geometry import geometry as ott_geometry
from ott.geometry import pointcloud as ott_pointcloud
from ott.solvers import linear as ott_linear

from jaxdiv import core, ot
from jaxdiv.core import Status
from jaxdiv.testing import ot as contract
from jaxdiv.testing.ot import SolverMember

BAD = (
    lambda: ot.Sinkhorn(mode="dual"),
    lambda: ot.Sinkhorn(overrelaxation=2.0),
    lambda: ot.Sinkhorn(overrelaxation=0.0),
    lambda: ot.Sinkhorn(anneal=-1),
    lambda: ot.Sinkhorn(anneal=2000, max_steps=2000),
    lambda: ot.Sinkhorn(anderson=-1),
    lambda: ot.Sinkhorn(mode="kernel", anneal=3),
    lambda: ot.Sinkhorn(symmetric=True, anderson=3),
    lambda: ot.solve(ot.PointCloud(jnp.ones((5, 2)), block=2), solver=ot.Sinkhorn(mode="kernel")),
    lambda: ot.solve(ot.CostMatrix(jnp.ones((5, 4))), solver=ot.Sinkhorn(symmetric=True)),
)
SINKHORN = SolverMember(
    "sinkhorn", lambda tol, steps: ot.Sinkhorn(tol=tol, max_steps=steps), lambda e: {"epsilon": e}, bad=BAD
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([SINKHORN], contract.SOLVER))
    def test_compiled(self, check, member):
        check(member, self.variant)


# --- one compiled solve in log space, in float64, for all that follows

N, M = 8, 6
RNG = np.random.default_rng(1)
C = RNG.uniform(size=(N, M))
A, B = RNG.dirichlet(np.ones(N)), RNG.dirichlet(np.ones(M))


def problem(kind):
    """Random, skewed, with weights of 0, and with rows and columns that are doubled."""
    cost, a, b = C, A, B
    if kind == "skewed":
        cost = C**4 + 5.0 * np.arange(N)[:, None]
        a = np.exp(-2.0 * np.arange(N))
    elif kind == "padded":
        a, b = a * (np.arange(N) != 2), b * (np.arange(M) > 1)
    elif kind == "doubled":
        cost = C[np.arange(N) // 2][:, np.arange(M) // 2]
    return cost, a / a.sum(), b / b.sum()


KINDS = ("random", "skewed", "padded", "doubled")


@jax.jit
def solved(cost, a, b, epsilon, solver, init):
    out = ot.solve(ot.CostMatrix(cost), a, b, epsilon=epsilon, solver=solver, init=init)
    names = ("cost", "linear_cost", "primal", "f", "g")
    return out, {name: getattr(out, name) for name in names} | {"plan": out.plan()}


def solve(cost, a, b, epsilon, init=None, dtype=jnp.float64, **options):
    options = {"tol": 1e-11, "max_steps": 20_000, "mode": "log"} | options
    with jax.enable_x64(dtype == jnp.float64):
        init = init or (np.zeros(cost.shape[0]), np.zeros(cost.shape[1]))
        tol = jnp.asarray(options.pop("tol"), dtype)
        arguments = contract.cast((cost, a, b, epsilon), dtype)
        found = solved(*arguments, ot.Sinkhorn(tol=tol, **options), contract.cast(init, dtype))
        return jax.tree.map(np.asarray, found)


def marginal_error(plan, a, b):
    return np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()


def off(f):
    """Potentials up to their constant."""
    return f - f.mean()


class TestPeers:
    @pytest.mark.parametrize("kind", KINDS)
    def test_pot(self, kind):
        cost, a, b = problem(kind)
        out, more = solve(cost, a, b, 0.05)
        assert out.status == Status.CONVERGED
        rows, columns = a > 0, b > 0
        sub = np.ix_(rows, columns)
        plan, log = pot.sinkhorn(
            a[rows],
            b[columns],
            cost[sub],
            0.05,
            method="sinkhorn_log",
            numItermax=50_000,
            stopThr=1e-13,
            log=True,
        )
        np.testing.assert_allclose(more["plan"][sub], plan, atol=1e-10)
        assert more["plan"].sum() == pytest.approx(plan.sum())
        np.testing.assert_allclose(
            off(more["f"][rows] + 0.05 * np.log(a[rows])), off(0.05 * log["log_u"]), atol=1e-7
        )

    @pytest.mark.parametrize("kind", KINDS[:2])
    def test_ott(self, kind):
        """OTT's ent_reg_cost is ``<C, P> - epsilon H(P)``, its kl_reg_cost ours."""
        cost, a, b = problem(kind)
        _, more = solve(cost, a, b, 0.05)
        with jax.enable_x64(True):
            theirs = ott_linear.solve(
                ott_geometry.Geometry(jnp.asarray(cost), epsilon=0.05), jnp.asarray(a), jnp.asarray(b),
                threshold=1e-11, max_iterations=20_000,
            )  # fmt: skip
            np.testing.assert_allclose(more["plan"], theirs.matrix, atol=1e-9)
            np.testing.assert_allclose(more["cost"], theirs.kl_reg_cost, rtol=1e-9)
            entropies = 0.05 * (np.sum(a * np.log(a)) + np.sum(b * np.log(b)))
            np.testing.assert_allclose(more["cost"] + entropies, theirs.ent_reg_cost, rtol=1e-9)
            np.testing.assert_allclose(
                more["cost"], more["linear_cost"] + 0.05 * relative(more["plan"], a, b)
            )

    def test_ott_gradient_of_points(self):
        x, y = RNG.normal(size=(N, 2)), RNG.normal(size=(M, 2))

        def ours(x):
            return ot.solve(
                ot.PointCloud(x, y), A, B, epsilon=0.5, solver=ot.Sinkhorn(tol=1e-10, mode="log")
            ).cost

        def theirs(x):
            geometry = ott_pointcloud.PointCloud(x, jnp.asarray(y), epsilon=0.5)
            return ott_linear.solve(
                geometry, jnp.asarray(A), jnp.asarray(B), threshold=1e-10, max_iterations=20_000
            ).kl_reg_cost

        with jax.enable_x64(True):
            got, expected = (jax.jit(jax.grad(fn))(jnp.asarray(x)) for fn in (ours, theirs))
        np.testing.assert_allclose(got, expected, atol=1e-7)


def relative(plan, a, b):
    product = np.outer(a, b)
    some = plan > 0
    return np.sum(plan[some] * np.log(plan[some] / product[some])) - plan.sum() + product.sum()


class TestLimits:
    def test_small_epsilon_is_the_linear_program(self):
        cost, a, b = problem("random")
        exact = pot.emd2(a, b, cost)
        epsilons = (1e-2, 1e-3)
        for epsilon in epsilons:
            out, more = solve(cost, a, b, epsilon, tol=1e-7, anneal=200)
            assert out.status == Status.CONVERGED
            linear = np.sum(cost * more["plan"])
            # The entropy is at most log of the number of entries.
            assert exact - 1e-6 <= linear <= exact + epsilon * np.log(N * M)
        np.testing.assert_allclose(more["plan"], pot.emd(a, b, cost), atol=1e-5)
        assert np.max(more["f"][:, None] + more["g"] - cost) < 1e-3 * np.log(1 / (a.min() * b.min()))

    def test_large_epsilon_is_the_product(self):
        cost, a, b = problem("random")
        out, more = solve(cost, a, b, 1e4)
        np.testing.assert_allclose(more["plan"], np.outer(a, b), rtol=1e-3)
        np.testing.assert_allclose(more["cost"], a @ cost @ b, rtol=1e-3)
        assert out.iterations <= 3


values = st.floats(0.0, 1.0)


class TestProperties:
    @hypothesis.given(
        cost=st.lists(values, min_size=N * M, max_size=N * M),
        a=st.lists(st.floats(0.0, 1.0), min_size=N, max_size=N).filter(lambda w: sum(w) > 0.1),
        epsilon=st.floats(0.05, 2.0),
    )
    def test_fixed_point_bounds_and_shifts(self, cost, a, epsilon):
        cost, a = np.reshape(cost, (N, M)), np.array(a) / sum(a)
        out, more = solve(cost, a, B, epsilon, tol=1e-9)
        assert out.status == Status.CONVERGED
        plan, f, g = more["plan"], more["f"], more["g"]
        assert marginal_error(plan, a, B) <= 1e-9 + 1e-12
        assert np.all(plan[a == 0] == 0)
        # c-concavity: each potential is the softmin of the other.
        with np.errstate(divide="ignore"):
            smooth = -epsilon * np.log(np.exp((f[:, None] - cost) / epsilon).T @ a)
        np.testing.assert_allclose(g, smooth, atol=1e-7)
        # Weak duality, of what has converged and of what has not.
        assert -1e-12 <= more["primal"] - out.dual <= 1e-8
        early, before = solve(cost, a, B, epsilon, tol=1e3)
        assert early.iterations == 1
        assert early.dual <= out.dual + 1e-12
        assert before["primal"] >= out.dual - 1e-12
        # What is added to rows and columns of the costs is added to the potentials.
        _, moved = solve(cost + np.arange(N)[:, None] - np.arange(M), a, B, epsilon, tol=1e-9)
        np.testing.assert_allclose(moved["plan"], plan, atol=1e-8)
        np.testing.assert_allclose(
            moved["cost"], more["cost"] + a @ np.arange(N) - B @ np.arange(M), atol=1e-8
        )


@functools.cache
def square():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(N, 2))
    w = rng.dirichlet(np.ones(N))
    return np.sum((z[:, None] - z) ** 2, -1), w, w


class TestVariants:
    EPSILON = 0.02

    def plain(self):
        return solve(*problem("random"), self.EPSILON, tol=1e-9)

    @pytest.mark.parametrize(
        ("options", "fewer"),
        [
            ({"overrelaxation": 1.5}, True),
            ({"anderson": 5}, True),
            ({"anneal": 20, "overrelaxation": 1.5}, True),
            ({"mode": "auto"}, False),
            ({"mode": "kernel"}, False),
        ],
    )
    def test_variants_agree(self, options, fewer):
        out, plain = self.plain()
        other, more = solve(*problem("random"), self.EPSILON, tol=1e-9, **options)
        assert other.status == Status.CONVERGED
        assert marginal_error(more["plan"], A, B) <= 1e-9 + 1e-12
        np.testing.assert_allclose(more["plan"], plain["plan"], atol=1e-7)
        if fewer:
            assert other.iterations < 0.7 * out.iterations

    def test_symmetric(self):
        cost, a, b = square()
        out, plain = solve(cost, a, b, 0.1, tol=1e-9)
        other, more = solve(cost, a, b, 0.1, tol=1e-9, symmetric=True)
        assert other.status == Status.CONVERGED
        np.testing.assert_array_equal(*other.raw)
        np.testing.assert_allclose(more["plan"], plain["plan"], atol=1e-8)
        assert other.iterations < out.iterations

    def test_symmetric_does_not_believe_itself_elsewhere(self):
        """A cost that differs from its transpose must not converge."""
        cost = np.random.default_rng(4).uniform(size=(N, N))
        a = np.full(N, 1 / N)
        try:
            out, more = solve(cost, a, a, 0.1, tol=1e-9, symmetric=True)
        except ValueError:
            return
        assert out.status != Status.CONVERGED or marginal_error(more["plan"], a, a) < 1e-8

    def test_warm_start_needs_fewer_steps(self):
        cost, a, b = problem("random")
        out, more = self.plain()
        again, _ = solve(cost, a, b, self.EPSILON, init=(more["f"], more["g"]), tol=1e-9)
        near, _ = solve(cost + 1e-4 * C**2, a, b, self.EPSILON, init=(more["f"], more["g"]), tol=1e-9)
        assert again.iterations <= 2
        assert near.iterations < 0.8 * out.iterations

    def test_annealing_helps_at_small_epsilon_and_honors_tol(self):
        cost, a, b = problem("random")
        plain, _ = solve(cost, a, b, 2e-3, tol=1e-6)
        out, more = solve(cost, a, b, 2e-3, tol=1e-6, anneal=200)
        assert out.status == Status.CONVERGED
        assert 200 < out.iterations < plain.iterations
        assert marginal_error(more["plan"], a, b) <= 1e-6 + 1e-10


class TestEndings:
    def test_auto_leaves_the_kernel_where_its_range_ends(self):
        """With costs of 400 epsilon, products underflow before the potentials have moved that far."""
        cost, a, b = problem("random")
        cost = cost + np.arange(N)[:, None] % 2 * (np.arange(M) > 0)
        ended = {}
        for mode in ("log", "auto", "kernel"):
            ended[mode] = solve(cost, a, b, 5e-3, tol=1e-3, dtype=jnp.float32, mode=mode)
        assert ended["log"][0].status == ended["auto"][0].status == Status.CONVERGED
        assert ended["kernel"][0].status == Status.NONFINITE
        np.testing.assert_allclose(ended["auto"][1]["plan"], ended["log"][1]["plan"], atol=1e-3)

    @pytest.mark.parametrize("epsilon", [1e-2, 5e-3, 3e-3])
    def test_plateaus_of_the_error_are_no_stall(self, epsilon):
        """In float32 the error may not move by a bit for a hundred steps while potentials still do."""
        cost, a, b = problem("random")
        cost = cost + np.arange(N)[:, None] % 2 * (np.arange(M) > 0)
        out, _ = solve(cost, a, b, epsilon, tol=1e-3, dtype=jnp.float32)
        assert out.status == Status.CONVERGED

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_tolerance_out_of_reach_stalls_soon(self, dtype):
        out, more = solve(*problem("random"), 0.1, tol=1e-30, dtype=dtype)
        # A measured error of exactly 0 is within every tolerance.
        assert out.status == Status.STALLED or out.error == 0
        assert out.iterations < 500
        assert marginal_error(np.float64(more["plan"]), A, B) < 100 * jnp.finfo(dtype).eps

    def test_too_few_steps(self):
        out, more = solve(*problem("random"), 0.02, max_steps=3)
        assert out.status == Status.MAX_STEPS
        assert out.iterations == 3
        np.testing.assert_allclose(out.error, marginal_error(more["plan"], A, B), rtol=1e-8)

    @pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6, 1e-9, 1e-20])
    def test_never_converged_with_a_wrong_plan(self, epsilon):
        cost, a, b = problem("random")
        out, more = solve(cost, a, b, epsilon, tol=1e-3, dtype=jnp.float32, max_steps=2000)
        assert np.all(np.isfinite(more["plan"]))
        if out.status == Status.CONVERGED:
            assert marginal_error(np.float64(more["plan"]), a, b) <= 1.5e-3

    @pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
    def test_units_of_cost_do_not_matter(self, scale):
        """Converged means finite, in float32 and at every scale."""
        cost, a, b = problem("random")
        out, more = solve(scale * cost, a, b, scale * 0.05, tol=1e-4, dtype=jnp.float32, max_steps=2000)
        assert out.status == Status.CONVERGED
        _, plain = solve(cost, a, b, 0.05, tol=1e-4, dtype=jnp.float32, max_steps=2000)
        np.testing.assert_allclose(more["plan"], plain["plan"], atol=1e-5)
        assert np.isfinite(more["cost"])

    def test_resumed_run_is_bit_for_bit_one_run(self):
        solver = ot.Sinkhorn(tol=0.0, max_steps=50, anderson=3)
        entropic = core_problem()
        start = (jnp.zeros(N), jnp.zeros(M))
        run = functools.partial(core.run, solver, start, entropic)
        first = run(max_steps=4)
        resumed, whole = run(max_steps=4, state=first.state), run(max_steps=8)
        chex.assert_trees_all_equal(resumed.state, whole.state)
        assert whole.steps == 8


def core_problem():
    from jaxdiv.ot.problem import Problem

    cost, a, b = contract.cast(problem("random"), jnp.float32)
    return Problem(ot.CostMatrix(cost), a, b, jnp.float32(0.05), ot.Exact(), ot.Exact())


# --- lanes


def branches(jaxpr, inside=False):
    """The conds inside of loops."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if inside and name == "cond":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from branches(inner, inside or name == "while")


def heavy(jaxpr):
    """Whether a jaxpr or one inside of it passes over a matrix [lanes, n, m]."""
    for equation in jaxpr.eqns:
        if (
            any(getattr(v.aval, "ndim", 0) == 3 for v in equation.outvars)
            or equation.primitive.name == "dot_general"
        ):
            return True
        if any(heavy(inner) for inner in jaxprs_in_params(equation.params)):
            return True
    return False


def test_one_branch_runs_under_vmap():
    """Kernel or log space is chosen once for all lanes: no select runs both."""

    def status(cost, epsilon):
        return ot.solve(ot.CostMatrix(cost), epsilon=epsilon, solver=ot.Sinkhorn(mode="auto")).status

    jaxpr = jax.make_jaxpr(jax.vmap(status))(jnp.ones((3, N, M)), jnp.ones(3)).jaxpr
    choices = [e for e in branches(jaxpr) if all(heavy(b.jaxpr) for b in e.params["branches"])]
    assert len(choices) == 2
    assert all(e.invars[0].aval.ndim == 0 for e in choices)
