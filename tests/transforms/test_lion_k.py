"""Lion-K: contract, parity with optax, the table of κ, the implied constraint, and the Lyapunov function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import convex, diagnostics, transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(4)


KAPPAS = {
    "l1": transforms.ball_kappa(convex.linf),
    "l2": transforms.ball_kappa(convex.l2),
    "rows": transforms.ball_kappa(convex.l2.over(-1)),
    "nuclear": transforms.ball_kappa(convex.spectral),
    "l3": transforms.lp_kappa(3.0),
    "huber": transforms.huber_kappa(0.7),
    "dead_zone": transforms.dead_zone_kappa(0.7),
    "pseudo_huber": transforms.pseudo_huber_kappa(0.7),
}


class ScaleByLionKContract(contract.Contract):
    transform = staticmethod(transforms.scale_by_lion_k)
    learning_rate = 0.1
    option = ("b1", 0.7)
    smooth = False


class SpectralContract(contract.Contract):
    """A κ of matrices, with an explicit decay."""

    bias = (1, contract.OUT)
    needs_params = True
    learning_rate = None

    @staticmethod
    def transform(weight_decay=1e-3):
        rate = optax.cosine_decay_schedule(0.2, contract.STEPS)
        return transforms.lion_k(rate, KAPPAS["nuclear"], weight_decay=weight_decay)

    option = ("weight_decay", 0.5)


class HuberContract(contract.Contract):
    """A κ with a numeric option, with implicit decay."""

    learning_rate = None
    needs_params = True

    @staticmethod
    def transform(e=0.05):
        rate = optax.cosine_decay_schedule(0.1, contract.STEPS)
        return transforms.lion_k(rate, transforms.huber_kappa(e), implicit=True)

    option = ("e", 0.9)


class ProximalWeightDecayContract(contract.Contract):
    learning_rate = None
    needs_params = True

    @staticmethod
    def transform(weight_decay=1e-3):
        return optax.chain(optax.scale(-0.3), transforms.add_proximal_weight_decay(0.3, weight_decay))

    option = ("weight_decay", 0.5)


def trajectory(tx, gradients, start):
    """All iterates under given gradients."""

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda s, g: jax.lax.scan(body, (s, tx.init(s)), g)[1])(start, gradients)


@pytest.mark.paper(23)
class TestExact:
    def test_l1_is_lion_step_by_step(self):
        """κ = ‖·‖_1 is optax.lion, bit by bit."""
        gradients = jnp.asarray(RNG.normal(size=(30, 5)), jnp.float32)
        start = jnp.asarray(RNG.normal(size=5), jnp.float32)
        rate = optax.cosine_decay_schedule(0.1, 30)
        ours = trajectory(transforms.lion_k(rate, weight_decay=0.3), gradients, start)
        theirs = trajectory(optax.lion(rate, weight_decay=0.3), gradients, start)
        np.testing.assert_array_equal(ours, theirs)

    def test_huber_1_is_the_refined_lion_of_optax(self):
        gradients = jnp.asarray(2 * RNG.normal(size=(30, 5)), jnp.float32)
        ours = trajectory(transforms.scale_by_lion_k(transforms.huber_kappa(1.0)), gradients, jnp.zeros(5))
        theirs = trajectory(optax.scale_by_lion(mode="refined"), gradients, jnp.zeros(5))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

    def test_implicit_decay_is_explicit_with_a_smaller_step(self):
        """η' = η/(1 + η λ)."""
        gradients = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
        rate, decay = 0.3, 2.0
        start = jnp.asarray(RNG.normal(size=5), jnp.float32)
        implicit = trajectory(transforms.lion_k(rate, weight_decay=decay, implicit=True), gradients, start)
        explicit = transforms.lion_k(rate / (1 + rate * decay), weight_decay=decay)
        np.testing.assert_allclose(implicit, trajectory(explicit, gradients, start), rtol=1e-5, atol=1e-6)

    def test_distance_to_the_box_shrinks_and_the_box_is_kept(self):
        """‖x‖_∞ − 1/λ shrinks by 1 − ηλ a step outside, whatever the gradients; inside it stays negative."""
        rate, decay = 0.1, 2.0
        gradients = jnp.asarray(RNG.normal(size=(60, 5)) * 10, jnp.float32)
        path = trajectory(transforms.lion_k(rate, weight_decay=decay), gradients, jnp.full(5, 3.0))
        excess = np.abs(np.concatenate([np.full((1, 5), 3.0), path])).max(1) - 1 / decay
        bound = np.where(excess[:-1] > 0, (1 - rate * decay) * excess[:-1], 0.0)
        assert np.all(excess[1:] <= bound + 1e-6)
        assert excess[0] > 2
        assert excess[-1] < 1e-5

    def test_proximal_decay_keeps_the_sign(self):
        """θ⁺ = (θ + u)/(1 + η λ), also for η λ = 5, where decoupled decay would turn θ around."""
        tx = transforms.add_proximal_weight_decay(optax.linear_schedule(1.0, 0.0, 2), 5.0)
        theta, state = jnp.array([3.0, -6.0]), tx.init(jnp.zeros(2))
        for rate in (1.0, 0.5, 0.0):
            update, state = tx.update(jnp.array([1.0, 0.0]), state, theta)
            np.testing.assert_allclose(theta + update, np.array([4.0, -6.0]) / (1 + 5 * rate), rtol=1e-6)


@pytest.mark.paper(23)
class TestKappa:
    @pytest.mark.parametrize("name", KAPPAS)
    def test_conjugate_pair(self, name):
        """Fenchel and Young: κ(m) + κ*(∇κ(m)) = ⟨m, ∇κ(m)⟩, and ≥ for any other point of the domain."""
        kappa = KAPPAS[name]
        with jax.enable_x64(True):
            m, other = jnp.asarray(RNG.normal(size=(2, 4, 3)))

            @jax.jit
            def gaps(m, other):
                u, v = kappa.gradient(m), 0.99 * kappa.gradient(other)
                gap = lambda u: kappa.value(m) + kappa.conjugate(u) - jnp.sum(m * u)  # noqa: E731
                return gap(u), gap(v), kappa.conjugate(1.1 * kappa.gradient(100 * m))

            tight, loose, outside = gaps(m, other)
            np.testing.assert_allclose(tight, 0.0, atol=1e-10)
            assert loose > 1e-3
            assert outside == np.inf
            if name not in ("dead_zone", "nuclear"):
                slope = jax.jit(jax.grad(kappa.value))(m)
                np.testing.assert_allclose(slope, kappa.gradient(m), rtol=1e-10)

    def test_steps_are_those_of_the_table(self):
        m = jnp.array([[3.0, 0.0], [0.0, -0.5]])
        expected = {
            "l1": [[1, 0], [0, -1]],
            "rows": [[1, 0], [0, -1]],
            "nuclear": [[1, 0], [0, -1]],
            "l2": np.asarray(m) / np.sqrt(9.25),
            "l3": np.sign(m) * np.asarray(m) ** 2 / (27.125) ** (2 / 3),
            "huber": [[1, 0], [0, -0.5 / 0.7]],
            "dead_zone": [[1, 0], [0, 0]],
            "pseudo_huber": np.asarray(m) / np.sqrt(np.asarray(m) ** 2 + 0.49),
        }
        for name, steps in expected.items():
            np.testing.assert_allclose(jax.jit(KAPPAS[name].gradient)(m), steps, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(
        ("make", "bad"), [("lp_kappa", 1.0), ("huber_kappa", 0.0), ("dead_zone_kappa", -1.0)]
    )
    def test_bad_options(self, make, bad):
        with pytest.raises(ValueError, match="must lie in"):
            getattr(transforms, make)(bad)

    def test_integers_raise(self):
        with pytest.raises(ValueError, match="params must be floating point"):
            transforms.scale_by_lion_k().init(jnp.arange(3))

    def test_betas_are_checked(self):
        with pytest.raises(ValueError, match="b2 must lie in"):
            transforms.scale_by_lion_k(b2=1.5)


@pytest.mark.paper(23)
class TestLyapunov:
    @pytest.mark.parametrize(
        ("alpha", "gamma", "epsilon", "decay"),
        [(1.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.5), (2.0, 0.5, 0.7, 1.5), (0.5, 2.0, 0.2, 1.0)],
    )
    def test_falls_along_the_flow(self, alpha, gamma, epsilon, decay):
        """dH/dt ≤ 0 along ṁ = −α∇f − γm, ẋ = ∇κ(m − ε(α∇f + γm)) − λx, by its derivative along the field."""
        kappa = transforms.pseudo_huber_kappa(0.3)
        with jax.enable_x64(True):
            matrix = jnp.asarray(RNG.normal(size=(6, 3)))
            goal = jnp.asarray(RNG.normal(size=6))
            f = lambda x: jnp.sum((matrix @ x - goal) ** 2) / 2  # noqa: E731

            def energy(x, m):
                report = diagnostics.lion_lyapunov(
                    f(x), x, -m, kappa, weight_decay=decay, alpha=alpha, gamma=gamma, epsilon=epsilon
                )
                return report.value

            def field(x, m):
                force = alpha * jax.grad(f)(x) + gamma * m
                return kappa.gradient(m - epsilon * force) - decay * x, -force

            slope = jax.jit(jax.vmap(lambda x, m: jax.jvp(energy, (x, m), field(x, m))[1]))
            x = jnp.asarray(RNG.uniform(-1, 1, size=(200, 3))) / decay
            slopes = slope(x, jnp.asarray(2 * RNG.normal(size=(200, 3))))
            assert np.max(slopes) < 0

    def test_is_its_formula(self):
        kappa = transforms.huber_kappa(0.5)
        x, m = {"a": jnp.array([0.2, -0.3])}, {"a": jnp.array([1.0, 0.25])}
        report = diagnostics.lion_lyapunov(
            3.0, x, m, kappa, weight_decay=2.0, alpha=0.5, gamma=0.4, epsilon=1.5
        )
        conjugate = 0.25 * (0.4**2 + 0.6**2)
        gap = conjugate + (0.75 + 0.0625) + 2.0 * (0.2 * 1.0 - 0.3 * 0.25)
        np.testing.assert_allclose(report.penalty, conjugate / 2, rtol=1e-5)
        np.testing.assert_allclose(report.gap, gap, rtol=1e-5)
        np.testing.assert_allclose(report.value, 1.5 + 0.2 * conjugate + 0.4 / 4 * gap, rtol=1e-5)

    def test_outside_the_constraint_it_is_infinite(self):
        kappa = KAPPAS["l1"]
        inside, outside = (
            diagnostics.lion_lyapunov(1.0, jnp.array([x]), jnp.array([0.5]), kappa, weight_decay=2.0)
            for x in (0.5, 0.51)
        )
        assert np.isfinite(inside.value)
        assert outside.penalty == outside.value == np.inf
