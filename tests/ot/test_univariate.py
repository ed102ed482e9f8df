"""Transport on the line: by hand, POT, scipy, a linear program, potentials, padding, 1e5 points."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.stats

from jaxdiv import ot

RNG = np.random.default_rng(11)
X, Y = RNG.normal(size=7), 0.5 + 2.0 * RNG.normal(size=5)
A, B = RNG.dirichlet(np.ones(7)), RNG.dirichlet(np.ones(5))

cost = jax.jit(ot.univariate)
static = jax.jit(ot.univariate, static_argnames="p")
plan = jax.jit(ot.univariate_plan)


@jax.jit
def value_and_gradients(x, y, a, b, p):
    return jax.value_and_grad(ot.univariate, (0, 1, 2, 3))(x, y, a, b, p=p)


def costs(x, y, p):
    return np.abs(x[:, None] - y) ** p


def dense(rows, columns, mass, n, m):
    matrix = np.zeros((n, m))
    np.add.at(matrix, (np.asarray(rows), np.asarray(columns)), np.asarray(mass))
    return matrix


class TestCost:
    def test_by_hand(self):
        """0 -> 1 and 3 -> 5: (1 + 4)/2; a quarter from 0 and the rest from 1 to 2: 1/4·2 + 3/4·1."""
        x, y = jnp.array([3.0, 0.0]), jnp.array([1.0, 5.0])
        assert cost(x, y, p=2.0) == 2.5
        assert cost(x, y, p=1.0) == 1.5
        x, y, quarter, one = jnp.array([0.0, 1.0]), jnp.array([2.0]), jnp.array([0.25, 0.75]), jnp.ones(1)
        assert cost(x, y, quarter, one, p=1.0) == 1.25
        assert cost(x, y, 8 * quarter, 8 * one, p=1.0) == 10.0
        assert cost(one, 4 * one, one, one, p=3.0) == 27.0

    @pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
    def test_equals_pot_and_scipy(self, p):
        with jax.enable_x64(True):
            weighted, equal, half = cost(X, Y, A, B, p=p), cost(X, Y, p=p), cost(X, Y, A, p=p)
        fifths = np.full(5, 0.2)
        np.testing.assert_allclose(weighted, pot.emd2_1d(X, Y, A, B, "minkowski", p=p), rtol=1e-12)
        np.testing.assert_allclose(weighted, pot.wasserstein_1d(X, Y, A, B, p=p), rtol=1e-12)
        np.testing.assert_allclose(equal, pot.wasserstein_1d(X, Y, p=p), rtol=1e-12)
        np.testing.assert_allclose(half, pot.wasserstein_1d(X, Y, A, fifths, p=p), rtol=1e-12)
        if p == 1:
            np.testing.assert_allclose(weighted, scipy.stats.wasserstein_distance(X, Y, A, B), rtol=1e-12)

    @pytest.mark.parametrize("p", [1, 2])
    def test_a_power_known_while_tracing_is_the_same(self, p):
        with jax.enable_x64(True):
            np.testing.assert_allclose(static(X, Y, A, B, p=p), cost(X, Y, A, B, p=float(p)), rtol=1e-14)

    def test_without_weights_is_equal_weights(self):
        """One path in integers, the other in sums of thirds and sevenths; ties where 6 and 4 share cuts."""
        with jax.enable_x64(True):
            for n, m in ((7, 5), (7, 7), (6, 4)):
                x, y = RNG.normal(size=n), RNG.normal(size=m)
                weights = np.full(n, 1 / n), np.full(m, 1 / m)
                np.testing.assert_allclose(cost(x, y), cost(x, y, *weights), rtol=1e-13)


class TestPlan:
    def test_is_the_linear_program_for_any_convex_cost(self):
        with jax.enable_x64(True):
            rows, columns, mass = plan(X, Y, A, B)
        chex.assert_shape([rows, columns, mass], (11,))
        coupling = dense(rows, columns, mass, 7, 5)
        np.testing.assert_allclose(coupling.sum(1), A, rtol=1e-13)
        np.testing.assert_allclose(coupling.sum(0), B, rtol=1e-13)
        gap = X[:, None] - Y
        for c in (gap**2, np.abs(gap) ** 3, np.maximum(gap, -0.3 * gap), np.exp(gap)):
            np.testing.assert_allclose((coupling * c).sum(), pot.emd2(A, B, c), rtol=1e-12)

    def test_is_a_staircase_with_ties(self):
        """Equal weights 1/4 against 1/4 meet at every cut: 7 cells, 3 of them empty."""
        rows, columns, mass = plan(jnp.arange(4.0)[::-1], jnp.arange(4.0))
        np.testing.assert_array_equal(rows[::2], [3, 2, 1, 0])
        np.testing.assert_array_equal(columns[::2], [0, 1, 2, 3])
        np.testing.assert_array_equal(mass, [0.25, 0, 0.25, 0, 0.25, 0, 0.25])
        steps = np.abs(np.diff(rows)) + np.abs(np.diff(columns))
        np.testing.assert_array_equal(steps, 1)

    def test_value_is_the_plans(self):
        with jax.enable_x64(True):
            rows, columns, mass = plan(X, Y, A, B)
            np.testing.assert_allclose(
                cost(X, Y, A, B, p=1.5), (mass * np.abs(X[rows] - Y[columns]) ** 1.5).sum(), rtol=1e-13
            )


class TestDerivatives:
    @pytest.mark.parametrize("p", [1.0, 2.0, 2.7])
    def test_finite_differences(self, p):
        """In points, in weights along changes of mass 0, and in the power."""
        h = 1e-6
        with jax.enable_x64(True):
            _, (of_x, of_y, of_a, of_b) = value_and_gradients(X, Y, A, B, p)
            of_p = jax.jit(jax.grad(lambda p: ot.univariate(X, Y, A, B, p=p)))(p + 0.1)
            numeric = (cost(X, Y, A, B, p=p + 0.1 + h) - cost(X, Y, A, B, p=p + 0.1 - h)) / (2 * h)
            np.testing.assert_allclose(of_p, numeric, rtol=1e-7)
            u, v, s, t = (RNG.normal(size=k) for k in (7, 5, 7, 5))
            s, t = (s - s.mean()) / 50, (t - t.mean()) / 50

            def along(r):
                return float(cost(X + r * u, Y + r * v, A + r * s, B + r * t, p=p))

            np.testing.assert_allclose(
                of_x @ u + of_y @ v + of_a @ s + of_b @ t, (along(h) - along(-h)) / (2 * h), rtol=1e-6
            )

    @pytest.mark.parametrize("p", [1.0, 2.0])
    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (np.full(5, 0.2), np.full(5, 0.2)),
            (np.array([0.5, 0, 0.25, 0.25, 0]), np.array([0, 0.25, 0.25, 0, 0.5])),
        ],
        ids=["equal", "zeros"],
    )
    def test_weights_have_optimal_potentials(self, p, a, b):
        """f_i + g_j <= C_ij, also where cuts coincide and at points of weight 0; both halves are equal."""
        x = X[:5]
        with jax.enable_x64(True):
            value, grads = value_and_gradients(x, Y, a, b, p)
        value, _, _, f, g = (np.asarray(z) for z in (value, *grads))
        assert (f[:, None] + g - costs(x, Y, p)).max() < 1e-13
        np.testing.assert_allclose([f @ a, g @ b], [value / 2, value / 2], rtol=1e-13)

    def test_coinciding_points(self):
        """Equal measures: cost 0, gradient 0 in points and power at any power, no NaN in weights."""
        x = jnp.asarray(X, jnp.float32)
        weights = jnp.asarray(A, jnp.float32)
        for p in (1.0, 1.5, 2.0):
            value, grads = value_and_gradients(x, x, weights, weights, p)
            assert value == 0
            np.testing.assert_array_equal(grads[0], 0.0)
            np.testing.assert_array_equal(grads[1], 0.0)
            chex.assert_tree_all_finite(grads)
        assert jax.jit(jax.grad(lambda p: ot.univariate(x, x, weights, weights, p=p)))(1.5) == 0


class TestPadding:
    @pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30, 0.3])
    def test_weight_zero_is_absent(self, filler):
        x, a = np.insert(X[:5], [0, 2], filler), np.insert(A[:5], [0, 2], 0.0)
        x, y, a, b = (z.astype(np.float32) for z in (x, Y, a / a.sum(), B))
        present = a > 0
        value, grads = jax.tree.map(np.asarray, value_and_gradients(x, y, a, b, 2.0))
        short, (of_x, of_y, of_a, of_b) = value_and_gradients(x[present], y, a[present], b, 2.0)
        np.testing.assert_allclose(value, short, rtol=1e-6)
        chex.assert_tree_all_finite(grads)
        np.testing.assert_array_equal(grads[0][~present], 0.0)
        chex.assert_trees_all_close(
            (grads[0][present], grads[1], grads[2][present], grads[3]), (of_x, of_y, of_a, of_b), rtol=1e-5
        )

    def test_no_mass_at_all_costs_nothing(self):
        zeros = jnp.zeros(7), jnp.zeros(5)
        value, grads = value_and_gradients(jnp.asarray(X), jnp.asarray(Y), *zeros, 2.0)
        assert value == 0
        chex.assert_tree_all_finite(grads)


class TestNumerics:
    def test_float32_at_1e5_points(self):
        """Every row and column mass, 1e-5 beside sums of 1, keeps float32's precision; so does the cost."""
        n, m = 100_000, 70_000
        x, y = RNG.normal(size=n).astype(np.float32), RNG.normal(0.01, size=m).astype(np.float32)
        a, b = (w / w.sum() for w in (RNG.gamma(2.0, size=n), RNG.gamma(2.0, size=m)))
        a, b = a.astype(np.float32), b.astype(np.float32)

        @jax.jit
        def both(x, y, a, b):
            rows, columns, mass = ot.univariate_plan(x, y, a, b)
            gap = x[rows] - y[columns]
            return (rows, columns, mass), jnp.sum(mass * gap * gap)

        (rows, columns, mass), value = jax.tree.map(np.asarray, both(x, y, a, b))
        assert mass.min() >= 0
        for index, weights in ((rows, a), (columns, b)):
            sums = np.bincount(index, mass.astype(np.float64))
            np.testing.assert_allclose(sums, weights, rtol=1e-5, atol=1e-9)
        doubles = [z.astype(np.float64) for z in (x, y, a, b)]
        doubles[2:] = [w / w.sum() for w in doubles[2:]]
        np.testing.assert_allclose(value, pot.wasserstein_1d(*doubles, p=2), rtol=2e-6)

    def test_far_from_the_origin(self):
        shift = np.float32(2.0**20)
        x, y = (np.round(z * 8).astype(np.float32) / 8 for z in (X, Y))
        weights = A.astype(np.float32), B.astype(np.float32)
        assert cost(x + shift, y + shift, *weights) == cost(x, y, *weights)

    def test_half_precision_is_raised(self):
        arrays = [jnp.asarray(z, jnp.bfloat16) for z in (X, Y)]
        weights = [jnp.asarray(z, jnp.bfloat16) for z in (A, B)]
        value = cost(*arrays, *weights)
        assert value.dtype == jnp.float32
        u, v = (np.asarray(w, np.float64) for w in weights)
        u, v = u * (u.sum() + v.sum()) / 2 / u.sum(), v * (u.sum() + v.sum()) / 2 / v.sum()
        expected = pot.wasserstein_1d(*(np.asarray(z, np.float64) for z in arrays), u, v, p=2)
        np.testing.assert_allclose(value, expected, rtol=1e-2)

    def test_vmap_is_a_loop_and_equal_shapes_do_not_retrace(self):
        x, a = RNG.normal(size=(3, 7)).astype(np.float32), RNG.dirichlet(np.ones(7), 3).astype(np.float32)
        y, b = Y.astype(np.float32), B.astype(np.float32)
        powers = jnp.array([1.0, 1.7, 2.0])
        fn = chex.assert_max_traces(lambda x, y, a, b, p: ot.univariate(x, y, a, b, p=p), n=1)
        one = jax.jit(fn)
        each = [one(x[i], y, a[i], b, powers[i]) for i in range(3)]
        batch = jax.jit(jax.vmap(lambda x, a, p: ot.univariate(x, y, a, b, p=p)))(x, a, powers)
        np.testing.assert_allclose(batch, each, rtol=1e-6)

    def test_traced_weights_that_admit_no_plan_give_nan(self):
        x, y, a, b = (jnp.asarray(z, jnp.float32) for z in (X, Y, A, B))
        for bad in (1.01 * a, a.at[0].add(-1.0).at[1].add(1.0), a.at[2].set(jnp.nan)):
            value, grads = value_and_gradients(x, y, bad, b, 2.0)
            assert all(bool(jnp.isnan(z).all()) for z in (value, *grads))
        assert jnp.isnan(plan(x, y, 1.01 * a, b)[2]).all()


SIX = np.ones(6, np.float32)
THIRDS = np.full(3, 1 / 3, np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SIX, np.arange(3)), {}, "y must be floating"),
        ((SIX[:, None], SIX), {}, "x must have rank 1"),
        ((SIX[:0], SIX), {}, "x must not be empty"),
        ((SIX, SIX, SIX[:5]), {}, "a must have one weight per point"),
        ((SIX, SIX, None, np.ones(6, int)), {}, "b must be floating"),
        ((SIX, SIX, SIX), {}, "one mass; got 6 and 1"),
        ((SIX[:3], SIX[:3], THIRDS, 1.001 * THIRDS), {}, "one mass"),
        ((SIX[:3], SIX[:3], np.array([2.0, -1.0, 0.0])), {}, "a must lie in"),
        ((SIX[:3], SIX[:3], None, np.array([1.0, np.nan, 0.0])), {}, "b must lie in"),
        ((SIX[:3], SIX[:3], np.array([np.inf, 0.0, 0.0])), {}, "a must lie in"),
        ((SIX, SIX), {"p": 0.9}, "p must lie in"),
        ((SIX, SIX), {"p": np.inf}, "p must lie in"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ot.univariate(*arguments, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            ot.univariate_plan(*arguments)


@jax.jit
def distances(points, weights, shift, p):
    """Pairwise over three measures: W_p, W_p the other way round, moved, and the cost of the product plan."""

    def of_pair(i, j):
        x, y, a, b = points[i], points[j], weights[i], weights[j]
        product = a @ (jnp.abs(x[:, None] - y) ** p) @ b
        here, back = ot.univariate(x, y, a, b, p=p), ot.univariate(y, x, b, a, p=p)
        return here, back, ot.univariate(x + shift, y + shift, a, b, p=p), product

    return jax.vmap(of_pair)(jnp.array([0, 1, 0]), jnp.array([1, 2, 2]))


@hypothesis.given(
    points=hnp.arrays(np.float64, (3, 5), elements=st.floats(-100, 100)),
    counts=hnp.arrays(np.int64, (3, 5), elements=st.integers(0, 3)),
    shift=st.floats(-100, 100),
    p=st.floats(1.0, 4.0),
)
def test_is_a_distance(points, counts, shift, p):
    """Symmetric, blind to a common shift, triangle inequality; no plan is cheaper than the optimum."""
    counts[:, 0] += 1
    weights = counts / counts.sum(1, keepdims=True)
    with jax.enable_x64(True):
        here, back, moved, product = (np.asarray(z) for z in distances(points, weights, shift, p))
    np.testing.assert_allclose(here, back, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(here, moved, rtol=1e-9, atol=1e-9)
    assert (here <= product * (1 + 1e-12)).all()
    first, second, direct = np.maximum(here, 0) ** (1 / p)
    assert direct <= (first + second) * (1 + 1e-9) + 1e-9
