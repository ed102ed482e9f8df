"""Penalties on marginals: the contract, their limits, and POT and convex programs as references."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.optimize
from absl.testing import parameterized

from jaxdiv import ot
from jaxdiv.core import Status
from jaxdiv.testing import ot as contract
from jaxdiv.testing.ot import MarginalMember

INF = np.inf


def least(penalty):
    """``sum_i min_r D(r | a) + f r``, on a grid of r, for penalties that are sums."""

    def value(f, a, option):
        total = 0.0
        for f_i, a_i in zip(f, a, strict=True):
            if a_i > 0:
                r = a_i * np.concatenate([[0.0, 1.0], np.linspace(0, 12, 240_001)])
                total += np.min(penalty(r, a_i, option) + f_i * r)
        return total

    return value


def kl(r, a, rho):
    return rho * (r * np.log(np.where(r > 0, r, 1) / a) - r + a)


def tv(r, a, rho):
    return rho * np.abs(r - a)


def l2(r, a, rho):
    return rho / 2 * (r - a) ** 2


def over_entries(penalty):
    return lambda r, a, option: np.sum(penalty(r[a > 0], a[a > 0], option))


def within(r, a, option):
    return 0.0 if np.all(r <= a + 1e-6) and abs(r.sum() - (option or r.sum())) < 1e-6 else INF


def cheapest(f, a, mass):
    """The linear program ``min f·r, 0 <= r <= a, sum r = mass``."""
    found = scipy.optimize.linprog(f, A_eq=np.ones((1, len(f))), b_eq=[mass], bounds=[(0, u) for u in a])
    return found.fun


PENALTIES = [
    MarginalMember("exact", lambda _: ot.Exact(), lambda f, a, _: f @ a, lambda r, a, _: within(r, a, a.sum()), None),
    *(
        MarginalMember(
            name, make, least(penalty), over_entries(penalty),
            bad=tuple(functools.partial(make, x) for x in (0.0, -1.0, np.nan, [1.0, -1.0])),
        )
        for name, make, penalty in (("kl", ot.KL, kl), ("tv", ot.TV, tv), ("l2", ot.L2, l2))
    ),
    MarginalMember(
        "at_most", lambda _: ot.AtMost(), lambda f, a, _: np.minimum(f, 0) @ a, within, None
    ),
    MarginalMember(
        "partial", ot.Partial, cheapest, within,
        bad=tuple(functools.partial(ot.Partial, x) for x in (0.0, -1.0, np.nan)),
    ),
]  # fmt: skip


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(PENALTIES, contract.MARGINAL))
    def test_marginal(self, check, member):
        check(member, self.variant)

    def test_eager(self):
        """Without jit the update is the same."""
        arguments = contract.cast((contract.SOFTMIN, contract.WEIGHTS, 0.3), jnp.float32)
        for marginal in (ot.KL(0.4), ot.Partial(0.4)):
            compiled = jax.jit(lambda m, *z: m.update(*z))(marginal, *arguments)
            np.testing.assert_allclose(marginal.update(*arguments), compiled, rtol=1e-6)


class TestUpdates:
    def test_l2_keeps_float32_at_large_prices(self):
        """``f = s + epsilon log(w / ratio)`` with w the root; the mass is a - f / rho."""
        s, a = jnp.float32(contract.SOFTMIN), jnp.float32(contract.WEIGHTS)
        update = jax.jit(lambda rho: ot.L2(rho).update(s, a, 0.05))
        for rho in (1.0, 1e2, 1e4, 1e6):
            with jax.enable_x64(True):
                exact = ot.L2(rho).update(jnp.asarray(s, jnp.float64), jnp.asarray(a, jnp.float64), 0.05)
            np.testing.assert_allclose(update(rho)[:-1], exact[:-1], atol=2e-6)

    def test_prices_may_differ_by_entry(self):
        s, a, rho = jnp.float32(contract.SOFTMIN), jnp.float32(contract.WEIGHTS), jnp.linspace(0.2, 2.0, 6)
        for kind in (ot.KL, ot.TV, ot.L2):
            whole = kind(rho).update(s, a, 0.1)
            each = jax.vmap(lambda *z, k=kind: k(z[2]).update(z[0], z[1], 0.1))(s, a, rho)
            np.testing.assert_allclose(whole, each, rtol=1e-6)

    def test_partial_price_at_ties_and_extremes(self):
        """All mass, a sliver of it, equal softmins: the masses sum to what was asked."""
        a = jnp.float32([0.5, 0.0, 0.25, 0.25])
        masses = jax.jit(lambda s, mass: a * jnp.exp((ot.Partial(mass).update(s, a, 0.05) - s) / 0.05))
        for s in ([1.0, -5.0, 1.0, 1.0], [0.0, 0.0, 50.0, -50.0], [1.0, 2.0, 3.0, 3.0]):
            for mass in (1.0, 0.75, 0.3, 1e-6):
                got = masses(jnp.float32(s), mass)
                np.testing.assert_allclose(jnp.sum(got), mass, rtol=1e-4)
                assert np.all(got <= a * (1 + 1e-5))


# --- whole problems, in float64 against others

RNG = np.random.default_rng(0)
C = RNG.uniform(size=(5, 4))
A, B = RNG.dirichlet(np.ones(5)), 1.3 * RNG.dirichlet(np.ones(4))
EPSILON, RHO = 0.1, 0.4
FORMULAS = {ot.KL: kl, ot.TV: tv, ot.L2: l2}


@jax.jit
def solve(cost, a, b, epsilon, marginals, tol=1e-12):
    solver = ot.Sinkhorn(tol=tol, max_steps=20_000, mode="log")
    out = ot.solve(ot.CostMatrix(cost), a, b, epsilon=epsilon, marginals=marginals, solver=solver)
    return out.plan(), out.dual, out.gap, out.status


def solve64(*args, tol=1e-12):
    with jax.enable_x64(True):
        *numbers, marginals = args
        return jax.tree.map(np.asarray, solve(*contract.cast(numbers, jnp.float64), marginals, tol))


def objective(plan, epsilon, row=None, column=None):
    """The primal, by its definition."""
    product = np.outer(A, B)
    value = np.sum(
        plan * C + epsilon * (np.where(plan > 0, plan * np.log(np.where(plan > 0, plan, 1) / product), 0))
    )
    value += epsilon * np.sum(product - plan)
    for penalty, mass, weights in ((row, plan.sum(1), A), (column, plan.sum(0), B)):
        if penalty is not None:
            value += np.sum(FORMULAS[type(penalty)](mass, weights, float(penalty.rho)))
    return value


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # raised by POT's call
@pytest.mark.parametrize("kind", [ot.KL, ot.L2])
def test_pot_finds_the_same_unbalanced_plan(kind):
    """POT minimizes ``<C, P> + reg KL(P | c) + reg_m D(P1 | a) + reg_m D(P^T 1 | b)``."""
    plan, cost, gap, status = solve64(C, A, B, EPSILON, (kind(RHO), kind(RHO)))
    assert status == Status.CONVERGED
    theirs = pot.unbalanced.lbfgsb_unbalanced(
        A, B, C, EPSILON, RHO, np.outer(A, B), regm_div=kind.__name__.lower(), numItermax=5000, stopThr=1e-16
    )
    np.testing.assert_allclose(plan, theirs, atol=2e-5)
    assert abs(gap) < 1e-10
    np.testing.assert_allclose(cost, objective(plan, EPSILON, kind(RHO), kind(RHO)), rtol=1e-10)


def program(cost, a, b, mass=None, rho=None):
    """The plan with ``P1 <= a, P^T 1 <= b``, the total if given; or with total variation at a price rho."""
    n, m = cost.shape
    product, limits = np.outer(a, b).ravel(), np.concatenate([a, b])
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    constraints = [{"type": "ineq", "fun": lambda p: limits - sums @ p, "jac": lambda p: -sums}]
    # Variables are the plan and, for total variation, what its masses miss and what they exceed.
    free, price = n * m, np.zeros(0)
    if mass is not None:
        ones = np.ones((1, free))
        constraints.append({"type": "eq", "fun": lambda p: p.sum() - mass, "jac": lambda p: ones})
    if rho is not None:
        price = np.full(2 * (n + m), rho)
        matrix = np.hstack([sums, np.eye(n + m), -np.eye(n + m)])
        constraints = [{"type": "eq", "fun": lambda p: matrix @ p - limits, "jac": lambda p: matrix}]

    def value(p):
        p, slack = p[:free], p[free:]
        return p @ cost.ravel() + EPSILON * np.sum(p * np.log(p / product) - p + product) + price @ slack

    def gradient(p):
        return np.concatenate([cost.ravel() + EPSILON * np.log(p[:free] / product), price])

    start = np.concatenate([0.3 * product / product.sum(), 0.1 + 0 * price])
    found = scipy.optimize.minimize(
        value, start, jac=gradient, method="SLSQP", bounds=[(1e-12, None)] * len(start),
        constraints=constraints, options={"maxiter": 1000, "ftol": 1e-14},
    )  # fmt: skip
    return found.x[:free].reshape(n, m), found.fun


@pytest.mark.parametrize(
    ("name", "turned"), [("partial", False), ("partial", True), ("at_most", False), ("tv", False)]
)
def test_nonsmooth_marginals_solve_their_convex_program(name, turned):
    cost, b, options = {
        "partial": (C, B, {"mass": 0.4}),
        "at_most": (C - 1.0, 0.5 * B, {}),
        "tv": (C, B, {"rho": RHO}),
    }[name]
    marginals = {
        "partial": (ot.Partial(0.4), ot.AtMost()),
        "at_most": (ot.AtMost(), ot.AtMost()),
        "tv": (ot.TV(RHO), ot.TV(RHO)),
    }[name]
    expected, value = program(cost, A, b, **options)
    plan, got, gap, status = solve64(cost, A, b, EPSILON, marginals[::-1] if turned else marginals)
    assert status == Status.CONVERGED
    np.testing.assert_allclose(got, value, atol=2e-8)
    np.testing.assert_allclose(plan, expected, atol=5e-5)
    assert abs(gap) < 1e-10


def test_pot_entropic_partial_in_the_limit():
    """POT's partial plans have no product measure in the entropy; at a small epsilon that does not matter."""
    plan, *_ = solve64(C, A, B, 2e-3, (ot.Partial(0.4), ot.AtMost()))
    exact = pot.partial.partial_wasserstein(A, B, C, m=0.4)
    np.testing.assert_allclose(plan, exact, atol=5e-3)


class TestLimits:
    def test_infinite_price_is_exact(self):
        b = B / B.sum()
        exact = solve64(C, A, b, EPSILON, (ot.Exact(), ot.Exact()))
        plan, cost, *_, status = solve64(C, A, b, EPSILON, (ot.KL(np.inf), ot.KL(np.inf)))
        assert status == Status.CONVERGED
        np.testing.assert_allclose(plan, exact[0], atol=1e-10)
        np.testing.assert_allclose(cost, exact[1], atol=1e-10)

    def test_all_mass_is_exact(self):
        b = B / B.sum()
        exact = solve64(C, A, b, EPSILON, (ot.Exact(), ot.Exact()))
        plan, cost, *_ = solve64(C, A, b, EPSILON, (ot.Partial(1.0), ot.AtMost()))
        np.testing.assert_allclose(plan, exact[0], atol=1e-8)
        np.testing.assert_allclose(cost, exact[1], atol=1e-8)

    def test_vanishing_price_leaves_nothing_to_pay(self):
        plan, cost, *_ = solve64(C, A, B, EPSILON, (ot.KL(1e-4), ot.KL(1e-4)))
        free = np.outer(A, B) * np.exp(-C / EPSILON)
        np.testing.assert_allclose(plan, free, rtol=0.02)
        np.testing.assert_allclose(cost, EPSILON * (A.sum() * B.sum() - free.sum()), rtol=0.02)


@pytest.mark.parametrize("kind", [ot.KL, ot.L2, ot.TV])
def test_bounds_hold_before_convergence(kind):
    """Weak duality after one step, of the problems that others have solved above."""
    marginals = (kind(RHO), kind(RHO))
    _, optimum, *_ = solve64(C, A, B, EPSILON, marginals)
    _, dual, gap, status = solve64(C, A, B, EPSILON, marginals, tol=1e3)
    assert status == Status.CONVERGED
    assert dual < optimum - 1e-4
    assert dual + gap > optimum + 1e-6
