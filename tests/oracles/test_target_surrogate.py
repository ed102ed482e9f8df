"""SSO: contract, gradient descent as one inner step, least squares in one outer step, majorization, mirror version."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import divergences, losses, objectives, oracles, train
from jaxdiv.oracles.target_surrogate import target_surrogate
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3))
Y = RNG.normal(size=8)
LABELS = RNG.integers(0, 2, 8).astype(np.int32)
SGD = optax.sgd(1.0)


def spread(outputs, targets):
    """A loss of outputs of any shape [B, ...]."""
    return jnp.sum(jnp.cos(outputs).reshape(len(outputs), -1), axis=1) * 0.1


def scores(params, state, inputs, key):
    return inputs @ params["w"], state


@pytest.mark.paper(14)
class TargetSurrogateContract(contract.Wrapper, contract.NumericOption):
    """Neutral is one inner step of gradient descent with learning rate 1: the base's direction."""

    wrap = staticmethod(
        functools.partial(target_surrogate, apply=scores, loss=spread, eta=2.0, steps=2, inner=optax.sgd(0.1))
    )
    neutral = (("steps", 1), ("inner", SGD))
    cost = (1, 1)
    option = ("eta", 1.5)


def linear(params, state, inputs, key):
    return inputs @ params, state


def half_error(outputs, targets):
    return 0.5 * (outputs - targets) ** 2


def network(params, state, inputs, key):
    return {"scores": jnp.tanh(inputs @ params["w"]) @ params["v"]}, state


NETWORK = {"w": RNG.normal(size=(3, 4)), "v": RNG.normal(size=(4, 2))}
FIT = objectives.chain(objectives.forward(linear), objectives.loss(half_error, name="fit"), objectives.mean())
CLASSIFY = objectives.chain(
    objectives.forward(network),
    objectives.loss(losses.cross_entropy, name="ce", output="scores"),
    objectives.mean(),
)


def ask(oracle, objective, params, batch):
    loss_state = objective.init(params, batch, KEY)
    return jax.jit(
        lambda p: oracle.value_and_grad(objective.apply, p, oracle.init(p), loss_state, batch, KEY)[1]
    )(params)


@pytest.mark.paper(14)
class TestExact:
    def test_least_squares_in_one_outer_step(self):
        """Linear model, full batch, eta = 1 = 1/L: the surrogate is the loss, its minimizer the solution."""
        with jax.enable_x64(True):
            batch, w = {"inputs": jnp.asarray(X), "targets": jnp.asarray(Y)}, jnp.ones(3)
            rate = 1 / np.linalg.eigvalsh(X.T @ X / 8)[-1]
            oracle = target_surrogate(
                oracles.plain(), linear, half_error, eta=1.0, steps=3000, inner=optax.sgd(rate)
            )
            init, step = train.make_step(FIT, oracle, optax.sgd(1.0))
            state, _ = jax.jit(step)(init(w, batch, KEY), batch)
        np.testing.assert_allclose(state.params, np.linalg.lstsq(X, Y)[0], rtol=1e-8)

    @pytest.mark.parametrize("eta", [0.01, 100.0])
    def test_one_inner_step_is_gradient_descent_for_any_eta(self, eta):
        with jax.enable_x64(True):
            batch = {"inputs": jnp.asarray(X), "targets": LABELS}
            oracle = target_surrogate(
                oracles.plain(), network, losses.cross_entropy, eta=eta, steps=1, inner=SGD, output="scores"
            )
            got, want = (ask(o, CLASSIFY, NETWORK, batch) for o in (oracle, oracles.plain()))
            for name in got:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-14)

    def test_displacement_is_that_of_the_papers_surrogate(self):
        """Written out: steps on mean_i <c_i, z_i - z_i^t> + |z_i - z_i^t|²/(2 eta), padding left out."""
        with jax.enable_x64(True):
            weights = np.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0])
            inputs = X.copy()
            inputs[2] = np.nan
            batch = {"inputs": inputs, "targets": LABELS, "weights": weights}
            oracle = target_surrogate(
                oracles.plain(),
                network,
                losses.cross_entropy,
                eta=0.7,
                steps=4,
                inner=optax.sgd(0.3),
                output="scores",
            )
            got = ask(oracle, CLASSIFY, NETWORK, batch)
            kept = weights > 0
            z = lambda p: network(p, (), X[kept], None)[0]["scores"]  # noqa: E731
            anchor, shares = z(NETWORK), (weights / weights.sum())[kept]
            c = jax.nn.softmax(anchor) - np.eye(2)[LABELS[kept]]

            @jax.jit
            @jax.grad
            def slope(p):
                moved = z(p) - anchor
                return jnp.sum(shares[:, None] * (c * moved + moved**2 / 1.4))

            moved = jax.tree.map(jnp.asarray, NETWORK)
            for _ in range(4):
                moved = jax.tree.map(lambda p, g: p - 0.3 * g, moved, slope(moved))
            for name in got:
                np.testing.assert_allclose(got[name], NETWORK[name] - moved[name], rtol=1e-8, atol=1e-12)

    def test_majorization_never_raises_the_loss(self):
        """Softmax cross entropy is 1/2-smooth: for eta <= 2 any number of Armijo steps lowers the loss."""
        batch = {"inputs": jnp.float32(X), "targets": LABELS}
        params = jax.tree.map(jnp.float32, NETWORK)
        oracle = target_surrogate(
            oracles.plain(), network, losses.cross_entropy, eta=2.0, steps=20, output="scores"
        )
        init, step = train.make_step(CLASSIFY, oracle, optax.sgd(1.0))
        _, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=6))(
            init(params, batch, KEY)
        )
        values = np.asarray(metrics["value"])
        assert np.all(np.diff(values) < 0)
        assert values[-1] < 0.5 * values[0]

    def test_mirror_version_with_the_kl_of_the_softmax(self):
        """With KL(p_t || p) / eta: the stationary point of the surrogate, solved by hand.

        With free logits z, c = p_t - y and D = KL(p_t || p), whose gradient by z is p - p_t, the minimizer has
        p = p_t - eta c.
        """
        free = lambda p, state, x, key: (p + 0 * x, state)  # noqa: E731
        kl = lambda z, anchor: divergences.get("kl").on_logits(anchor, z)  # noqa: E731
        objective = objectives.chain(
            objectives.forward(free), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()
        )
        with jax.enable_x64(True):
            z, batch = jnp.zeros((2, 2)), {"inputs": jnp.zeros((2, 2)), "targets": np.array([0, 1])}
            oracle = target_surrogate(
                oracles.plain(),
                free,
                losses.cross_entropy,
                eta=0.5,
                steps=200,
                inner=optax.sgd(1.0),
                proximity=kl,
            )
            moved = z - ask(oracle, objective, z, batch)
            moved = jax.nn.softmax(moved)
        np.testing.assert_allclose(moved, [[0.75, 0.25], [0.25, 0.75]], rtol=1e-6)

    def test_what_the_loss_does_not_explain_is_linear(self):
        """A ridge in the objective enters by its gradient at θ_t: for a linear model the minimizer is known."""
        ridge = objectives.parameter_regularizer(lambda p: 0.5 * jnp.sum(p**2), name="ridge")
        objective = objectives.chain(
            objectives.forward(linear), objectives.loss(half_error, name="fit"), objectives.mean(), ridge
        )
        with jax.enable_x64(True):
            batch, w = {"inputs": jnp.asarray(X), "targets": jnp.asarray(Y)}, jnp.ones(3)
            gram = X.T @ X / 8
            oracle = target_surrogate(
                oracles.plain(),
                linear,
                half_error,
                eta=1.0,
                steps=3000,
                inner=optax.sgd(1 / np.linalg.eigvalsh(gram)[-1]),
            )
            got = ask(oracle, objective, w, batch)
        gradient = X.T @ (X @ np.ones(3) - Y) / 8 + np.ones(3)
        np.testing.assert_allclose(got, np.linalg.solve(gram, gradient), rtol=1e-7)


@pytest.mark.paper(14)
class TestErrors:
    def test_eta(self):
        with pytest.raises(ValueError, match="eta must lie in"):
            target_surrogate(oracles.plain(), linear, half_error, eta=0.0)

    def test_steps(self):
        with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
            target_surrogate(oracles.plain(), linear, half_error, eta=1.0, steps=0)

    def test_loss_without_a_value_per_example(self):
        batch = {"inputs": jnp.float32(X), "targets": jnp.float32(Y)}
        oracle = target_surrogate(oracles.plain(), linear, lambda z, y: jnp.mean(z), eta=1.0)
        with pytest.raises(ValueError, match="target_surrogate needs one value or row per example"):
            ask(oracle, FIT, jnp.ones(3), batch)
