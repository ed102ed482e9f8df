"""Newton's method on the semi-dual: contract, the paper's problem and claims, linear solvers, lanes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
from absl.testing import parameterized
from jax.extend.core import jaxprs_in_params

from jaxdiv import ot
from jaxdiv.core import Status
from jaxdiv.testing import ot as contract
from jaxdiv.testing.ot import SolverMember

BAD = (
    lambda: ot.SinkhornNewton(warmup=-1),
    lambda: ot.SinkhornNewton(factor=1.0),
    lambda: ot.SinkhornNewton(linear="lu"),
    lambda: ot.SinkhornNewton(nonzeros=0),
    lambda: ot.solve(ot.PointCloud(jnp.ones((5, 2)), block=2), solver=ot.SinkhornNewton()),
    lambda: ot.solve(
        ot.CostMatrix(jnp.ones((5, 4))), marginals=(ot.TV(1.0), ot.Exact()), solver=ot.SinkhornNewton()
    ),
)


def newton(tol, steps, **options):
    return ot.SinkhornNewton(tol=tol, max_steps=steps, **options)


MEMBERS = [
    SolverMember("newton", newton, lambda e: {"epsilon": e}, tight=1e-12, bad=BAD),
    SolverMember(
        "unbalanced_newton", newton,
        lambda e: {"epsilon": e, "marginals": (ot.KL(0.4), ot.L2(2.0))}, tight=1e-12, balanced=False,
    ),
]  # fmt: skip


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS[:1], contract.SOLVER))
    def test_balanced(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(MEMBERS[1:], contract.SOLVER[:1]))
    def test_unbalanced(self, check, member):
        check(member, self.variant)


# --- the paper's random assignment, in float64: costs uniform on [0, 1], epsilon = 1 / eta

N = 40


def assignment(seed, n=N):
    return np.random.default_rng(seed).uniform(size=(n, n)), np.full(n, 1 / n)


@jax.jit
def solved(cost, a, b, epsilon, init, solver):
    out = ot.solve(ot.CostMatrix(cost), a, b, epsilon=epsilon, init=init, solver=solver)
    return out, out.plan()


def solve(cost, a, b, epsilon, solver, init=None):
    init = init or (0 * a, 0 * b)
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, solved(*contract.cast((cost, a, b, epsilon, init), jnp.float64), solver)
        )


def marginal_error(plan, a, b):
    return np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()


@pytest.mark.paper(32)
def test_all_entries_are_dense_newton_and_pot():
    """With all entries of P kept, conjugate gradients take Newton's own step; the plan is Sinkhorn's limit."""
    cost, a = assignment(0)
    dense = solve(cost, a, a, 0.02, newton(1e-11, 60, linear="cholesky"))
    sparse = solve(cost, a, a, 0.02, newton(1e-11, 60, linear="cg", nonzeros=None))
    assert dense[0].status == sparse[0].status == Status.CONVERGED
    # Conjugate gradients stop at a residual tied to the error, which may cost one step.
    assert abs(int(dense[0].iterations) - int(sparse[0].iterations)) <= 2
    np.testing.assert_allclose(sparse[1], dense[1], atol=1e-11)
    theirs = pot.sinkhorn(a, a, cost, 0.02, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13)
    np.testing.assert_allclose(dense[1], theirs, atol=1e-10)


@pytest.mark.paper(32)
def test_few_steps_where_sinkhorn_needs_more_than_400():
    cost, a = assignment(1)
    epsilon = 1 / 400
    plain = solve(cost, a, a, epsilon, ot.Sinkhorn(tol=1e-8, max_steps=400, mode="log"))
    assert plain[0].status == Status.MAX_STEPS
    out, plan = solve(cost, a, a, epsilon, newton(1e-8, 60, linear="cg", nonzeros=5))
    assert out.status == Status.CONVERGED
    assert out.iterations <= 30
    assert marginal_error(plan, a, a) <= 1e-8 + 1e-12


@pytest.mark.paper(32)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_hard_assignment(seed):
    """n = 200, eta = 1200, on which the entry reports conjugate gradients that do not converge."""
    cost, a = assignment(seed, 200)
    out, plan = solve(cost, a, a, 1 / 1200, newton(1e-8, 30))
    assert out.status == Status.CONVERGED
    assert out.iterations <= 30
    assert marginal_error(plan, a, a) <= 1e-8 + 1e-12


class TestOptions:
    @functools.cached_property
    def exact(self):
        cost, a = assignment(2)
        return solve(cost, a, a, 0.01, newton(1e-11, 60))[1]

    @pytest.mark.parametrize(
        "options",
        [
            {"linear": "cg", "nonzeros": 5},
            {"factor": None, "warmup": 30},
            {"factor": 2.0},
        ],
    )
    def test_options_agree(self, options):
        cost, a = assignment(2)
        out, plan = solve(cost, a, a, 0.01, newton(1e-9, 60, **options))
        assert out.status == Status.CONVERGED
        np.testing.assert_allclose(plan, self.exact, atol=1e-9)

    def test_auto_factors_where_conjugate_gradients_fail(self, monkeypatch):
        """Three entries a row are too few here; from the first failure on, steps are exact."""
        monkeypatch.setattr("jaxdiv.ot.newton.DIRECT", 0)
        cost, a = assignment(3)
        out, plan = solve(cost, a, a, 1 / 300, newton(1e-10, 60, nonzeros=3, warmup=1))
        assert out.status == Status.CONVERGED
        assert marginal_error(plan, a, a) <= 1e-10 + 1e-12

    @pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
    def test_units_of_cost_do_not_matter(self, scale):
        cost, a = assignment(2)
        out, plan = solve(scale * cost, a, a, scale * 0.01, newton(1e-11, 60))
        assert out.status == Status.CONVERGED
        np.testing.assert_allclose(plan, self.exact, atol=1e-10)

    def test_a_good_first_guess_skips_the_continuation(self):
        cost, a = assignment(2)
        first, _ = solve(cost, a, a, 0.01, newton(1e-9, 60))
        again, _ = solve(cost, a, a, 0.01, newton(1e-9, 60), init=first.raw)
        assert again.status == Status.CONVERGED
        assert again.iterations <= 2 < first.iterations


def conds(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from conds(inner)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


def test_factorizations_stay_branches_under_vmap():
    """No factorization runs in a step that does not need it: each lies in a cond with a scalar index."""

    def status(cost):
        return ot.solve(ot.CostMatrix(cost), epsilon=0.1, solver=newton(1e-6, 60)).status

    jaxpr = jax.make_jaxpr(jax.vmap(status))(jnp.ones((3, 6, 6))).jaxpr
    inside = sum(
        list(primitives(branch.jaxpr)).count("cholesky")
        for equation in conds(jaxpr)
        for branch in equation.params["branches"]
    )
    assert inside == list(primitives(jaxpr)).count("cholesky") == 1
    assert all(equation.invars[0].aval.ndim == 0 for equation in conds(jaxpr))
