import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from absl.testing import parameterized

from jaxdiv.core.status import Status
from jaxdiv.linalg import solve

N = 8
METHODS = ("cg", "minres", "gmres", "bicgstab", "normal_cg", "auto", "lu", "cholesky")
KRYLOV = METHODS[:5]
DEFINITE = ("cg", "cholesky")


def _orthogonal(seed, n=N):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def _matrix(method, seed=0):
    """A well-conditioned matrix of the kind that the method is for; general ones are negative."""
    q = _orthogonal(seed)
    if method in DEFINITE:
        return q @ np.diag(np.linspace(1, 5, N)) @ q.T
    if method == "minres":
        return q @ np.diag([-3, -2, -1, 1, 1.5, 2, 3, 4]) @ q.T
    return -4 * np.eye(N) + np.random.default_rng(seed + 1).normal(size=(N, N)) / 2


def _rhs(seed=0):
    return np.random.default_rng(seed + 7).normal(size=N)


@functools.cache
def _runner(method):
    """One compilation a method and dtype: everything that may be traced is."""

    @jax.jit
    def run(matrix, b, init, rtol, max_steps):
        return solve(lambda v: matrix @ v, b, method=method, init=init, rtol=rtol, max_steps=max_steps)

    def call(matrix, b, *, init=None, rtol=1e-5, max_steps=200, dtype=np.float32):
        init = np.zeros(N) if init is None else init
        arrays = [np.asarray(a, dtype) for a in (matrix, b, init, rtol)]
        x, info = run(*arrays, max_steps)
        return np.asarray(x), jax.tree.map(np.asarray, info)

    return call


class SolveContractTest(chex.TestCase):
    """What every method keeps."""

    @parameterized.parameters(*METHODS)
    def test_matches_numpy_and_reports_the_true_residual(self, method):
        a, b = _matrix(method), _rhs()
        x, info = _runner(method)(a, b)
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=0, atol=2e-5)
        assert info.status == Status.CONVERGED
        a32, b32 = a.astype(np.float32), b.astype(np.float32)
        true = np.linalg.norm(b32 - a32 @ x.astype(np.float64)) / np.linalg.norm(b32)
        assert info.residual <= 1e-05
        np.testing.assert_allclose(info.residual, true, rtol=0.05, atol=2e-7)

    @parameterized.parameters(*METHODS)
    def test_zero_rhs_takes_no_step(self, method):
        x, info = _runner(method)(_matrix(method), np.zeros(N))
        np.testing.assert_array_equal(x, 0)
        assert (info.status, info.steps, info.residual) == (Status.CONVERGED, 0, 0)

    @parameterized.parameters(*METHODS)
    def test_warm_start_at_the_solution_takes_no_step(self, method):
        a, b = _matrix(method), _rhs()
        x, info = _runner(method)(a, b, init=np.linalg.solve(a, b))
        assert (info.status, info.steps) == (Status.CONVERGED, 0)
        np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-6)

    @parameterized.parameters(*METHODS)
    def test_harmful_init_is_replaced_by_zero(self, method):
        a, b = _matrix(method), _rhs()
        _, cold = _runner(method)(a, b)
        x, info = _runner(method)(a, b, init=np.full(N, 1e6))
        assert info.steps == cold.steps
        np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=2e-5)

    @parameterized.parameters(*METHODS)
    def test_tolerance_below_the_dtype_stalls_at_once(self, method):
        a, b = _matrix(method), _rhs()
        x, info = _runner(method)(a, b, rtol=1e-12, max_steps=10_000)
        assert info.status == Status.STALLED
        assert info.steps < 10 * N
        assert info.residual < 1e-06
        np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-5)

    @parameterized.product(method=METHODS, scale=(1e-30, 1e30))
    def test_scale_of_b_does_not_matter(self, method, scale):
        a, b = _matrix(method), _rhs()
        plain, _ = _runner(method)(a, b)
        x, info = _runner(method)(a, b * scale)
        assert info.status == Status.CONVERGED
        np.testing.assert_allclose(x / np.float32(scale), plain, atol=2e-5)

    @parameterized.parameters(*METHODS)
    def test_nan_is_never_success(self, method):
        a, b = _matrix(method), _rhs()
        b_bad, a_bad = b.copy(), a.copy()
        b_bad[2], a_bad[3, 3] = np.nan, np.inf
        for matrix, rhs in ((a, b_bad), (a_bad, b)):
            x, info = _runner(method)(matrix, rhs)
            assert info.status == Status.NONFINITE
            assert np.isnan([*x, info.residual]).all()

    @parameterized.parameters(*METHODS)
    def test_singular_inconsistent_is_not_success(self, method):
        a = np.diag([1.0, 2, 3, 4, 5, 6, 7, 0])
        x, info = _runner(method)(a, np.ones(N))
        assert info.status == Status.STALLED
        assert np.isfinite(x).all()
        assert info.residual >= 0.999 / np.sqrt(N)

    @parameterized.parameters(*KRYLOV)
    def test_too_few_steps(self, method):
        _, info = _runner(method)(_matrix(method), _rhs(), max_steps=2)
        assert (info.status, info.steps) == (Status.MAX_STEPS, 2)
        assert info.residual > 1e-05

    @parameterized.parameters(*METHODS)
    def test_lanes_end_on_their_own(self, method):
        # Eigenvalues counted: 1 step, many steps, 0 steps, and a lane of NaN beside them.
        a, b = _matrix(method), _rhs()
        ones = np.eye(N) if method != "minres" else np.diag([1.0, -1] * 4)
        matrices = np.stack([ones, a, a, a]).astype(np.float32)
        rhs = np.stack([b, b, 0 * b, np.nan * b]).astype(np.float32)
        x, info = jax.jit(jax.vmap(lambda m, r: solve(lambda v: m @ v, r, method=method, max_steps=200)))(
            matrices, rhs
        )
        alone = [_runner(method)(m, r) for m, r in zip(matrices, rhs, strict=True)]
        np.testing.assert_array_equal(info.steps, [i.steps for _, i in alone])
        np.testing.assert_array_equal(info.status, [0, 0, 0, Status.NONFINITE])
        np.testing.assert_allclose(x, np.stack([v for v, _ in alone]), atol=2e-6)


class SolveDerivativesTest(chex.TestCase):
    @parameterized.parameters(*METHODS)
    def test_gradient_against_finite_differences(self, method):
        with jax.enable_x64(True):
            a, b = jnp.asarray(_matrix(method)), jnp.asarray(_rhs())
            direction = (jnp.asarray(_matrix(method, 3)), jnp.asarray(_rhs(5)), jnp.asarray(0.7))

            def value(matrix, rhs, ridge):
                x, _ = solve(lambda v: matrix @ v, rhs, method=method, rtol=1e-13, ridge=ridge)
                return jnp.sum(jnp.sin(x))

            @jax.jit
            def measure(point, direction):
                forward = jax.jvp(value, point, direction)
                return *forward, jax.grad(value, (0, 1, 2))(*point)

            point, h = (a, b, jnp.asarray(0.2)), 1e-5
            _, forward, grads = measure(point, direction)
            slope = sum(jnp.sum(g * d) for g, d in zip(grads, direction, strict=True))
            up, down = (
                measure(jax.tree.map(lambda p, d, s=s: p + s * h * d, point, direction), direction)
                for s in (1, -1)
            )
            np.testing.assert_allclose(slope, (up[0] - down[0]) / (2 * h), rtol=1e-8)
            np.testing.assert_allclose(forward, slope, rtol=1e-10)

    @parameterized.parameters("cg", "gmres")
    def test_second_order(self, method):
        # f(b, s) = bᵀ (s A)⁻¹ b / 2 is quadratic in b and of degree −1 in s:
        # f_bb = sym (s A)⁻¹, f_bs = −f_b / s, f_ss = 2 f / s².
        with jax.enable_x64(True):
            a, b, s = jnp.asarray(_matrix(method)), jnp.asarray(_rhs()), 1.5
            v, t = jnp.asarray(_rhs(3)), 0.7

            def value(rhs, scale):
                x, _ = solve(lambda u: scale * (a @ u), rhs, method=method, rtol=1e-13)
                return rhs @ x / 2

            @jax.jit
            def measure(b, s):
                gradient = jax.grad(value, (0, 1))
                forward = jax.jvp(gradient, (b, s), (v, t))[1]
                reverse = jax.grad(lambda s: jnp.vdot(v, gradient(b, s)[0]))(s)
                return forward, reverse

            inverse = np.linalg.inv(s * np.asarray(a))
            inverse = (inverse + inverse.T) / 2
            forward, reverse = measure(b, jnp.asarray(s))
            cross = -v @ inverse @ b / s
            np.testing.assert_allclose(forward[0], inverse @ (v - b * t / s), atol=1e-11)
            np.testing.assert_allclose(forward[1], cross + b @ inverse @ b * t / s**2, rtol=1e-9)
            np.testing.assert_allclose(reverse, cross, rtol=1e-9)

    @parameterized.parameters(*KRYLOV)
    def test_preconditioner_survives_the_backward_pass(self, method):
        # With M = A⁻¹ one step is enough, in the transposed system only if M is transposed too.
        with jax.enable_x64(True):
            a, b = jnp.asarray(_matrix(method)), jnp.asarray(_rhs())
            if method == "minres":
                a = a @ a
            inverse = jnp.linalg.inv(a)

            @jax.jit
            @functools.partial(jax.value_and_grad, argnums=(0, 1))
            def value(matrix, rhs):
                # The preconditioner closes over a traced value and is not differentiated.
                close = inverse + 0 * matrix
                x, info = solve(
                    lambda v: matrix @ v, rhs, method=method, rtol=1e-9, max_steps=1,
                    preconditioner=lambda v: close @ v,
                )  # fmt: skip
                return jnp.sum(jnp.sin(x)) + 0 * info.residual

            _, grads = value(a, b)
            x = np.linalg.solve(a, b)
            adjoint = np.linalg.solve(np.asarray(a).T, np.cos(x))
            np.testing.assert_allclose(grads[1], adjoint, atol=1e-8)
            np.testing.assert_allclose(grads[0], -np.outer(adjoint, x), atol=1e-8)

    def test_pytree_gradient_under_vmap_and_scan(self):
        # Only one leaf of b and of the operator has a tangent.
        def loss(weight, a):
            b = {"a": a, "b": [jnp.ones((2, 2))]}
            x, _ = solve(lambda v: {"a": weight * v["a"], "b": [2 * v["b"][0]]}, b)
            return jnp.sum(x["a"]) + jnp.sum(x["b"][0])

        @jax.jit
        def measure(weights, a):
            gradient = jax.grad(loss, (0, 1))
            scanned = jax.lax.scan(lambda c, w: (c, gradient(w, a)), 0, weights)[1]
            return jax.vmap(gradient, (0, None))(weights, a), scanned

        weights = jnp.array([1.0, 2.0, 4.0])
        mapped, scanned = measure(weights, jnp.ones(2))
        np.testing.assert_allclose(mapped[0], -2 / weights**2, rtol=1e-4)
        np.testing.assert_allclose(mapped[1], jnp.stack([1 / weights] * 2, 1), rtol=1e-4)
        chex.assert_trees_all_close(scanned, mapped, rtol=1e-5)

    def test_gradient_and_vmap_over_ridge(self):
        def norm(ridge):
            return jnp.sum(solve(lambda v: 0 * v, jnp.ones(4), ridge=ridge)[0])

        ridges = jnp.array([0.5, 1.0, 2.0])
        values, grads = jax.jit(jax.vmap(jax.value_and_grad(norm)))(ridges)
        np.testing.assert_allclose(values, 4 / ridges, rtol=1e-5)
        np.testing.assert_allclose(grads, -4 / ridges**2, rtol=1e-4)

    def test_init_has_no_gradient(self):
        def value(init):
            return jnp.sum(solve(lambda v: 2 * v, jnp.ones(4), init=init)[0])

        np.testing.assert_array_equal(jax.jit(jax.grad(value))(jnp.full(4, 0.4)), 0)


class SolveBordersTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_half_precision_is_computed_in_float32(self):
        seen = []

        def matvec(v):
            seen.append(v["x"].dtype)
            return {"x": 3 * v["x"]}

        x, info = self.variant(lambda b: solve(matvec, b))({"x": jnp.ones(4, jnp.bfloat16)})
        assert x["x"].dtype == jnp.bfloat16
        assert set(seen) == {jnp.dtype(jnp.float32)}
        assert info.residual.dtype == jnp.float32
        assert (info.status.dtype, info.steps.dtype) == (jnp.int32, jnp.int32)

    def test_leaves_of_two_dtypes(self):
        with jax.enable_x64(True):
            b = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(2, jnp.float64)}
            double = functools.partial(jax.tree.map, lambda u: 2 * u)
            for method in ("cg", "lu"):
                x, _ = jax.jit(functools.partial(solve, double, method=method))(b)
                assert (x["a"].dtype, x["b"].dtype) == (jnp.float32, jnp.float64)
                np.testing.assert_allclose(x["b"], 0.5, rtol=1e-6)

    def test_no_retrace(self):
        @jax.jit
        @chex.assert_max_traces(n=1)
        def run(matrix, b, ridge, rtol):
            return solve(lambda v: matrix @ v, b, ridge=ridge, rtol=rtol)[0]

        for seed, ridge, rtol in itertools.product((0, 1), (0.0, 1.0), (1e-3, 1e-5)):
            run(jnp.asarray(_matrix("cg", seed)), jnp.asarray(_rhs(seed)), ridge, rtol)

    @parameterized.named_parameters(
        (
            "method",
            {"method": "qr"},
            "'cg', 'minres', 'gmres', 'bicgstab', 'normal_cg', 'auto', 'lu', 'cholesky', 'neumann'",
        ),
        ("cholesky", {"method": "cholesky", "symmetric": False}, "symmetric must be True"),
        ("cg", {"symmetric": False}, "use 'gmres'"),
        ("dense", {"method": "lu", "preconditioner": lambda v: v}, "preconditioner must be None"),
        ("rtol", {"rtol": -1.0}, "rtol must lie in"),
        ("ridge", {"ridge": -1.0}, "ridge must lie in"),
        ("init", {"init": jnp.ones(3)}, "init must have the structure"),
        ("preconditioner", {"preconditioner": lambda v: v[:2]}, "the output of preconditioner"),
        ("matvec", {"matvec": lambda v: {"x": v}}, "the output of matvec must have the structure"),
        ("shape", {"matvec": lambda v: v[:2]}, "expected"),
        ("integer", {"b": jnp.ones(4, int)}, "b must be floating"),
        ("empty", {"b": jnp.ones(0)}, "b must not be empty"),
    )
    def test_bad_input(self, options, message):
        options = {"matvec": lambda v: v, "b": jnp.ones(4), **options}
        with pytest.raises(ValueError, match=message):
            solve(options.pop("matvec"), options.pop("b"), **options)


class KrylovTest(chex.TestCase):
    """What distinguishes each method: the optimality of its iterates, and where it does not apply."""

    def _krylov(self, a, b, k):
        columns = [b]
        for _ in range(k - 1):
            columns.append(a @ columns[-1])
        return np.linalg.qr(np.stack(columns, 1))[0]

    @parameterized.parameters("minres", "gmres")
    def test_residual_is_the_least_over_the_krylov_space(self, method):
        a, b = _matrix(method), _rhs()
        with jax.enable_x64(True):
            for k in range(1, 6):
                q = self._krylov(a, b, k)
                best = b - a @ q @ np.linalg.lstsq(a @ q, b, rcond=None)[0]
                _, info = _runner(method)(a, b, rtol=1e-13, max_steps=k, dtype=np.float64)
                np.testing.assert_allclose(info.residual, np.linalg.norm(best) / np.linalg.norm(b), rtol=1e-9)

    def test_cg_error_is_the_least_in_the_norm_of_a(self):
        a, b = _matrix("cg"), _rhs()
        with jax.enable_x64(True):
            for k in range(1, 5):
                q = self._krylov(a, b, k)
                galerkin = q @ np.linalg.solve(q.T @ a @ q, q.T @ b)
                norm = np.linalg.norm(b - a @ galerkin)
                x, info = _runner("cg")(a, b, rtol=1e-13, max_steps=k, dtype=np.float64)
                if norm < np.linalg.norm(b):
                    np.testing.assert_allclose(x, galerkin, atol=1e-10)
                assert info.steps == k

    @parameterized.parameters("cg", "minres", "gmres")
    def test_steps_are_the_distinct_eigenvalues(self, method):
        q = _orthogonal(2)
        a = q @ np.diag([1, 1, 1, 2, 2, 5, 5, 5]) @ q.T
        _, info = _runner(method)(a, _rhs(), rtol=1e-4)
        assert (info.status, info.steps) == (Status.CONVERGED, 3)

    @parameterized.parameters(("cg", "cg"), ("minres", "minres"))
    def test_steps_match_scipy(self, method, peer):
        a, b = _matrix(method), _rhs()
        counted = []
        getattr(scipy.sparse.linalg, peer)(a, b, rtol=1e-8, callback=counted.append)
        with jax.enable_x64(True):
            _, info = _runner(method)(a, b, rtol=1e-8, dtype=np.float64)
        assert abs(int(info.steps) - len(counted)) <= 1

    def test_minres_on_a_singular_consistent_system_is_the_least_norm_solution(self):
        q = _orthogonal(4)
        a = q @ np.diag([-2, -1, 1, 2, 3, 4, 0, 0]) @ q.T
        b = a @ _rhs()
        x, info = _runner("minres")(a, b)
        assert info.status == Status.CONVERGED
        np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-10) @ b, atol=2e-5)

    def test_minres_on_an_inconsistent_system_is_a_least_squares_solution(self):
        q = _orthogonal(4)
        a = q @ np.diag([-2, -1, 1, 2, 3, 4, 0, 0]) @ q.T
        b = _rhs()
        x, info = _runner("minres")(a, b)
        least = np.linalg.norm(b - a @ np.linalg.pinv(a, rcond=1e-10) @ b) / np.linalg.norm(b)
        assert info.status == Status.STALLED
        assert info.steps < 4 * N
        np.testing.assert_allclose(info.residual, least, rtol=1e-4)
        np.testing.assert_allclose(a @ (b - a @ x), 0, atol=1e-3)

    @parameterized.parameters("cg", "minres", "cholesky")
    def test_ill_conditioned_is_reported_honestly(self, method):
        q = _orthogonal(6)
        a = q @ np.diag(np.logspace(0, -6, N)) @ q.T
        a = ((a + a.T) / 2).astype(np.float32)
        b = _rhs().astype(np.float32)
        x, info = _runner(method)(a, b, rtol=1e-6)
        true = np.linalg.norm(b - a.astype(np.float64) @ x) / np.linalg.norm(b)
        # A x in float32 is known to eps |A| |x|, about 1e-7 * 1e6 here.
        assert abs(true - info.residual) < 0.1
        assert (info.status == Status.CONVERGED) != (info.residual > 1e-06)

    def test_refinement_reaches_what_the_updated_residual_only_pretends(self):
        # One pass of a method ends far above the tolerance that refinement reaches in float32.
        q = _orthogonal(6)
        a = q @ np.diag(np.logspace(0, -3, N)) @ q.T
        b = a @ np.ones(N)
        for method in ("cg", "minres", "gmres"):
            _, info = _runner(method)(a, b, rtol=3e-7)
            assert info.status == Status.CONVERGED

    def test_indefinite_operator_stalls_direct_and_definite_methods(self):
        a = _matrix("minres")
        for method in DEFINITE:
            x, info = _runner(method)(a, _rhs())
            assert info.status != Status.CONVERGED
            assert np.isfinite(x).all()

    def test_bicgstab_takes_signs_and_zeros_in_its_stride(self):
        a, b = _matrix("bicgstab"), _rhs()
        b[3] = 0
        for sign in (1, -1):
            _, info = _runner("bicgstab")(sign * a, b)
            assert info.status == Status.CONVERGED

    def test_bicgstab_breaks_down_on_a_skew_operator_and_gmres_does_not(self):
        a = np.kron(np.eye(N // 2), [[0, 1], [-1, 0]])
        _, broken = _runner("bicgstab")(a, _rhs())
        _, info = _runner("gmres")(a, _rhs())
        assert (broken.status, info.status) == (Status.STALLED, Status.CONVERGED)

    def test_gmres_restarts(self):
        a, b = jnp.asarray(_matrix("gmres"), jnp.float32), jnp.asarray(_rhs(), jnp.float32)
        x, info = jax.jit(lambda b: solve(lambda v: a @ v, b, method="gmres", restart=2))(b)
        assert info.status == Status.CONVERGED
        assert info.steps > 4
        np.testing.assert_allclose(a @ x, b, atol=1e-4)

    @parameterized.parameters("cg", "minres")
    def test_a_good_preconditioner_saves_steps(self, method):
        q = _orthogonal(8)
        scale = np.logspace(0, 2, N)
        a = scale[:, None] * (q @ np.diag(np.linspace(1, 2, N)) @ q.T) * scale
        with jax.enable_x64(True):
            a, b = jnp.asarray(a), jnp.asarray(_rhs())
            plain, scaled = (
                jax.jit(lambda b, p=p: solve(lambda v: a @ v, b, method=method, rtol=1e-6, preconditioner=p))(
                    b
                )
                for p in (None, lambda v: v / jnp.diag(a))
            )
            assert scaled[1].steps < plain[1].steps
            np.testing.assert_allclose(a @ scaled[0], b, atol=1e-5)
