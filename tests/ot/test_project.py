"""Projections onto transport plans and doubly stochastic matrices: scipy, optimality, derivatives, limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxdiv.ot import project_birkhoff, project_transport

RNG = np.random.default_rng(12)
N, M = 5, 4
X = RNG.normal(size=(N, M)) * 0.3
A, B = RNG.dirichlet(np.full(N, 4.0)), RNG.dirichlet(np.full(M, 4.0))
SQUARE = RNG.normal(size=(N, N))
transport, birkhoff = jax.jit(project_transport), jax.jit(project_birkhoff)


def in64(project, *arrays):
    with jax.enable_x64(True):
        return np.asarray(project(*(jnp.asarray(v, jnp.float64) for v in arrays)))


def brute(x, a, b):
    """The same quadratic program by SLSQP."""
    n, m = x.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    # One of the equations follows from the others.
    matrix, sums = np.vstack([rows, columns[:-1]]), np.concatenate([a, b[:-1]])
    return optimize.minimize(
        lambda p: 0.5 * ((p - x.ravel()) ** 2).sum(),
        np.outer(a, b).ravel() / a.sum(),
        jac=lambda p: p - x.ravel(),
        method="SLSQP",
        bounds=[(0, None)] * x.size,
        constraints={"type": "eq", "fun": lambda p: matrix @ p - sums, "jac": lambda p: matrix},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x.reshape(x.shape)


class TestTransport:
    def test_equals_scipy(self):
        plan = in64(transport, X, A, B)
        np.testing.assert_allclose(plan, brute(X, A, B), atol=1e-6)
        assert 0 < (plan == 0).sum() < X.size

    def test_is_the_nearest_plan(self):
        """The sums, and ⟨X - P, Q - P⟩ ≤ 0 at drawn plans and at the worst one, a vertex."""
        plan = in64(transport, X, A, B)
        np.testing.assert_allclose(plan.sum(1), A, atol=1e-11)
        np.testing.assert_allclose(plan.sum(0), B, atol=1e-11)
        assert plan.min() >= 0
        rows, columns = np.kron(np.eye(N), np.ones(M)), np.kron(np.ones(N), np.eye(M))
        worst = optimize.linprog(
            (plan - X).ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([A, B])
        )
        assert worst.fun >= ((plan - X) * plan).sum() - 1e-10
        np.testing.assert_allclose(in64(transport, plan, A, B), plan, atol=1e-10)

    def test_derivatives_equal_finite_differences(self):
        """By X and by changes of both sums that leave their totals equal, forward and reverse."""
        rng = np.random.default_rng(13)
        moved = rng.normal(size=(N, M)), rng.normal(size=N), rng.normal(size=M)
        moved = moved[0], moved[1] - moved[1].mean(), moved[2] - moved[2].mean()
        weights = rng.normal(size=(N, M))

        @jax.jit
        def derivatives(primals, tangents):
            out, push = jax.jvp(project_transport, primals, tangents)
            return push, jax.vjp(project_transport, *primals)[1](weights.astype(out.dtype))

        with jax.enable_x64(True):
            arguments = jax.tree.map(jnp.asarray, ((X, A, B), moved))
            push, back = jax.tree.map(np.asarray, derivatives(*arguments))
        ahead, behind = (
            in64(transport, *(v + t * d for v, d in zip((X, A, B), moved, strict=True)))
            for t in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(push, (ahead - behind) / 2e-5, atol=1e-6)
        total = sum((b * d).sum() for b, d in zip(back, moved, strict=True))
        np.testing.assert_allclose(total, (weights * push).sum(), rtol=1e-8)

    def test_rows_and_columns_in_common_do_not_count(self):
        """The same plan; in float32 also where what is common is 1e4 times as large."""
        shift = 1e3 * np.arange(N)[:, None] - 500.0 * np.arange(M)
        np.testing.assert_allclose(in64(transport, X + shift, A, B), in64(transport, X, A, B), atol=1e-9)
        single = [v.astype(np.float32) for v in (X, A, B)]
        np.testing.assert_allclose(transport(*single), in64(transport, X, A, B), atol=1e-5)
        near = transport(single[0] + np.float32(2**11), *single[1:])
        np.testing.assert_allclose(near, in64(transport, X, A, B), atol=3e-4)

    def test_no_weight_no_mass(self):
        a = A.copy()
        a[1] = 0.0
        a /= a.sum()
        plan = in64(transport, X, a, B)
        keep = np.arange(N) != 1
        np.testing.assert_array_equal(plan[1], 0.0)
        np.testing.assert_allclose(plan[keep], brute(X[keep], a[keep], B), atol=1e-6)


class TestBirkhoff:
    def test_equals_scipy(self):
        plan = in64(birkhoff, SQUARE)
        np.testing.assert_allclose(plan, brute(SQUARE, np.ones(N), np.ones(N)), atol=1e-6)
        np.testing.assert_allclose(plan.sum(0), 1.0, atol=1e-10)

    def test_permutations_and_uniform(self):
        """Scaled up, the largest assignment; scaled down, 1/n; a permutation is its own."""
        rows, columns = optimize.linear_sum_assignment(-SQUARE)
        best = np.zeros((N, N))
        best[rows, columns] = 1.0
        np.testing.assert_allclose(in64(birkhoff, 100 * SQUARE), best, atol=1e-8)
        np.testing.assert_allclose(in64(birkhoff, 0 * SQUARE), 1 / N, atol=1e-12)
        np.testing.assert_allclose(in64(birkhoff, best), best, atol=1e-10)

    def test_vmap_dtypes_and_traces(self):
        chex.clear_trace_counter()
        stack = np.stack([SQUARE, SQUARE.T]).astype(np.float32)
        compiled = jax.jit(jax.vmap(chex.assert_max_traces(project_birkhoff, n=1)))
        out = compiled(stack)
        compiled(stack + 1)
        chex.assert_type(out, jnp.float32)
        np.testing.assert_allclose(out[0], in64(birkhoff, SQUARE), atol=1e-4)
        np.testing.assert_allclose(out[1].T, in64(birkhoff, SQUARE), atol=1e-4)
        with jax.enable_x64(True):
            for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
                assert jax.eval_shape(project_birkhoff, jnp.zeros((N, N), dtype)).dtype == dtype


def test_what_was_not_found_is_nan():
    """Sums of unequal total, too few steps, NaN in x: never a plan that looks like one."""
    single = [v.astype(np.float32) for v in (X, A, B)]
    assert np.all(np.isnan(transport(single[0], 2 * single[1], single[2])))
    assert np.all(np.isnan(transport(single[0] * np.nan, single[1], single[2])))
    short = jax.jit(lambda x: project_birkhoff(x, max_steps=1))
    assert np.all(np.isnan(short(SQUARE.astype(np.float32))))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: project_transport(jnp.ones(3))),
        ("x", lambda: project_transport(jnp.ones((2, 2), int))),
        ("x", lambda: project_transport(jnp.full((2, 2), jnp.nan))),
        ("a", lambda: project_transport(jnp.ones((2, 2)), jnp.ones(3))),
        ("b", lambda: project_transport(jnp.ones((2, 2)), None, jnp.array([0.5, -0.5]))),
        ("a and b", lambda: project_transport(jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2) / 2)),
        ("x", lambda: project_birkhoff(jnp.ones((2, 3)))),
        ("max_steps", lambda: project_birkhoff(jnp.ones((2, 2)), max_steps=0)),
    ],
)
def test_bad_input_raises_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
