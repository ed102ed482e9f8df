"""Noise-adaptive LMO steps: contract, pairs of oracle and dual norm, its formulas, and the plain limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import convex, transforms
from jaxdiv.testing import transforms as contract

RNG = np.random.default_rng(9)


class NoiseAdaptiveLMOContract(contract.Contract):
    bias = (1, contract.OUT)
    learning_rate = 0.2
    option = ("alpha", 2.0)

    @staticmethod
    def transform(alpha=1.0):
        balls = {"matrix": transforms.rms_operator(), "vector": convex.l2}
        by_rank = lambda tree: jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "vector", tree)  # noqa: E731
        return transforms.scale_by_noise_adaptive_lmo(balls, by_rank, alpha=alpha)


class NoiseAdaptiveSignContract(contract.Contract):
    """One group for all leaves."""

    learning_rate = 0.1
    option = ("b2", 0.5)

    @staticmethod
    def transform(b2=0.9):
        return transforms.scale_by_noise_adaptive_lmo({"all": convex.linf}, "all", alpha=3.0, b2=b2)


def gradients(count, shapes):
    return {
        name: jnp.asarray(RNG.normal(size=(count, *shape)), jnp.float32) for name, shape in shapes.items()
    }


def directions(tx, given, others=None):
    """Updates and states for one gradient after the other."""

    def body(state, pair):
        g, other = pair
        extra = {} if others is None else {"independent_gradient": other}
        update, state = tx.update(g, state, **extra)
        return state, (update, state)

    first = jax.tree.map(lambda g: g[0], given)
    run = jax.jit(lambda g, o: jax.lax.scan(body, tx.init(first), (g, o))[1])
    return run(given, given if others is None else others)


@pytest.mark.paper(193)
class TestBalls:
    @pytest.mark.parametrize("name", ["rms_operator", "newton_schulz", "rms_newton_schulz"])
    def test_oracle_and_dual_norm_are_a_pair(self, name):
        """⟨B, O⟩ = −‖B‖_*, and O has RMS→RMS norm 1 (with Newton–Schulz about 1)."""
        ball = {
            "rms_operator": transforms.rms_operator(),
            "newton_schulz": transforms.newton_schulz(),
            "rms_newton_schulz": transforms.rms_operator(transforms.newton_schulz()),
        }[name]
        b = jnp.asarray(RNG.normal(size=(4, 9)), jnp.float32)
        direction = ball.lmo(b)
        np.testing.assert_allclose(jnp.sum(b * direction), -ball.dual(b), rtol=1e-5)
        factor = 1.5 if "rms" in name else 1.0
        singular = np.linalg.svd(direction, compute_uv=False) / factor
        np.testing.assert_allclose(singular, 1.0, atol=1e-5 if name == "rms_operator" else 0.35)
        exact = factor * np.linalg.svd(b, compute_uv=False).sum()
        np.testing.assert_allclose(ball.dual(b), exact, rtol=1e-5 if name == "rms_operator" else 0.2)

    def test_step_keeps_the_rms_of_the_outputs(self):
        """‖x O‖_RMS = ‖x‖_RMS for x in the row space, whatever the widths."""
        b = jnp.asarray(RNG.normal(size=(3, 12)), jnp.float32)
        x = jnp.asarray(RNG.normal(size=3), jnp.float32)
        rms = lambda v: jnp.sqrt(jnp.mean(v**2))  # noqa: E731
        np.testing.assert_allclose(rms(x @ transforms.rms_operator().lmo(b)), rms(x), rtol=1e-5)

    def test_vectors_are_no_matrices(self):
        for ball in (transforms.rms_operator(), transforms.newton_schulz()):
            with pytest.raises(ValueError, match="g must have rank"):
                ball.lmo(jnp.ones(3))
        with pytest.raises(ValueError, match="steps must be at least 1"):
            transforms.newton_schulz(0)


@pytest.mark.paper(193)
class TestExact:
    @pytest.mark.parametrize("independent", [False, True])
    def test_is_its_formulas(self, independent):
        shapes, alpha, b1, b2 = {"a": (3,), "b": (4,), "c": (2,)}, 0.7, 0.8, 0.6
        given, others = gradients(6, shapes), gradients(6, shapes)
        labels, balls = {"a": "sign", "b": "sign", "c": "l2"}, {"sign": convex.linf, "l2": convex.l2}
        duals = {"a": 1, "b": 1, "c": 2}
        momentum, noise = dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)
        tx = transforms.scale_by_noise_adaptive_lmo(
            balls, labels, alpha=alpha, b1=b1, b2=b2, independent=independent
        )
        out, states = directions(tx, given, others if independent else None)
        for t in range(6):
            for name in shapes:
                g = np.asarray(given[name][t], np.float64)
                momentum[name] = b1 * momentum[name] + (1 - b1) * g
                other = others[name][t] if independent else given[name][max(t - 1, 0)]
                square = np.linalg.norm(g - np.asarray(other), duals[name]) ** 2
                noise[name] = b2 * noise[name] + (1 - b2) * square
            rate = {n: alpha / np.sqrt(alpha**2 + h) for n, h in noise.items()}
            top = max(rate["a"], rate["b"])
            for name in shapes:
                b = momentum[name]
                step = np.sign(b) if name != "c" else b / np.linalg.norm(b)
                share = np.sqrt(rate[name] / top) if name != "c" else 1.0
                np.testing.assert_allclose(out[name][t], share * step, rtol=1e-4)
                np.testing.assert_allclose(states.noise[name][t], noise[name], rtol=1e-4, atol=1e-6)

    def test_largest_share_of_a_group_is_1(self):
        given = gradients(5, {"a": (3,), "b": (4,), "c": (5,)})
        tx = transforms.scale_by_noise_adaptive_lmo({"all": convex.linf}, "all", alpha=0.1)
        shares = np.stack([jnp.max(jnp.abs(u), -1) for u in directions(tx, given)[0].values()])
        assert np.all(shares > 0)
        np.testing.assert_array_equal(shares.max(0), 1.0)
        assert shares[:, 1:].min() < 0.9

    @pytest.mark.parametrize("case", ["no_noise", "equal_gradients", "groups_of_one"])
    def test_equal_noise_takes_the_plain_steps(self, case):
        """Then it is momentum followed by the oracle."""
        given = gradients(6, {"a": (4, 3), "b": (4, 3)})
        labels, others = "all", None
        if case == "equal_gradients":
            given["b"] = given["a"]
        if case == "no_noise":
            others = given
        if case == "groups_of_one":
            labels = {"a": "all", "b": "other"}
        balls = {"all": convex.spectral, "other": convex.spectral}
        tx = transforms.scale_by_noise_adaptive_lmo(balls, labels, alpha=0.3, independent=others is not None)
        out, _ = directions(tx, given, others)
        ema, _ = directions(optax.ema(0.95, debias=False), given)
        plain = jax.tree.map(lambda b: -convex.spectral.lmo(b), ema)
        contract.assert_close(out, plain, rtol=1e-4, atol=1e-5)

    def test_newton_schulz_is_muon(self):
        """One matrix in a group steps as `optax.contrib.muon`'s direction, without Nesterov's look-ahead."""
        given = gradients(4, {"a": (4, 3)})["a"]
        balls = {"all": transforms.newton_schulz()}
        ours, _ = directions(transforms.scale_by_noise_adaptive_lmo(balls, "all", alpha=1.0), given)
        muon = optax.contrib.scale_by_muon(beta=0.95, nesterov=False)
        theirs, _ = directions(muon, given)
        contract.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.paper(193)
class TestBadInput:
    def test_missing_gradient(self):
        tx = transforms.scale_by_noise_adaptive_lmo({"a": convex.l2}, "a", alpha=1.0, independent=True)
        with pytest.raises(ValueError, match="independent_gradient must be passed"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))

    def test_unknown_label(self):
        tx = transforms.scale_by_noise_adaptive_lmo({"a": convex.l2}, "b", alpha=1.0)
        with pytest.raises(ValueError, match="labels must be one of 'a'; got 'b'"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))

    def test_alpha(self):
        with pytest.raises(ValueError, match="alpha must lie in"):
            transforms.scale_by_noise_adaptive_lmo({}, "a", alpha=0.0)
