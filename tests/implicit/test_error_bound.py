import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import implicit


@pytest.mark.paper(46)
class ErrorBoundTest(chex.TestCase):
    def test_ridge_constant_and_unit_slope(self):
        # Claim (c) of the entry: ∂₁F is constant, ∂₂F = e^θ y, C = e^θ / λ_min(XᵀX + e^θ I).
        rng = np.random.default_rng(0)
        x, t = rng.normal(size=(20, 4)), rng.normal(size=20)
        gram, lam = x.T @ x, 2.0
        h = gram + lam * np.eye(4)
        root = np.linalg.solve(h, x.T @ t)
        exact = -lam * np.linalg.solve(h, root)
        direction = np.linalg.eigh(h)[1][:, 0]  # the worst: the bound is attained

        def condition(y, theta):
            return gram @ y - x.T @ t + jnp.exp(theta) * y

        @jax.jit
        @jax.vmap
        def error(distance):
            at = root + distance * direction
            jacobian = implicit.root_jvp(condition, at, (np.log(lam),), (1.0,), solve="cholesky")
            bound = implicit.error_bound(
                distance,
                alpha=np.linalg.eigvalsh(h)[0],
                beta=0.0,
                gamma=lam,
                radius=lam * np.linalg.norm(root),
            )
            return jnp.linalg.norm(jacobian - exact), bound

        distances = np.logspace(-1, -6, 6)
        with jax.enable_x64(True):
            errors, bound = error(distances)
        np.testing.assert_allclose(errors, bound.bound, rtol=1e-6)
        np.testing.assert_allclose(bound.constant, lam / np.linalg.eigvalsh(h)[0])
        np.testing.assert_allclose(np.diff(np.log(errors)) / np.diff(np.log(distances)), 1, atol=1e-6)

    def test_holds_where_both_derivatives_move(self):
        # F = sinh(y) + y − θ (2 + tanh y): α ≥ 1 at θ small, constants on |y| ≤ 1.
        def condition(y, theta):
            return jnp.sinh(y) + y - theta * (2 + jnp.tanh(y))

        theta, ys = 0.4, np.linspace(-1, 1, 41)
        with jax.enable_x64(True):
            y = 0.0
            for _ in range(30):
                y = y - condition(y, theta) / (np.cosh(y) + 1 - theta / np.cosh(y) ** 2)
            jacobian = jax.jit(
                jax.vmap(lambda v: implicit.root_jvp(condition, v, (theta,), (1.0,), solve="lu"))
            )
            errors = np.abs(jacobian(ys) - jacobian(np.asarray(y)[None]))
        alpha = 2 - theta
        beta = np.sinh(1) + theta * 0.77  # |sinh| and |(tanh)''| ≤ 0.7699
        gamma, radius = 1.0, 3.0
        bound = implicit.error_bound(
            np.abs(ys - float(y)), alpha=alpha, beta=beta, gamma=gamma, radius=radius
        )
        assert (errors <= np.asarray(bound.bound) + 1e-12).all()

    def test_options_may_be_traced_and_are_checked_when_not(self):
        grad = jax.jit(
            jax.grad(lambda a: implicit.error_bound(1.0, alpha=a, beta=1.0, gamma=1.0, radius=2.0).bound)
        )
        np.testing.assert_allclose(grad(2.0), -2 * 2 / 8 - 1 / 4)
        good = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "radius": 1.0}
        for name, value in (("alpha", 0.0), ("beta", -1.0), ("gamma", -1.0), ("radius", -1.0)):
            with pytest.raises(ValueError, match=f"{name} must lie in"):
                implicit.error_bound(1.0, **{**good, name: value})
