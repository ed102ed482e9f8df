import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import convex, implicit

H = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, 0.0], [0.5, 0.0, 1.5]])


def _quadratic(y, b):
    return y @ (H @ y) / 2 - b @ y


def _soft(v, step, *_):
    return v - jnp.clip(v, -step, step)


def _jacobian(condition, y, b):
    """−A⁻¹ B, dense."""
    a, b = jax.jit(jax.jacfwd(condition, (0, 1)))(y, b)
    return -np.linalg.solve(a, b)


@pytest.mark.paper(46)
class FixedPointsTest(chex.TestCase):
    def test_proximal_gradient_of_the_lasso(self):
        # b = H y + s with s = sign(y) on the support and |s| < 1 off it.
        y, s = np.array([1.0, -0.5, 0.0]), np.array([1.0, -1.0, 0.3])
        b = H @ y + s
        with jax.enable_x64(True):
            for step_size in (0.2, 1.0):
                condition = implicit.proximal_gradient(_quadratic, _soft, step_size)
                np.testing.assert_allclose(condition(y, b), 0, atol=1e-14)
                expected = np.zeros((3, 3))
                expected[:2, :2] = np.linalg.inv(H[:2, :2])
                np.testing.assert_allclose(_jacobian(condition, y, b), expected, atol=1e-10)

    def test_block_proximal_gradient_has_the_derivative_of_the_joint_one(self):
        y, b = np.array([1.0, -0.5, 0.0]), H @ [1.0, -0.5, 0.0] + [1.0, -1.0, 0.3]
        with jax.enable_x64(True):
            joint = implicit.proximal_gradient(_quadratic, _soft, 0.3)

            def fun(blocks, b):
                return _quadratic(jnp.concatenate([jnp.atleast_1d(blocks[0]), blocks[1]]), b)

            blocked = implicit.block_proximal_gradient(fun, [_soft, _soft], jnp.array([0.2, 0.7]))

            def flat(y, b):
                first, second = blocked((y[0], y[1:]), b)
                return jnp.concatenate([first[None], second])

            np.testing.assert_allclose(flat(y, b), 0, atol=1e-14)
            np.testing.assert_allclose(_jacobian(flat, y, b), _jacobian(joint, y, b), atol=1e-10)

    def test_projected_gradient_and_both_mirror_geometries_agree_inside_the_simplex(self):
        # Inside, dy/db = H⁻¹ − H⁻¹ 1 1ᵀ H⁻¹ / 1ᵀH⁻¹1.
        y = np.array([0.2, 0.3, 0.5])
        b = H @ y + 0.7
        inverse = np.linalg.inv(H)
        expected = inverse - np.outer(inverse.sum(0), inverse.sum(0)) / inverse.sum()
        conditions = (
            implicit.projected_gradient(_quadratic, lambda v, b: convex.project_simplex(v), 0.3),
            implicit.mirror_descent(_quadratic, step_size=0.3),
            implicit.mirror_descent(
                _quadratic,
                project=lambda v, b: convex.project_simplex(v),
                mirror_map=lambda v: v,
                step_size=2.0,
            ),
        )
        with jax.enable_x64(True):
            for condition in conditions:
                np.testing.assert_allclose(condition(y, b), 0, atol=1e-14)
                np.testing.assert_allclose(_jacobian(condition, y, b), expected, atol=1e-9)

    def test_mirror_descent_at_the_boundary_is_finite(self):
        y, b = np.array([0.4, 0.6, 0.0]), H @ [0.4, 0.6, 0.0] + [0.0, 0.0, -1.0]
        with jax.enable_x64(True):
            got = _jacobian(implicit.mirror_descent(_quadratic, step_size=0.3), y, b)
            euclid = _jacobian(
                implicit.projected_gradient(_quadratic, lambda v, b: convex.project_simplex(v), 0.3), y, b
            )
        np.testing.assert_allclose(got, euclid, atol=1e-9)
        np.testing.assert_allclose(got[2], 0, atol=1e-15)

    def test_step_size_may_depend_on_what_is_differentiated(self):
        def call(b):
            condition = implicit.projected_gradient(
                _quadratic, lambda v, b: jnp.maximum(v, 0), 1 / (2 + b[0])
            )
            root = implicit.custom_root(condition, solve="lu")(lambda init, b: jnp.linalg.solve(H, b))
            return jnp.sum(root(None, b))

        grad = jax.jit(jax.grad(call))(jnp.asarray(H @ np.ones(3), jnp.float32))
        np.testing.assert_allclose(grad, np.linalg.inv(H).sum(0), rtol=1e-4)

    def test_bad_input(self):
        free = lambda v, step, *theta: v  # noqa: E731
        for factory in (
            lambda s: implicit.proximal_gradient(_quadratic, free, s),
            lambda s: implicit.mirror_descent(_quadratic, step_size=s),
            lambda s: implicit.block_proximal_gradient(_quadratic, [free], [s]),
            lambda s: implicit.newton(_quadratic, s),
        ):
            with pytest.raises(ValueError, match="step_size must lie in"):
                factory(0.0)
        with pytest.raises(
            ValueError, match="step_sizes must have one entry for each of the 1 proxes; got 2"
        ):
            implicit.block_proximal_gradient(_quadratic, [free], [1.0, 1.0])
        with pytest.raises(ValueError, match="y must have one block for each of the 1 proxes; got 3"):
            implicit.block_proximal_gradient(_quadratic, [free])(jnp.ones(3), jnp.ones(3))
