"""Progressive and semantic partial transport: constraints, optimality, other solvers, limits, descent."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxdiv import ot
from jaxdiv.core import Status

N, K = 12, 3
RNG = np.random.default_rng(138)
COST = -np.log(RNG.dirichlet(np.ones(K), N))
PRIOR = np.array([0.5, 0.3, 0.2])
FEATURES = RNG.normal(size=(N, 4))
FEATURES /= np.linalg.norm(FEATURES, axis=1, keepdims=True)
# Positive semidefinite.
SIMILARITY = FEATURES @ FEATURES.T

EQUAL = np.full(K, 1 / K)
COST32, SIMILARITY32 = COST.astype(np.float32), SIMILARITY.astype(np.float32)

# One compilation each: all options are traced.
NEWTON = ot.SinkhornNewton(tol=1e-13)
progressive = jax.jit(ot.progressive_partial)
semantic = jax.jit(ot.semantic_partial, static_argnames="max_steps")


def solved(mass, *, epsilon=0.1, strength=1.0, prior=EQUAL):
    """Plan and slack in float64, to the last digits."""
    with jax.enable_x64(True):
        options = {"epsilon": epsilon, "strength": strength, "prior": prior, "solver": NEWTON}
        out = progressive(COST, mass, **options).raise_if_failed()
        return np.asarray(out.plan()), np.asarray(out.slack())


def scaled(mass, epsilon, gamma, steps=20_000):
    """The paper's scaling loop, in numpy."""
    kernel = np.exp(-np.append(COST, np.zeros((N, 1)), axis=1) / epsilon)
    target = np.append(mass * EQUAL, 1 - mass)
    power = np.append(np.full(K, gamma / (gamma + epsilon)), 1.0)
    b = np.ones(K + 1)
    for _ in range(steps):
        a = 1 / N / (kernel @ b)
        b = (target / (kernel.T @ a)) ** power
    return a[:, None] * kernel * b


@pytest.mark.paper(138)
class TestProgressivePartial:
    @pytest.mark.parametrize("mass", [0.2, 0.7])
    def test_masses(self, mass):
        """1ᵀQ1 = rho, Q1 <= 1/N, and the slack is what is missing."""
        plan, slack = solved(mass)
        np.testing.assert_allclose(plan.sum(), mass, rtol=1e-12)
        assert plan.sum(1).max() < 1 / N
        assert plan.min() > 0
        np.testing.assert_allclose(plan.sum(1) + slack, 1 / N, rtol=1e-12)

    @pytest.mark.parametrize("mass", [0.2, 0.7])
    def test_optimality_conditions(self, mass):
        """C_ik + gamma log(K q_k / rho) + epsilon log Q_ik is epsilon log slack_i and one constant."""
        plan, slack = solved(mass, epsilon=0.2, strength=0.5)
        slope = COST + 0.5 * np.log(K * plan.sum(0) / mass) + 0.2 * np.log(plan)
        constant = slope - 0.2 * np.log(slack)[:, None]
        np.testing.assert_allclose(constant, constant[0, 0], atol=1e-11)

    def test_is_the_papers_scaling(self):
        found = np.column_stack(solved(0.6, epsilon=0.2, strength=0.5))
        np.testing.assert_allclose(found, scaled(0.6, 0.2, 0.5), rtol=1e-9)

    def test_unequal_prior(self):
        """The entropy is relative to the prior, so that Q / pi takes the place of Q in it."""
        plan, _ = solved(0.6, epsilon=0.2, strength=0.5, prior=PRIOR)
        slope = COST + 0.5 * np.log(plan.sum(0) / PRIOR) + 0.2 * np.log(plan / PRIOR)
        np.testing.assert_allclose(slope - slope[:, :1], 0.0, atol=1e-11)

    def test_a_cluster_of_size_zero_stays_empty(self):
        plan, _ = solved(0.6, prior=np.array([0.5, 0.5, 0.0]))
        np.testing.assert_array_equal(plan[:, 2], 0.0)
        np.testing.assert_allclose(plan.sum(), 0.6, rtol=1e-12)

    @pytest.mark.parametrize("strength", [1.0, np.inf])
    def test_all_mass_is_the_problem_without_slack(self, strength):
        """rho = 1: semi-relaxed transport to the clusters, and balanced transport for gamma = inf."""
        plan, slack = solved(1.0, strength=strength)
        columns = ot.Exact() if np.isinf(strength) else ot.KL(strength)
        with jax.enable_x64(True):
            options = {"epsilon": 0.1, "marginals": (ot.Exact(), columns), "solver": NEWTON}
            expected = np.asarray(ot.solve(ot.CostMatrix(COST), **options).plan())
        np.testing.assert_allclose(plan, expected, rtol=1e-9, atol=1e-14)
        np.testing.assert_array_equal(slack, 0.0)

    def test_small_epsilon_is_the_linear_program(self):
        """Fixed sizes: the cheapest Q with columns rho pi and rows at most 1/N."""
        plan, _ = solved(0.5, epsilon=2e-3, strength=np.inf)
        rows, columns = np.kron(np.eye(N), np.ones(K)), np.kron(np.ones(N), np.eye(K))
        best = linprog(COST.ravel(), rows, np.full(N, 1 / N), columns, np.full(K, 0.5 / K))
        np.testing.assert_allclose((plan * COST).sum(), best.fun, atol=2e-3)

    def test_infinite_strength_may_be_a_number_or_traced(self):
        out = ot.progressive_partial(COST32, 0.5, strength=np.inf)
        np.testing.assert_allclose(out.plan(), solved(0.5, strength=np.inf)[0], atol=1e-4)
        np.testing.assert_allclose(out.plan().sum(0), 0.5 / K, atol=1e-4)

    def test_default_solver_in_float32(self):
        """Lanes of several masses, 1 included, hold them to the tolerance of 1e-4; one mass compiles once."""
        masses = np.array([0.1, 0.5, 1.0], np.float32)
        lanes = jax.jit(jax.vmap(ot.progressive_partial, (None, 0)))(COST32, masses).raise_if_failed()
        assert lanes.plan().dtype == jnp.float32
        single = jax.jit(chex.assert_max_traces(ot.progressive_partial, n=1))
        for lane, mass in zip(lanes.plan(), masses, strict=True):
            np.testing.assert_allclose(lane.sum(), mass, atol=2e-4)
            np.testing.assert_allclose(lane, solved(float(mass))[0], atol=2e-4)
            np.testing.assert_allclose(single(COST32, mass).plan(), lane, atol=2e-4)

    def test_derivatives_are_those_of_the_optimum(self):
        """Of the plan by costs, mass, strength and epsilon, against differences; of the value, the plan."""
        weights = RNG.normal(size=(N, K))

        @jax.jit
        def readout(cost, mass, strength, epsilon):
            options = {"strength": strength, "epsilon": epsilon, "solver": NEWTON}
            out = ot.progressive_partial(cost, mass, **options)
            return jnp.vdot(weights, out.plan()), out

        @jax.jit
        def gradients(*point):
            value = jax.grad(lambda cost: readout(cost, *point[1:])[1].cost)(point[0])
            return jax.grad(readout, (0, 1, 2, 3), has_aux=True)(*point), value

        with jax.enable_x64(True):
            point = (COST, 0.6, 0.5, 0.2)
            (gradient, out), value_gradient = gradients(*point)
            np.testing.assert_allclose(value_gradient, out.plan(), rtol=1e-10)
            for argument, direction in enumerate((RNG.normal(size=(N, K)), 1.0, 1.0, 1.0)):
                ahead, behind = (
                    readout(*(x + s * direction if i == argument else x for i, x in enumerate(point)))[0]
                    for s in (1e-5, -1e-5)
                )
                slope = np.vdot(gradient[argument], direction)
                np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-5)
            # The slack of weight 0 is inert: by costs, strength and epsilon nothing jumps there.
            whole, near = (gradients(COST, mass, 0.5, 0.2)[0][0] for mass in (1.0, 1.0 - 1e-7))
            for argument in (0, 2, 3):
                np.testing.assert_allclose(whole[argument], near[argument], rtol=1e-4, atol=1e-6)

    def test_the_most_certain_go_first(self):
        """The paper's point: a small share goes to the rows that fit their cluster best, in order."""
        cluster = np.arange(N) % K
        sure = np.linspace(0.35, 0.95, N)[:, None]
        cost = -np.log(np.where(np.arange(K) == cluster[:, None], sure, (1 - sure) / 2))
        plan = np.asarray(progressive(cost.astype(np.float32), 0.25).plan())
        rows = N * plan.sum(1)
        assert np.all(np.diff(rows) > 0)
        assert rows[: N // 2].max() < 0.2
        np.testing.assert_array_equal(plan.argmax(1), cluster)

    def test_half_precision_is_raised(self):
        out = jax.eval_shape(ot.progressive_partial, jax.ShapeDtypeStruct((N, K), jnp.bfloat16), 0.5)
        assert jax.eval_shape(lambda x: x.plan(), out).dtype == jnp.float32

    def test_failures_are_reported(self):
        """A traced mass out of range, and a cost that is not a number."""
        assert int(progressive(COST32, 1.5).status) == Status.INFEASIBLE
        spoiled = COST32.copy()
        spoiled[0, 0] = np.nan
        assert int(progressive(spoiled, 0.5).status) == Status.NONFINITE

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((jnp.ones((3, 2), jnp.int32), 0.5), {}, "cost must be floating"),
            ((jnp.ones(3), 0.5), {}, "cost must have rank 2"),
            ((jnp.ones((3, 2)), 0.0), {}, r"mass must lie in \(0, 1\]"),
            ((jnp.ones((3, 2)), 1.5), {}, r"mass must lie in \(0, 1\]"),
            ((jnp.ones((3, 2)), 0.5), {"strength": 0.0}, "strength must lie in"),
            ((jnp.ones((3, 2)), 0.5), {"prior": jnp.ones(3) / 3}, r"prior must have one size per cluster"),
            ((jnp.ones((3, 2)), 0.5), {"prior": jnp.ones(2)}, "prior must be nonnegative and sum to 1"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, options, message):
        with pytest.raises(ValueError, match=message):
            ot.progressive_partial(*arguments, **options)


def objective(extended, similarity, weight, mass, epsilon=0.1, gamma=1.0):
    """<Q, C> - lambda <S, QQᵀ> + gamma KL + epsilon KL(P | abᵀ), slack included, in numpy."""
    q, columns = extended[:, :-1], np.append(np.full(K, mass / K), 1 - mass)
    sizes = q.sum(0)
    relative = gamma * (sizes * np.log(sizes * K / mass) - sizes + mass / K).sum()
    entropy = epsilon * (extended * np.log(extended * N / columns)).sum()
    return (q * COST).sum() - weight * (similarity * (q @ q.T)).sum() + relative + entropy


LIMIT = 5


@jax.jit
def few_steps(cost, similarity, mass, weight):
    """A run of at most `LIMIT` steps in float32, and its derivative by the costs."""

    def readout(cost):
        out = ot.semantic_partial(cost, similarity, mass, weight=weight, max_steps=LIMIT)
        return out.plan()[0, 0], out

    gradient, out = jax.grad(readout, has_aux=True)(cost)
    return out, gradient


def to_the_end(similarity):
    """A run to the last digits, in float64."""
    with jax.enable_x64(True):
        options = {"weight": 20.0, "tol": 1e-13, "max_steps": 60, "solver": NEWTON}
        return jax.tree.map(np.asarray, semantic(COST, similarity, 0.7, **options).raise_if_failed())


@pytest.fixture(scope="module")
def found():
    return to_the_end(SIMILARITY)


@pytest.mark.paper(138)
class TestSemanticPartial:
    def test_objective_never_increases(self, found):
        """S is positive semidefinite and the inner solves converge."""
        assert np.diff(found.objectives).max() <= 1e-12
        assert found.objectives[0] - found.objectives[-1] > 0.1
        assert found.iterations > 3

    def test_objectives_are_those_of_the_plans(self, found):
        product = np.append(np.full((N, K), 0.7 / (N * K)), np.full((N, 1), 0.3 / N), axis=1)
        for value, plan in ((found.objectives[0], product), (found.objectives[-1], found.extended)):
            np.testing.assert_allclose(value, objective(plan, SIMILARITY, 20.0, 0.7), rtol=1e-10)

    def test_ends_at_a_stationary_plan(self, found):
        """The masses, and the conditions of partial transport at the costs C - lambda (S + Sᵀ) Q."""
        plan, slack = found.plan(), found.slack()
        np.testing.assert_allclose(plan.sum(), 0.7, rtol=1e-10)
        np.testing.assert_allclose(plan.sum(1) + slack, 1 / N, rtol=1e-10)
        cost = COST - 40.0 * SIMILARITY @ plan
        slope = cost + np.log(plan.sum(0)) + 0.1 * np.log(plan) - 0.1 * np.log(slack)[:, None]
        np.testing.assert_allclose(slope, slope[0, 0], atol=1e-4)

    def test_only_the_symmetric_part_counts(self, found):
        skew = RNG.normal(size=(N, N))
        np.testing.assert_allclose(to_the_end(SIMILARITY + skew - skew.T).plan(), found.plan(), atol=1e-9)

    def test_float32_takes_the_same_steps(self, found):
        """As far as its limit allows, which it reports."""
        out, _ = few_steps(COST32, SIMILARITY32, 0.7, 20.0)
        np.testing.assert_allclose(out.objectives, found.objectives[: LIMIT + 1], atol=1e-3)
        assert int(out.status) == Status.MAX_STEPS
        with pytest.raises(RuntimeError, match="MAX_STEPS after 5 steps"):
            out.raise_if_failed()

    def test_without_weight_it_is_progressive(self):
        """One step to the plan and one to see that it stays."""
        out, _ = few_steps(COST32, SIMILARITY32, 0.7, 0.0)
        assert int(out.raise_if_failed().iterations) == 2
        np.testing.assert_allclose(out.plan(), progressive(COST32, 0.7).plan(), atol=1e-4)

    def test_an_increase_is_not_taken(self):
        """With a negative definite S the tangent is no majorizer; the step is refused."""
        out, _ = few_steps(COST32, -SIMILARITY32, 0.7, 200.0)
        assert int(out.status) == Status.STALLED
        assert np.diff(out.objectives).max() <= 0

    def test_similar_examples_share_a_cluster(self):
        """The paper's point: ambivalent rows follow the certain ones that they resemble."""
        cluster, sure = np.arange(N) % K, np.arange(N)[:, None] < N // 2
        cost = (1.0 + 2.0 * (sure & (np.arange(K) != cluster[:, None]))).astype(np.float32)
        alone = progressive(cost, 0.9).plan()[N // 2 :]
        np.testing.assert_allclose(alone, alone[:, :1] + 0 * alone, rtol=1e-3)
        out, _ = few_steps(cost, (cluster[:, None] == cluster).astype(np.float32), 0.9, 5.0)
        np.testing.assert_array_equal(np.argmax(out.plan(), 1), cluster)

    def test_failures_are_reported(self):
        """Those of the transport, with the plan before it."""
        for cost, mass, status in (
            (COST32, 1.5, Status.INFEASIBLE),
            (np.full_like(COST32, np.nan), 0.5, Status.NONFINITE),
        ):
            assert int(few_steps(cost, SIMILARITY32, mass, 20.0)[0].status) == status

    def test_is_constant_to_derivatives(self):
        np.testing.assert_array_equal(few_steps(COST32, SIMILARITY32, 0.7, 20.0)[1], 0.0)

    @pytest.mark.parametrize(
        ("similarity", "options", "message"),
        [
            (jnp.ones((2, 2)), {}, r"similarity must have shape \(3, 3\)"),
            (jnp.ones((3, 3), jnp.int32), {}, "similarity must be floating"),
            (jnp.ones((3, 3)), {"weight": -1.0}, "weight must lie in"),
            (jnp.ones((3, 3)), {"max_steps": 0}, "max_steps must lie in"),
        ],
    )
    def test_bad_arguments_are_named(self, similarity, options, message):
        with pytest.raises(ValueError, match=message):
            ot.semantic_partial(jnp.ones((3, 2)), similarity, 0.5, **options)
