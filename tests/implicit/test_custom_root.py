import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import convex, implicit, linalg
from jaxdiv.testing import data

TIGHT = functools.partial(linalg.solve, method="normal_cg", rtol=1e-12)


def scalar_solve(matvec, b):
    """For one number: compiles nothing."""
    return jax.tree.map(jnp.divide, b, matvec(jax.tree.map(jnp.ones_like, b)))


@pytest.mark.paper(46)
class RidgeTest(chex.TestCase):
    """Claim (a) of the entry: F = Xᵀ(X y − t) + e^θ y on the diabetes data."""

    def test_first_and_second_derivatives_have_their_closed_forms(self):
        # With λ = e^θ, H = XᵀX + λ I: y' = −λ H⁻¹ y and y'' = y' + 2 λ² H⁻² y.
        patients = data.diabetes()["train"]
        x = np.asarray(patients["inputs"], np.float64)
        t = np.asarray(patients["targets"], np.float64).ravel()
        x, t = (x - x.mean(0)) / x.std(0), (t - t.mean()) / t.std()

        def gradient(y, theta):
            return x.T @ (x @ y - t) + jnp.exp(theta) * y

        @implicit.custom_root(gradient, solve=TIGHT)
        def ridge(init, theta):
            del init
            return jnp.linalg.solve(x.T @ x + jnp.exp(theta) * jnp.eye(x.shape[1]), x.T @ t)

        @jax.jit
        def measure(theta):
            solver = functools.partial(ridge, None)
            return jax.jacfwd(solver)(theta), jax.jacrev(solver)(theta), jax.hessian(solver)(theta)

        with jax.enable_x64(True):
            for theta in (np.log(0.1), np.log(100.0)):
                lam = np.exp(theta)
                h = x.T @ x + lam * np.eye(x.shape[1])
                y = np.linalg.solve(h, x.T @ t)
                first = -lam * np.linalg.solve(h, y)
                second = first + 2 * lam**2 * np.linalg.solve(h, np.linalg.solve(h, y))
                forward, reverse, hessian = measure(theta)
                np.testing.assert_allclose(forward, first, rtol=0, atol=1e-8 * np.abs(first).max())
                np.testing.assert_allclose(reverse, first, rtol=0, atol=1e-8 * np.abs(first).max())
                np.testing.assert_allclose(hessian, second, rtol=0, atol=1e-7 * np.abs(second).max())


@pytest.mark.paper(46)
class LayersTest(chex.TestCase):
    """Claims (b) and (d) of the entry."""

    def test_lasso_derivative_lives_on_the_support(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(30, 8))
        t = x @ np.r_[2.0, -3.0, 1.5, np.zeros(5)] + 0.1 * rng.normal(size=30)
        step = 1 / np.linalg.norm(x, 2) ** 2

        def fixed_point(y, theta):
            v = y - step * (x.T @ (x @ y - t))
            return v - jnp.clip(v, -step * theta, step * theta)

        @implicit.custom_fixed_point(fixed_point, solve=TIGHT)
        def lasso(init, theta):
            return jax.lax.fori_loop(0, 1500, lambda _, y: fixed_point(y, theta), init)

        with jax.enable_x64(True):
            measure = jax.jit(
                lambda theta: (lasso(jnp.zeros(8), theta), jax.jacrev(lasso, 1)(jnp.zeros(8), theta))
            )
            y, slope = jax.tree.map(np.asarray, measure(8.0))
        support = y != 0
        assert 0 < support.sum() < 8
        xs = x[:, support]
        np.testing.assert_allclose(slope[~support], 0, atol=1e-15)
        np.testing.assert_allclose(
            slope[support], -np.linalg.solve(xs.T @ xs, np.sign(y[support])), atol=1e-6
        )

    def test_simplex_layer_through_its_kkt_system_equals_the_dense_formula(self):
        conditions = implicit.kkt(
            lambda z, x: jnp.sum((z - x) ** 2) / 2,
            equality=lambda z, x: jnp.sum(z) - 1,
            inequality=lambda z, x: -z,
        )

        @implicit.custom_root(conditions, solve=TIGHT)
        def layer(init, x):
            z = convex.project_simplex(x)
            nu = jnp.max(jnp.where(z > 0, x - z, -jnp.inf))
            return implicit.KKT(z, nu, z - x + nu)

        x = np.array([[0.5, 0.1, -1.0, 0.45], [2.0, 0.0, 0.1, 1.9], [0.3, 0.2, 0.25, 0.24]])
        with jax.enable_x64(True):
            jacobian = jax.jit(jax.vmap(jax.jacrev(lambda row: layer(None, row).primal)))(x)
            rows = np.asarray(jax.jit(convex.project_simplex)(x))
        for z, j in zip(rows, jacobian, strict=True):
            s = (z > 0).astype(float)
            np.testing.assert_allclose(j, np.diag(s) - np.outer(s, s) / s.sum(), atol=1e-9)

    def test_vmap_equals_a_loop_and_float32_is_enough(self):
        # F is not symmetric in y: the default solver must do.
        skew = jnp.array([[2.0, 3.0, 0.0], [-1.0, 2.0, 1.0], [0.0, -4.0, 2.0]])

        def condition(y, b, c):
            return skew @ y + 0.1 * y**3 - b * c

        @implicit.custom_root(condition)
        def solver(init, b, c):
            newton = lambda _, y: y - jnp.linalg.solve(skew + 0.3 * jnp.diag(y**2), condition(y, b, c))  # noqa: E731
            return jax.lax.fori_loop(0, 8, newton, init)

        def value(b, c):
            return jnp.sum(jnp.sin(solver(jnp.zeros(3), b, c)))

        bs, cs = jnp.arange(6.0).reshape(2, 3), jnp.array([1.0, -0.5])
        mapped, single = jax.jit(jax.vmap(jax.grad(value, (0, 1)))), jax.jit(jax.grad(value, (0, 1)))
        got = mapped(bs, cs)
        assert got[0].dtype == jnp.float32
        for i in range(2):
            alone = single(bs[i], cs[i])
            chex.assert_trees_all_close(jax.tree.map(lambda g, i=i: g[i], got), alone, atol=1e-6)
            y = np.asarray(jax.jit(solver)(jnp.zeros(3), bs[i], cs[i]), np.float64)
            adjoint = np.linalg.solve((skew + 0.3 * np.diag(y**2)).T, np.cos(y))
            np.testing.assert_allclose(alone[0], adjoint * float(cs[i]), atol=1e-5)


class CustomRootTest(chex.TestCase):
    def test_second_order_through_bisection(self):
        # jaxopt #141: the derivative of the rule itself must know that y depends on θ. Here y = θ^(1/3).
        @implicit.custom_root(lambda y, theta, shift: (y - shift) ** 3 - theta, solve=scalar_solve)
        def bisection(bounds, theta, shift):
            def halve(_, b):
                low, high = b
                middle = (low + high) / 2
                above = (middle - shift) ** 3 > theta
                return jnp.where(above, low, middle), jnp.where(above, middle, high)

            return jax.lax.fori_loop(0, 60, halve, bounds)[0]

        def root(theta, shift):
            return bisection((jnp.asarray(0.0), jnp.asarray(10.0)), theta, shift)

        theta = 8.0
        with jax.enable_x64(True):

            @jax.jit
            def measure(theta, shift):
                first, second = jax.grad(root), jax.grad(jax.grad(root))
                return (
                    first(theta, shift),
                    second(theta, shift),
                    jax.hessian(lambda p: root(*p))((theta, shift)),
                )

            first, second, hessian = measure(theta, 1.0)
        np.testing.assert_allclose(first, theta ** (-2 / 3) / 3, rtol=1e-12)
        np.testing.assert_allclose(second, -2 / 9 * theta ** (-5 / 3), rtol=1e-12)
        np.testing.assert_allclose(hessian, [[second, 0], [0, 0]], atol=1e-14)

    def test_solver_in_numpy_outside_jit(self):
        seen = []

        @implicit.custom_root(lambda y, a: y * y - a, solve=scalar_solve)
        def square_root(init, a):
            seen.append(float(a))
            return jnp.asarray(np.sqrt(float(a)), jnp.float32)

        assert jax.grad(square_root, 1)(None, 4.0) == 0.25
        assert jax.jvp(lambda a: square_root(None, a), (4.0,), (1.0,))[1] == 0.25
        assert jax.hessian(square_root, 1)(None, 4.0) == -1 / 32
        assert set(seen) == {4.0}

    def test_arguments_of_every_kind(self):
        def condition(y, a, power, fun, *, index, key, nothing, options):
            assert isinstance(power, int)
            assert nothing is None
            assert options == {"name": "x", "extra": None}
            return jax.tree.map(lambda v: v**power - fun(a["w"][index]), y)

        @implicit.custom_root(condition, has_aux=True, solve=scalar_solve)
        def solver(init, a, power, fun, *, index, key, nothing, options):
            y = init["y"]
            for _ in range(power):  # a Python number is still one
                y = y + 0 * jax.random.uniform(key)
            return {"y": fun(a["w"][index]) ** (1 / power) + 0 * y}, {
                "power": power,
                "init": y,
                "text": "aux",
            }

        def call(a, y0):
            sol, aux = solver(
                {"y": y0}, a, 2, jnp.exp, index=jnp.asarray(1), key=jax.random.key(0), nothing=None,
                options={"name": "x", "extra": None},
            )  # fmt: skip
            assert aux["text"] == "aux"
            assert aux["power"] == 2
            return sol["y"] + 3 * aux["init"]

        a = {"w": jnp.array([1.0, 2.0])}
        grads = jax.jit(jax.grad(call, (0, 1)))(a, 0.5)
        np.testing.assert_allclose(grads[0]["w"], [0, np.e / 2], rtol=1e-6)
        assert grads[1] == 0  # neither through the solution nor through aux

    def test_init_by_name(self):
        @implicit.custom_root(lambda x, a: x - 2 * a, solve=scalar_solve)
        def solver(init_params, a):
            return 2 * a + 0 * init_params

        assert jax.grad(lambda a: solver(init_params=a, a=a))(1.0) == 2.0
        assert jax.grad(lambda a: solver(a, a=a))(1.0) == 2.0
        with pytest.raises(ValueError, match=r"must get 'init_params' as its first argument; got \['a'\]"):
            solver(a=1.0)

    @parameterized.named_parameters(
        ("method", "lu"),
        ("partial", functools.partial(linalg.solve, method="gmres")),
        ("with_info", lambda matvec, b: linalg.solve(matvec, b, method="lu")),
        ("alone", lambda matvec, b: jnp.linalg.solve(linalg.materialize(matvec, b), b)),
    )
    def test_linear_solvers_in_both_modes_and_second_order(self, solve):
        a = jnp.array([[2.0, 1.0], [-1.0, 3.0]])

        @implicit.custom_root(lambda y, b: a @ y - b * b, solve=solve)
        def solver(init, b):
            return jnp.linalg.solve(a, b * b)

        b = jnp.array([1.0, 2.0])

        @jax.jit
        def measure(b):
            value = lambda b: jnp.sum(solver(None, b))  # noqa: E731
            return jax.jacfwd(functools.partial(solver, None))(b), jax.grad(value)(b), jax.hessian(value)(b)

        forward, reverse, hessian = measure(b)
        inverse = np.linalg.inv(a)
        np.testing.assert_allclose(forward, inverse * 2 * b, rtol=1e-5)
        np.testing.assert_allclose(reverse, inverse.sum(0) * 2 * b, rtol=1e-5)
        np.testing.assert_allclose(hessian, np.diag(inverse.sum(0) * 2), atol=1e-5)

    def test_zero_cotangent_gives_zero(self):
        @implicit.custom_root(lambda y, a: {"u": y["u"] - a, "v": 2 * y["v"] - a})
        def solver(init, a):
            return {"u": a, "v": a / 2}

        grad = jax.jit(jax.grad(lambda a: 0.0 * jnp.sum(solver(None, a)["u"])))(jnp.ones(3))
        np.testing.assert_array_equal(grad, 0)
        # One leaf of the cotangent is zero, the other is not.
        grad = jax.jit(jax.grad(lambda a: jnp.sum(solver(None, a)["v"])))(jnp.ones(3))
        np.testing.assert_allclose(grad, 0.5, rtol=1e-6)

    def test_half_precision_solution_is_solved_in_float32(self):
        @implicit.custom_root(lambda y, a: y**2 - a, solve=scalar_solve)
        def solver(init, a):
            return jnp.sqrt(a).astype(jnp.bfloat16)

        assert solver(None, 4.0).dtype == jnp.bfloat16
        grad = jax.grad(lambda a: solver(None, a).astype(jnp.float32))(4.0)
        np.testing.assert_allclose(grad, 0.25, rtol=1e-2)

    def test_no_retrace(self):
        @jax.jit
        @chex.assert_max_traces(n=1)
        def gradient(a):
            solver = implicit.custom_root(lambda y, a: y - a, solve=scalar_solve)(lambda init, a: a)
            return jax.grad(lambda a: jnp.sum(solver(None, a)))(a)

        for value in (1.0, 2.0):
            gradient(jnp.asarray(value))

    @parameterized.named_parameters(
        ("integer", lambda i, a: jnp.ones(2, int), {}, "the solution must be floating"),
        ("structure", lambda i, a: {"y": a}, {}, "the output of optimality_fun must have the structure"),
        ("aux", lambda i, a: a, {"has_aux": True}, r"with has_aux=True must return \(sol, aux\)"),
        (
            "count",
            lambda i, a, b=0: a,
            {"more": (1.0,)},
            r"optimality_fun must take \(sol, \*args, \*\*kwargs\)",
        ),
        ("solve", lambda i, a: a, {"solve": 3}, "solve must be a method of linalg.solve"),
        ("method", lambda i, a: a, {"solve": "qr"}, "method must be one of"),
        ("shape", lambda i, a: a, {"solve": lambda mv, b: b[:1]}, "the output of solve must have"),
    )
    def test_bad_input(self, solver, options, message):
        options = dict(options)
        more = options.pop("more", ())
        root = implicit.custom_root(lambda y, a: jnp.ones(2) * a, **options)(solver)
        with pytest.raises(ValueError, match=message):
            jax.jvp(lambda a: root(None, a, *more), (jnp.ones(2),), (jnp.ones(2),))


class ClosureTest(chex.TestCase):
    """A derivative is never lost through a closed-over value; a closed-over constant is welcome."""

    def _loops(self, a):
        double = lambda init: jax.lax.while_loop(lambda v: v < 2 * a, lambda v: v + a, 0 * a)  # noqa: E731
        return implicit.custom_root(lambda y: y - 2.0, solve=scalar_solve)(double)(None)

    def _condition(self, a):
        return implicit.custom_root(lambda y: y - 2 * a, solve=scalar_solve)(lambda init: jnp.ones(()))(None)

    def _both(self, a):
        return implicit.custom_root(lambda y, b: y - a * b, solve=scalar_solve)(lambda init, b: b)(None, a)

    @parameterized.product(
        case=(
            ("_loops", "the solver must"),
            ("_condition", "optimality_fun must"),
            ("_both", "optimality_fun must"),
        ),
        transform=(
            jax.grad,
            lambda f: jax.grad(jax.jit(f)),
            lambda f: jax.jit(jax.grad(f)),
            lambda f: lambda x: jax.jvp(f, (x,), (x,)),
            lambda f: lambda x: jax.vmap(jax.grad(f))(x[None]),
            lambda f: jax.grad(lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), x, None, 2)[0]),
        ),
    )
    def test_raises(self, case, transform):
        name, message = case
        with pytest.raises(ValueError, match=f"{message} get what is differentiated.*jax.closure_convert"):
            transform(getattr(self, name))(jnp.asarray(2.0))

    def test_closed_over_constants_pass(self):
        for name in ("_loops", "_condition", "_both"):
            fun = getattr(self, name)
            chex.assert_trees_all_close(jax.jit(fun)(2.0), fun(2.0), jax.vmap(fun)(2 * jnp.ones(3))[0])

        @jax.jit
        @jax.vmap
        def slope(a, scale):  # scale is traced and closed over; a is differentiated
            root = implicit.custom_root(lambda y, a: y - scale * a, solve=scalar_solve)
            return jax.grad(lambda a: root(lambda init, a: scale * a)(None, a))(a)

        np.testing.assert_array_equal(slope(jnp.ones(2), jnp.array([2.0, 3.0])), [2.0, 3.0])
