import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import implicit, linalg

TIGHT = functools.partial(linalg.solve, method="normal_cg", rtol=1e-12)


@pytest.mark.paper(46)
class OptimalityTest(chex.TestCase):
    def test_stationarity_of_a_quadratic(self):
        h = np.array([[3.0, 1.0], [1.0, 2.0]])
        condition = implicit.stationarity(lambda y, b: y @ (h @ y) / 2 - b @ y)
        b = np.array([1.0, -1.0])
        with jax.enable_x64(True):
            y = np.linalg.solve(h, b)
            np.testing.assert_allclose(condition(y, b), 0, atol=1e-14)
            jacobian = jax.jit(jax.vmap(lambda t: implicit.root_jvp(condition, y, (b,), (t,), "cholesky")))(
                np.eye(2)
            )
        np.testing.assert_allclose(jacobian, np.linalg.inv(h), atol=1e-12)

    def test_kkt_of_a_quadratic_program(self):
        # min zᵀz/2 − cᵀz subject to Σz = b and z ≤ 0.6: at c = (2, 1, 0), b = 1 the first two are at their
        # bound, the last takes what is left, ν = c₃ − z₃ and λ = c − z − ν.
        condition = implicit.kkt(
            lambda z, c, b: z @ z / 2 - c @ z,
            equality=lambda z, c, b: jnp.sum(z) - b,
            inequality=lambda z, c, b: {"upper": z - 0.6},
        )
        c, b = np.array([2.0, 1.0, 0.0]), np.array(1.0)
        z = np.array([0.6, 0.6, -0.2])
        nu = c[2] - z[2]
        lam = c - z - nu
        assert (lam[:2] > 0).all()
        with jax.enable_x64(True):
            y = implicit.KKT(jnp.asarray(z), jnp.asarray(nu), {"upper": jnp.asarray(lam)})
            for leaf in jax.tree.leaves(condition(y, c, b)):
                np.testing.assert_allclose(leaf, 0, atol=1e-14)
            pull = jax.jit(lambda bar: implicit.root_vjp(condition, y, (c, b), bar, TIGHT))
            bar = jax.tree.map(jnp.zeros_like, y)._replace(primal=jnp.array([1.0, 2.0, 3.0]))
            dz = pull(bar)
            bar = jax.tree.map(jnp.zeros_like, y)._replace(equality=jnp.array(1.0))
            dnu = pull(bar)
        # Only the last coordinate moves, with b; ν = c₃ − z₃.
        np.testing.assert_allclose(dz[0], 0, atol=1e-10)
        np.testing.assert_allclose(dz[1], 3.0, atol=1e-10)
        np.testing.assert_allclose(dnu[0], [0.0, 0.0, 1.0], atol=1e-10)
        np.testing.assert_allclose(dnu[1], -1.0, atol=1e-10)

    def test_kkt_without_constraints_is_stationarity(self):
        condition = implicit.kkt(lambda z: jnp.sum(z**2))
        assert condition(implicit.KKT(jnp.ones(1))) == implicit.KKT(jnp.array([2.0]), None, None)
        with pytest.raises(ValueError, match=r"y.equality must hold multipliers exactly.*got some"):
            condition(implicit.KKT(jnp.ones(1), jnp.ones(1)))
        with pytest.raises(ValueError, match=r"y.inequality must hold multipliers exactly.*got none"):
            implicit.kkt(jnp.sum, inequality=jnp.sum)(implicit.KKT(jnp.ones(1)))

    def test_newton_has_the_same_root_and_minus_eta_for_its_derivative(self):
        def root_fun(y, a):
            return jnp.array([y[0] ** 2 - a * y[1], y[1] ** 3 + y[0] - 2 * a])

        condition = implicit.newton(root_fun, step_size=0.5, solve="lu")
        y, a = np.ones(2), np.array(1.0)
        with jax.enable_x64(True):
            np.testing.assert_allclose(condition(y, a), 0, atol=1e-14)
            (slope, b), plain = jax.jit(
                lambda y, a: (
                    jax.jacfwd(condition, (0, 1))(y, a),
                    implicit.root_jvp(root_fun, y, (a,), (1.0,), "lu"),
                )
            )(y, a)
        np.testing.assert_allclose(slope, -0.5 * np.eye(2), atol=1e-12)
        np.testing.assert_allclose(np.asarray(b) / 0.5, plain, atol=1e-11)  # −A⁻¹ B

    def test_conic_residual_of_a_linear_program(self):
        # min −x₁ − x₂ subject to x ≤ b: x = b, with multipliers 1; s = 0.
        condition = implicit.conic_residual(lambda v: jnp.maximum(v, 0))
        matrix, b, c = np.vstack([np.eye(2), -np.eye(2)]), np.array([2.0, 3.0, 5.0, 5.0]), -np.ones(2)
        x, dual = b[:2], np.array([1.0, 1.0, 0.0, 0.0])
        y = (x, dual - (b - matrix @ x), np.array(1.0))

        @implicit.custom_root(condition, solve=TIGHT)
        def embedding(init, matrix, b, c):
            return jax.tree.map(jnp.asarray, y)

        def primal(b):
            u, _, w = embedding(None, matrix, b, c)
            return u / w

        with jax.enable_x64(True):
            for leaf in jax.tree.leaves(condition(y, matrix, b, c)):
                np.testing.assert_allclose(leaf, 0, atol=1e-14)
            scaled = jax.tree.map(lambda leaf: 3 * leaf, y)  # homogeneous
            for leaf in jax.tree.leaves(condition(scaled, matrix, b, c)):
                np.testing.assert_allclose(leaf, 0, atol=1e-14)
            forward, reverse = jax.jit(lambda b: (jax.jacfwd(primal)(b), jax.jacrev(primal)(b)))(b)
        np.testing.assert_allclose(forward, np.eye(2, 4), atol=1e-9)
        np.testing.assert_allclose(reverse, np.eye(2, 4), atol=1e-9)
