"""Projections onto halfspaces, hyperplanes, affine sets and sections of boxes: scipy, optax, derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize

from jaxdiv.convex import project_affine, project_box_section, project_halfspace, project_hyperplane

RNG = np.random.default_rng(4)
X = RNG.normal(size=(8, 5)) * 2
NORMAL, MATRIX = RNG.normal(size=5), RNG.normal(size=(2, 5))
LOW, HIGH = -RNG.uniform(0.1, 1.0, 5), RNG.uniform(0.1, 1.0, 5)
# A function of x and of all its numeric options, and values of those.
CASES = {
    "halfspace": (project_halfspace, (NORMAL, 0.4)),
    "hyperplane": (project_hyperplane, (NORMAL, 0.4)),
    "affine": (project_affine, (MATRIX, np.array([0.5, -1.0]))),
    "box_section": (project_box_section, (LOW, HIGH, NORMAL, 0.4)),
}
NAMES = list(CASES)
DIRECTION = np.random.default_rng(7).normal(size=5)


def _directions(x, options):
    return jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape), (x, *options))


def _measure(name, x, *options):
    """The projection of each row, its derivatives along all arguments, and the reverse of those."""
    project = CASES[name][0]

    def at(x):
        point, pull = jax.vjp(project, x, *options)
        moved = _directions(x, options)
        push = jax.jvp(project, (x, *options), moved)[1]
        back = pull(jnp.asarray(DIRECTION, x.dtype))
        total = sum(jnp.vdot(m, b) for m, b in zip(moved, back, strict=True))
        jacobian = jax.jacfwd(project)(x, *options)

        def along(t):
            return project(*(v + t * m for v, m in zip((x, *options), moved, strict=True)))

        return point, push, jnp.vdot(push, DIRECTION) - total, (along(1e-6) - along(-1e-6)) / 2e-6, jacobian

    return jax.vmap(at)(x)


_measured = jax.jit(_measure, static_argnums=0)


def measure(name, x=X, options=None):
    options = CASES[name][1] if options is None else options
    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda v: jnp.asarray(v, float), (x, *options))
        return tuple(np.asarray(v) for v in _measured(name, *arrays))


def feasible(name, z):
    if name == "affine":
        return np.abs(z @ MATRIX.T - CASES[name][1][1]).max(-1) < 1e-12
    gap = z @ NORMAL - 0.4
    if name == "halfspace":
        return gap < 1e-12
    inside = np.all((z >= LOW) & (z <= HIGH), -1) if name == "box_section" else True
    return (np.abs(gap) < 1e-12) & inside


@pytest.mark.parametrize("name", NAMES)
class TestEverySet:
    def test_is_the_nearest_point(self, name):
        """Feasible, ⟨x - Px, z - Px⟩ ≤ 0 for the other points of the set, and idempotent."""
        point = measure(name)[0]
        assert np.all(feasible(name, point))
        for shift in range(8):
            assert np.all(((X - point) * (np.roll(point, shift, 0) - point)).sum(-1) <= 1e-12)
        np.testing.assert_allclose(measure(name, point)[0], point, atol=1e-12)

    def test_is_nonexpansive(self, name):
        point = measure(name)[0]
        for shift in range(1, 4):
            moved, change = np.roll(X, shift, 0) - X, np.roll(point, shift, 0) - point
            assert np.all((change * change).sum(-1) <= (change * moved).sum(-1) + 1e-12)

    def test_equals_scipy(self, name):
        point, *_ = measure(name)
        linear = {"fun": lambda z: z @ NORMAL - 0.4, "type": "eq"}
        constraint = {
            "halfspace": {"fun": lambda z: 0.4 - z @ NORMAL, "type": "ineq"},
            "affine": {"fun": lambda z: MATRIX @ z - CASES["affine"][1][1], "type": "eq"},
        }.get(name, linear)
        bounds = list(zip(LOW, HIGH, strict=True)) if name == "box_section" else None
        for x, p in zip(X[:4], point, strict=False):
            options = {"method": "SLSQP", "constraints": constraint, "bounds": bounds, "tol": 1e-12}
            best = optimize.minimize(lambda z, x=x: ((z - x) ** 2).sum(), np.zeros(5), **options)
            np.testing.assert_allclose(p, best.x, atol=1e-6)

    def test_derivatives_equal_finite_differences(self, name):
        """By x and all options at once, forward and reverse; by x alone a symmetric projector."""
        _, push, mismatch, slope, jacobian = measure(name)
        np.testing.assert_allclose(push, slope, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(mismatch, 0.0, atol=1e-11)
        np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, -1, -2), atol=1e-12)
        np.testing.assert_allclose(jacobian @ jacobian, jacobian, atol=1e-12)

    def test_dtypes_and_traces(self, name):
        project, options = CASES[name]
        chex.clear_trace_counter()
        compiled = jax.jit(chex.assert_max_traces(project, n=1))
        options = jax.tree.map(np.float32, options)
        x = X.astype(np.float32)
        single = compiled(x, *options)
        chex.assert_type(single, jnp.float32)
        np.testing.assert_allclose(single, measure(name)[0], atol=2e-6)
        compiled(x + 1, *jax.tree.map(lambda v: v * np.float32(0.9), options))
        half = jnp.asarray(x, jnp.bfloat16)
        rounded = compiled(np.asarray(half, np.float32), *options)
        out = jax.jit(project)(half, *options)
        chex.assert_type(out, jnp.bfloat16)
        np.testing.assert_array_equal(out, rounded.astype(jnp.bfloat16))
        with jax.enable_x64(True):
            abstract = jax.eval_shape(project, jnp.asarray(x, jnp.float32), *CASES[name][1])
            assert abstract.dtype == jnp.float32
        spoiled = compiled(np.where(np.arange(5) == 2, np.nan, x), *options)
        assert np.all(np.isnan(spoiled[:, 2]))


@pytest.mark.parametrize("name", ["halfspace", "hyperplane"])
def test_linear_sets_are_those_of_optax_and_take_axes(name):
    project = CASES[name][0]
    theirs = getattr(optax.projections, f"projection_{name}")
    x, normal = X[:2].astype(np.float32), X[2:4].astype(np.float32)
    b = np.array([0.3, -0.2], np.float32)

    @jax.jit
    def both(x, normal, b):
        ours = project(x, normal, b[0], axis=None), project(x.T, normal.T, b, axis=0).T
        return ours, (theirs(x, normal, b[0]), jax.vmap(theirs)(x, normal, b))

    chex.assert_trees_all_close(*both(x, normal, b), atol=1e-6)
    scaled = jax.jit(project)(x, normal * np.float32(1e30), b * np.float32(1e30))
    np.testing.assert_allclose(scaled, jax.jit(project)(x, normal, b), rtol=1e-5, atol=1e-6)


def test_halfspace_without_bound_and_on_its_boundary():
    gradient = jax.jit(jax.grad(lambda *a: project_halfspace(*a)[0], (0, 1, 2)))
    x, normal = jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0])
    np.testing.assert_array_equal(project_halfspace(x, normal, jnp.inf), x)
    by_x, by_normal, by_offset = gradient(x, normal, jnp.inf)
    np.testing.assert_array_equal(by_x, [1, 0])
    np.testing.assert_array_equal(by_normal, [0, 0])
    assert by_offset == 0
    # Outside it is I - aaᵀ/2, inside I.
    np.testing.assert_allclose(gradient(x, normal, 2.0)[0], [0.75, -0.25])


def test_affine_with_dependent_rows_and_batches_of_offsets():
    """A repeated equation changes nothing; without a solution, least squares; one offset per vector."""
    twice, offset = np.concatenate([MATRIX, MATRIX[:1]]), np.array([0.5, -1.0, 0.5])

    @jax.jit
    def project(x, offsets):
        return project_affine(x, twice, offset), project_affine(x.T, MATRIX, offsets, axis=0).T

    offsets = np.random.default_rng(8).normal(size=(8, 2))
    with jax.enable_x64(True):
        repeated, each = jax.tree.map(np.asarray, project(X, offsets))
        unsolvable = np.asarray(project_affine(jnp.asarray(X), twice, np.array([0.5, -1.0, 1.5])))
    np.testing.assert_allclose(repeated, measure("affine")[0], atol=1e-12)
    np.testing.assert_allclose(each @ MATRIX.T, offsets, atol=1e-12)
    # Two equal rows that ask for 0.5 and 1.5 get 1.
    np.testing.assert_allclose(unsolvable @ MATRIX.T, np.tile([1.0, -1.0], (8, 1)), atol=1e-12)


box_section = jax.jit(project_box_section)


@given(
    hnp.arrays(np.float32, (3, 5), elements=st.floats(-9, 9, width=32)),
    hnp.arrays(np.float32, (5,), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])),
)
def test_box_section_optimality_for_any_values(arrays, weights):
    """Ties, repeated and zero weights, empty boxes: feasible, and ⟨x - Px, z - Px⟩ ≤ 0."""
    x, low, z = arrays
    low, high = np.minimum(low, z), np.maximum(low, z)
    inside = np.clip(x[::-1], low, high)
    total = np.float32(inside.astype(np.float64) @ weights)
    p = np.asarray(box_section(x, low, high, weights, total), np.float64)
    assert np.all((p >= low) & (p <= high))
    np.testing.assert_allclose(p @ weights, total, atol=1e-4)
    assert (x - p) @ (inside - p) <= 2e-3


class TestBoxSection:
    def test_simplex_and_infinite_bounds(self):
        """The simplex is a section; without upper or lower bounds too, and then a hyperplane."""
        x = X.astype(np.float32)
        ones = np.ones(5, np.float32)
        np.testing.assert_allclose(
            box_section(x, 0 * ones, ones * np.inf, ones, np.float32(1.0)),
            jax.vmap(optax.projections.projection_simplex)(x),
            atol=1e-6,
        )
        normal = NORMAL.astype(np.float32)
        np.testing.assert_allclose(
            box_section(x, -ones * np.inf, ones * np.inf, normal, np.float32(0.4)),
            measure("hyperplane")[0],
            atol=2e-6,
        )

    def test_ends_of_the_range_and_beyond(self):
        """The corners themselves; NaN where a traced total is out of reach or bounds cross."""
        x, w = X[0].astype(np.float32), NORMAL.astype(np.float32)
        low, high = LOW.astype(np.float32), HIGH.astype(np.float32)
        top, bottom = np.where(w > 0, high, low), np.where(w > 0, low, high)
        np.testing.assert_allclose(box_section(x, low, high, w, w @ top), top, atol=1e-6)
        np.testing.assert_allclose(box_section(x, low, high, w, w @ bottom), bottom, atol=1e-6)
        assert np.all(np.isnan(box_section(x, low, high, w, w @ top + np.float32(1e-3))))
        assert np.all(np.isnan(box_section(x, high, low, w, np.float32(0.0))))

    def test_derivatives_are_finite_at_ties_and_infinite_bounds(self):
        x, low = jnp.array([1.0, 1.0, 0.0, 2.0, -1.0]), jnp.zeros(5)
        high, w = jnp.array([1.0, jnp.inf, jnp.inf, 0.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 2.0, 0.0])
        out = jax.jit(jax.jacrev(project_box_section, (0, 1, 2, 3, 4)))(x, low, high, w, 2.0)
        chex.assert_tree_all_finite(out)

    def test_axis(self):
        x, total = X.astype(np.float32), np.linspace(-0.3, 0.4, 8).astype(np.float32)
        low, high, w = (v.astype(np.float32) for v in (LOW, HIGH, NORMAL))
        first = jax.jit(
            lambda x: project_box_section(x, low[:, None], high[:, None], w[:, None], total, axis=0)
        )
        np.testing.assert_array_equal(first(x.T), box_section(x, low, high, w, total).T)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: project_halfspace(jnp.arange(3), jnp.ones(3))),
        ("normal", lambda: project_halfspace(jnp.ones(3), jnp.zeros(3))),
        ("normal", lambda: project_hyperplane(jnp.ones(3), jnp.ones(2))),
        ("offset", lambda: project_hyperplane(jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3))),
        ("axis", lambda: project_hyperplane(jnp.ones(3), jnp.ones(3), axis=1)),
        ("matrix", lambda: project_affine(jnp.ones(3), jnp.ones((2, 2)), jnp.ones(2))),
        ("matrix", lambda: project_affine(jnp.ones(3), jnp.ones(3), jnp.ones(2))),
        ("offset", lambda: project_affine(jnp.ones(3), jnp.ones((2, 3)), jnp.ones(3))),
        ("offset", lambda: project_affine(jnp.ones((4, 3)), jnp.ones((2, 3)), jnp.ones((3, 2)))),
        ("low", lambda: project_box_section(jnp.ones(3), 1.0, 0.0)),
        ("low", lambda: project_box_section(jnp.ones(3), jnp.ones(2), 0.0)),
        ("weights", lambda: project_box_section(jnp.ones(3), 0.0, 1.0, jnp.ones(2))),
        ("total", lambda: project_box_section(jnp.ones(3), 0.0, 1.0, total=4.0)),
        ("total", lambda: project_box_section(jnp.ones((2, 3)), 0.0, 1.0, total=jnp.ones(3))),
    ],
)
def test_bad_input_raises_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
