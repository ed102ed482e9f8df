"""Derivatives of the optimum against finite differences, in float64: every output by every input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import ot
from jaxdiv.core import Status
from jaxdiv.testing import ot as contract

N, M = 5, 4
RNG = np.random.default_rng(0)
C = RNG.uniform(size=(N, M))
A, B = RNG.dirichlet(np.ones(N)), RNG.dirichlet(np.ones(M))
X, Y = RNG.normal(size=(N, 2)), RNG.normal(size=(M, 2))
W = RNG.normal(size=(N, M))
EPSILON, OPTION = 0.1, 0.4
EXACT = ot.Exact()
SOLVER = ot.Sinkhorn(tol=1e-13, max_steps=20_000, mode="log")
# The masses of the columns are 1.3 where they need not be those of the rows.
PAIRS = {
    "exact": lambda s: (EXACT, EXACT),
    "kl_exact": lambda s: (ot.KL(s), EXACT),
    "tv": lambda s: (ot.TV(s), ot.TV(s)),
    "exact_l2": lambda s: (EXACT, ot.L2(s)),
    "partial_columns": lambda s: (ot.AtMost(), ot.Partial(s)),
}
NAMES = ("costs", "a", "b", "epsilon", "option")


def weights(pair):
    return A, (B if pair == "exact" else 1.3 * B)


def outputs(pair, cost, a, b, epsilon, option):
    """The value and, as one number each, the plan; for exact marginals also f and g."""
    out = ot.solve(ot.CostMatrix(cost), a, b, epsilon=epsilon, marginals=PAIRS[pair](option), solver=SOLVER)
    numbers = [out.cost, jnp.vdot(W, out.plan())]
    if pair == "exact":
        numbers += [W[:, 0] @ out.f, W[0] @ out.g]
    return jnp.stack(numbers)


@functools.cache
def pulled(pair):
    """The outputs and their derivative along a covector; it serves differences as well."""

    def fn(covector, *arguments):
        values, pull = jax.vjp(functools.partial(outputs, pair), *arguments)
        return values, pull(covector)

    return jax.jit(fn)


def directions(a, b, balanced):
    """One for each argument; weights keep their masses where they must."""
    rng = np.random.default_rng(1)
    da, db = rng.normal(size=N) * a, rng.normal(size=M) * b
    if balanced:
        da, db = da - a * da.sum() / a.sum(), db - b * db.sum() / b.sum()
    return {"costs": rng.normal(size=(N, M)), "a": da, "b": db, "epsilon": 1.0, "option": 1.0}


@pytest.mark.parametrize("pair", PAIRS)
def test_finite_differences(pair):
    a, b = weights(pair)
    with jax.enable_x64(True):
        point = contract.cast((C, a, b, EPSILON, OPTION), jnp.float64)
        size = 4 if pair == "exact" else 2
        gradients = [pulled(pair)(row, *point)[1] for row in jnp.eye(size)]
        for i, (name, direction) in enumerate(directions(a, b, pair == "exact").items()):
            ahead, behind = (
                pulled(pair)(jnp.zeros(size), *point[:i], point[i] + s * direction, *point[i + 1 :])[0]
                for s in (1e-5, -1e-5)
            )
            expected = (ahead - behind) / 2e-5
            got = [jnp.sum(gradient[i] * direction) for gradient in gradients]
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-8, err_msg=f"{pair} by {name}")
        # The derivative of the value by the costs is the plan.
        np.testing.assert_allclose(
            jnp.vdot(gradients[0][0], W), pulled(pair)(jnp.zeros(size), *point)[0][1], rtol=1e-9
        )


def test_forward_and_reverse_agree():
    """``<w, J d>`` both ways, which OTT's fallback for systems that are not symmetric does not keep."""
    with jax.enable_x64(True):
        a, b = weights("kl_exact")
        point = contract.cast((C, a, b, EPSILON, OPTION), jnp.float64)
        along = contract.cast(tuple(directions(a, b, False).values()), jnp.float64)
        forward = jax.jit(lambda p, d: jax.jvp(functools.partial(outputs, "kl_exact"), p, d)[1])(point, along)
        for i, row in enumerate(jnp.eye(2)):
            gradient = pulled("kl_exact")(row, *point)[1]
            back = sum(jnp.sum(g * d) for g, d in zip(gradient, along, strict=True))
            np.testing.assert_allclose(back, forward[i], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pair", ["exact", "kl_exact", "exact_l2"])
def test_weight_of_zero(pair):
    """The derivative by a weight that is 0 is the one from above."""
    a, b = weights(pair)
    a, b = a * (np.arange(N) != 2), b * (np.arange(M) != 1)
    a, b = a / a.sum(), b * b.sum() / b[b > 0].sum()
    if pair == "exact":
        b = b / b.sum()
    rise_a, rise_b = np.eye(N)[2], np.eye(M)[1]
    if pair == "exact":
        rise_a, rise_b = rise_a - a, rise_b - b
    size = 4 if pair == "exact" else 2
    with jax.enable_x64(True):
        point = contract.cast((C, a, b, EPSILON, OPTION), jnp.float64)
        gradients = [pulled(pair)(row, *point)[1] for row in jnp.eye(size)]
        chex.assert_tree_all_finite(gradients)
        for i, rise in ((1, rise_a), (2, rise_b)):
            h = 1e-7
            # One-sided, to second order; a potential at weight 0 may depend on another weight of 0 strongly.
            at = [
                pulled(pair)(jnp.zeros(size), *point[:i], point[i] + s * rise, *point[i + 1 :])[0]
                for s in (0.0, h, 2 * h)
            ]
            expected = (4 * at[1] - 3 * at[0] - at[2]) / (2 * h)
            got = [jnp.sum(gradient[i] * rise) for gradient in gradients]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=NAMES[i])


@jax.jit
def point_gradients(x, y):
    """Streamed, in two blocks and a rest."""

    def total(x, y):
        cloud = ot.PointCloud(x, y, block=2)
        out = ot.solve(cloud, A, B, epsilon=0.5, solver=SOLVER)
        return out.cost + jnp.vdot(W, out.plan())

    return jax.value_and_grad(total, (0, 1))(x, y)


def test_points():
    with jax.enable_x64(True):
        point = contract.cast((X, Y), jnp.float64)
        contract.differences(lambda *z: point_gradients(*z)[0], point, point_gradients(*point)[1])


def test_hessian_of_cost():
    """Of points against copies of themselves, where squared distances are 0, as well."""

    def cost(x, y):
        return ot.solve(ot.PointCloud(x, y), epsilon=0.5, solver=SOLVER).cost

    slopes = jax.jit(jax.value_and_grad(lambda x, y, v: jnp.vdot(v, jax.grad(cost)(x, y)), has_aux=False))
    with jax.enable_x64(True):
        v, d = (jnp.asarray(RNG.normal(size=(N, 2))) for _ in range(2))
        for x, y in contract.cast(((X, X), (X, X + 0.3)), jnp.float64):
            product = slopes(x, y, v)[1]
            ahead, behind = (slopes(x + s * d, y, v)[0] for s in (1e-5, -1e-5))
            np.testing.assert_allclose(jnp.vdot(product, d), (ahead - behind) / 2e-5, rtol=1e-6)
            other = slopes(x, y, d)[1]
            np.testing.assert_allclose(jnp.vdot(product, d), jnp.vdot(other, v), rtol=1e-9)


def test_unrolled_derivatives_are_the_implicit_ones():
    def total(cost, epsilon, adjoint, tol):
        solver = ot.Sinkhorn(tol=tol, max_steps=300, mode="log")
        out = ot.solve(ot.CostMatrix(cost), A, B, epsilon=epsilon, solver=solver, adjoint=adjoint)
        return out.cost + jnp.vdot(W, out.plan()), (out.status, out.cost)

    fn = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    with jax.enable_x64(True):
        point = contract.cast((C, EPSILON), jnp.float64)
        (_, (status, value)), unrolled = fn(*point, ot.Unroll(), 1e-12)
        (_, (_, same)), implicit = fn(*point, ot.Implicit(), 1e-12)
        assert status == Status.CONVERGED
        np.testing.assert_allclose(value, same, rtol=1e-12)
        chex.assert_trees_all_close(unrolled, implicit, rtol=1e-7, atol=1e-9)
        # Stopped early, they differ: those of the iterations are those of what was computed.
        (early, _), loose = fn(*point, ot.Unroll(), 1e-2)
        ahead, behind = (fn(point[0], point[1] + s, ot.Unroll(), 1e-2)[0][0] for s in (1e-6, -1e-6))
        np.testing.assert_allclose(loose[1], (ahead - behind) / 2e-6, rtol=1e-5)
        assert abs(loose[1] - implicit[1]) > 1e-4
        assert np.isfinite(early)


def test_small_epsilon_keeps_its_digits():
    """A normal equation would square the condition number, as OTT's default preconditioner makes it do."""
    n = 20
    cost = np.random.default_rng(4).uniform(size=(n, n))

    def total(cost, v):
        out = ot.solve(ot.CostMatrix(cost), epsilon=0.01, solver=ot.SinkhornNewton(tol=1e-13))
        return jnp.vdot(v, out.f), out.status

    with jax.enable_x64(True):
        v, d = np.random.default_rng(5).normal(size=n), np.random.default_rng(6).normal(size=(n, n))
        fn = jax.jit(jax.value_and_grad(total, has_aux=True))
        (_, status), gradient = fn(jnp.asarray(cost), jnp.asarray(v))
        ahead, behind = (fn(jnp.asarray(cost + s * d), jnp.asarray(v))[0][0] for s in (1e-6, -1e-6))
        assert status == Status.CONVERGED
        np.testing.assert_allclose(jnp.sum(gradient * d), (ahead - behind) / 2e-6, rtol=1e-4)


def test_lanes_and_failures_stay_apart():
    """A lane that is infeasible or has not converged leaves the derivatives of the others alone."""

    def total(cost, a):
        solver = ot.Sinkhorn(tol=1e-5, mode="log")
        out = ot.solve(ot.CostMatrix(cost), a, np.float32(B), epsilon=EPSILON, solver=solver)
        return jnp.vdot(np.float32(W), out.plan()), out.status

    cost, a = np.float32(C), np.float32(A)
    lanes = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))
    (_, status), gradients = lanes(jnp.stack([cost, cost, cost * np.nan]), jnp.stack([a, 2 * a, a]))
    np.testing.assert_array_equal(status, [Status.CONVERGED, Status.INFEASIBLE, Status.NONFINITE])
    others = lanes(jnp.stack([cost] * 3), jnp.stack([a] * 3))[1]
    np.testing.assert_allclose(gradients[0], others[0], rtol=1e-5, atol=1e-7)
