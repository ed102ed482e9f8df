"""IGNITE: contract, the curvature term against a Hessian, the multiplier by hand, models without curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses, objectives, oracles
from jaxdiv.oracles.ignite import ignite
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=6)
FIRST = {"w": RNG.normal(size=(3, 4)), "v": RNG.normal(size=4)}


@pytest.mark.paper(189)
class IgniteContract(contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(
        functools.partial(
            ignite,
            apply=lambda params, state, inputs, key: (jnp.tanh(inputs @ params["w"]), state),
            multiplier=3.0,
            rho=0.5,
            radius=0.2,
            learning_rate=0.0,
        )
    )
    neutral = (("multiplier", 0.0),)
    option = ("rho", 0.7)

    def test_neutral_wrapper_is_its_base(self):
        """As the suite has it, with the base's state inside that of IGNITE."""
        args = contract.arguments()
        wrapped = self.wrap(contract.doubled(oracles.plain()), multiplier=0.0)
        result, direction, state, _ = jax.jit(lambda *args: contract.evaluate(wrapped, *args))(*args)
        expected, gradient, _, _ = contract.plain(*args)
        twice = jax.tree.map(lambda g: 2 * g, gradient)
        contract.assert_close((result, direction), (expected, twice), rtol=1e-5, atol=1e-6)
        assert int(state.base) == 1


def model(params, state, inputs, key):
    return {"value": jnp.tanh(inputs @ params["w"]) @ params["v"]}, state


OBJECTIVE = objectives.chain(
    objectives.forward(model),
    objectives.loss(losses.squared_error, name="fit", output="value"),
    objectives.mean(),
)


@functools.partial(jax.jit, static_argnums=0)
def ask(make, params, batch, *options):
    oracle = make(*options)
    loss_state = OBJECTIVE.init(params, batch, KEY)
    _, gradient, state, _ = oracle.value_and_grad(
        OBJECTIVE.apply, params, oracle.init(params), loss_state, batch, KEY
    )
    plain = jax.grad(lambda p: OBJECTIVE.apply(p, loss_state, batch, KEY)[0])(params)
    return gradient, plain, state.multiplier


def surrogate(*options):
    names = ("rho", "radius", "multiplier", "learning_rate", "epsilon")
    return ignite(oracles.plain(), model, output="value", **dict(zip(names, options, strict=True)))


def mean_prediction(params, weights=None):
    values = jnp.tanh(X @ params["w"]) @ params["v"]
    return jnp.average(values, weights=weights)


@pytest.mark.paper(189)
class TestExact:
    def test_small_radius_is_the_gradient_of_the_norm(self):
        """As r -> 0 the extra term is λ rho grad ||grad G||, here by automatic differentiation."""
        with jax.enable_x64(True):
            batch = {"inputs": jnp.asarray(X), "targets": jnp.asarray(Y)}
            gradient, plain, _ = ask(surrogate, FIRST, batch, 0.3, 1e-5, 2.0, 0.0, 0.0)
            norm = jax.jit(jax.grad(lambda p: optax.tree.norm(jax.grad(mean_prediction)(p))))
            for name, slope in norm(FIRST).items():
                np.testing.assert_allclose(gradient[name] - plain[name], 0.6 * slope, rtol=1e-3, atol=1e-6)

    def test_finite_radius_is_the_difference_quotient(self):
        """g = grad L + λ (rho/r) (grad G(β + r d/n) - d), under the batch's weights; padding is absent."""
        with jax.enable_x64(True):
            weights = np.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])
            inputs = X.copy()
            inputs[2] = np.nan
            batch = {"inputs": inputs, "targets": Y, "weights": weights}
            gradient, plain, _ = ask(surrogate, FIRST, batch, 0.3, 0.4, 2.0, 0.0, 0.0)
            slope = jax.grad(lambda p: mean_prediction(p, weights))
            d = slope(FIRST)
            n = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in d.values()))
            there = slope({name: FIRST[name] + 0.4 * d[name] / n for name in FIRST})
            for name in FIRST:
                extra = 2.0 * 0.3 / 0.4 * (there[name] - d[name])
                np.testing.assert_allclose(gradient[name], plain[name] + extra, rtol=1e-9)

    def test_multiplier_follows_the_violation(self):
        """λ + learning_rate (rho n - epsilon), never below 0."""
        with jax.enable_x64(True):
            batch = {"inputs": jnp.asarray(X), "targets": jnp.asarray(Y)}
            n = float(optax.tree.norm(jax.grad(mean_prediction)(FIRST)))
            *_, up = ask(surrogate, FIRST, batch, 0.3, 0.4, 2.0, 0.1, 0.05)
            np.testing.assert_allclose(up, 2.0 + 0.1 * (0.3 * n - 0.05), rtol=1e-9)
            *_, down = ask(surrogate, FIRST, batch, 0.3, 0.4, 2.0, 0.1, 100.0)
            assert float(down) == 0.0

    def test_model_linear_in_its_parameters_has_no_sharpness_to_remove(self):
        """G has a constant gradient, so that the extra term is exactly 0."""
        apply = lambda p, state, x, key: (x @ p, state)  # noqa: E731
        oracle = ignite(oracles.plain(), apply, multiplier=1e4)
        loss = lambda p, s, b, k: (  # noqa: E731
            jnp.sum((b["inputs"] @ p) ** 2),
            (s, {"terms": {}, "losses": {}, "metrics": {}}),
        )
        w, batch = jnp.ones(3), {"inputs": jnp.float32(X)}
        got, want = (
            o.value_and_grad(loss, w, o.init(w), (), batch, KEY)[1] for o in (oracle, oracles.plain())
        )
        np.testing.assert_array_equal(got, want)

    def test_constant_model_is_not_divided_by_zero(self):
        apply = lambda p, state, x, key: (0.0 * (x @ p) ** 2, state)  # noqa: E731
        oracle = ignite(oracles.plain(), apply)
        loss = lambda p, s, b, k: (jnp.sum(p), (s, {"terms": {}, "losses": {}, "metrics": {}}))  # noqa: E731
        w = jnp.ones(3)
        _, gradient, state, _ = oracle.value_and_grad(
            loss, w, oracle.init(w), (), {"inputs": jnp.float32(X)}, KEY
        )
        np.testing.assert_array_equal(gradient, 1.0)
        np.testing.assert_allclose(state.multiplier, 1e-3 - 1e-6, rtol=1e-5)


@pytest.mark.paper(189)
class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value"), [("rho", -1.0), ("radius", 0.0), ("multiplier", -1.0), ("learning_rate", -1.0)]
    )
    def test_ranges(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            ignite(oracles.plain(), model, **{name: value})

    def test_unknown_output(self):
        batch = {"inputs": jnp.float32(X), "targets": jnp.float32(Y)}
        oracle = ignite(oracles.plain(), model)
        with pytest.raises(ValueError, match="output must be one of 'value'; got 'logits'"):
            oracle.value_and_grad(OBJECTIVE.apply, FIRST, oracle.init(FIRST), ((), 0, ()), batch, KEY)
