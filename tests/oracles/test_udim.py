"""UDIM: contract, the perturbation and the inconsistency by automatic differentiation, and what is left of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import core, losses, objectives, oracles
from jaxdiv.losses.gradient_variance_gap import gradient_variance_gap
from jaxdiv.oracles.udim import udim
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)), RNG.integers(0, 2, 5).astype(np.int32)
FIRST = {
    "w": RNG.normal(size=(3, 4)),
    "v": RNG.normal(size=(4, 2)),
    "c": RNG.normal(size=2),
}


def suite_model(params, state, inputs, key):
    """Features and outputs from the parameter that all the suite's models have."""
    h = (inputs @ params["w"]).reshape(len(inputs), -1)
    return {"features": h, "logits": jnp.sin(h)}, state


def suite_loss(outputs, targets):
    return 0.5 * jnp.sum(outputs**2, axis=1)


@pytest.mark.paper(194)
class UdimContract(contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(
        functools.partial(udim, apply=suite_model, loss=suite_loss, step_size=0.3, weight=0.1)
    )
    neutral = (("weight", 0.0),)
    cost = (3, 3)
    option = ("weight", 0.4)


def model(params, state, inputs, key):
    h = jnp.tanh(inputs @ params["w"])
    return {"features": h, "logits": h @ params["v"] + params["c"]}, state


OBJECTIVE = objectives.chain(
    objectives.forward(model), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()
)


def mean_loss(params, x, weights):
    rows = losses.cross_entropy(model(params, (), x, None)[0]["logits"], Y)
    return jnp.average(rows, weights=weights)


def head_gradients(params, x):
    """Per-example gradients by kernel and bias of the head, by vmap of grad."""
    head, body = {k: params[k] for k in ("v", "c")}, {"w": params["w"]}

    def row(head, x, y):
        return losses.cross_entropy(model({**body, **head}, (), x[None], None)[0]["logits"], y[None])[0]

    g = jax.vmap(jax.grad(row), (None, 0, 0))(head, x, Y)
    return g["v"].reshape(len(x), -1), g["c"]


def inconsistency(params, x, moved, weights):
    a, b = head_gradients(params, x), head_gradients(params, moved)
    gap = gradient_variance_gap(jnp.concatenate(a, 1), jnp.concatenate(b, 1), weights=weights)
    return gap + sum(jnp.average(jnp.mean(g**2, 1), weights=weights) for g in b)


def climbed(params, x, weights, rho, size, steps):
    """Steps up L + rho |grad L| by two nested reverse passes."""

    @jax.jit
    @jax.grad
    def slope(x):
        g = jax.grad(mean_loss)(params, x, weights)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in g.values()))
        return mean_loss(params, x, weights) + rho * norm

    for _ in range(steps):
        g = slope(x)
        x = x + size * g / jnp.linalg.norm(g, axis=1, keepdims=True)
    return x


@functools.partial(jax.jit, static_argnums=(0, 1))
def ask(base, steps, params, batch, rho, weight, size):
    oracle = udim(base, model, losses.cross_entropy, rho=rho, weight=weight, step_size=size, steps=steps)
    loss_state = OBJECTIVE.init(params, batch, KEY)
    return oracle.value_and_grad(OBJECTIVE.apply, params, oracle.init(params), loss_state, batch, KEY)[1]


PLAIN, SAM = oracles.plain(), oracles.sam(oracles.plain(), rho=0.3)


@pytest.mark.paper(194)
class TestExact:
    def test_is_the_base_and_the_gradient_of_the_inconsistency(self):
        """SAM's gradient on the source and ∂I/∂θ with the perturbed inputs as constants, under weights."""
        weights = np.array([1.0, 2.0, 0.5, 1.0, 0.7])
        with jax.enable_x64(True):
            batch = {"inputs": jnp.asarray(X), "targets": Y, "weights": jnp.asarray(weights)}
            got = ask(SAM, 2, FIRST, batch, 0.3, 2.0, 0.4)
            moved = climbed(FIRST, jnp.asarray(X), weights, 0.3, 0.4, 2)
            source = jax.jit(jax.grad(mean_loss))
            sam = source(core.perturb(FIRST, source(FIRST, X, weights), 0.3), X, weights)
            extra = jax.jit(jax.grad(inconsistency))(FIRST, X, moved, weights)
            for name in got:
                np.testing.assert_allclose(got[name], sam[name] + 2.0 * extra[name], rtol=1e-9, atol=1e-12)

    def test_unmoved_inputs_leave_the_norm_alone(self):
        """step_size = 0: both variances are equal, and what is left is the norm of the head's gradients."""
        with jax.enable_x64(True):
            batch, ones = {"inputs": jnp.asarray(X), "targets": Y}, np.ones(5)
            got = ask(PLAIN, 1, FIRST, batch, 0.3, 2.0, 0.0)
            source = jax.jit(jax.grad(mean_loss))(FIRST, X, ones)
            norm = lambda p: sum(jnp.mean(g**2) for g in head_gradients(p, X))  # noqa: E731
            extra = jax.jit(jax.grad(norm))(FIRST)
            for name in got:
                np.testing.assert_allclose(got[name], source[name] + 2.0 * extra[name], rtol=1e-7)

    def test_weight_zero_is_the_base(self):
        batch = {"inputs": jnp.float32(X), "targets": Y}
        params = jax.tree.map(jnp.float32, FIRST)
        loss_state = OBJECTIVE.init(params, batch, KEY)
        got = ask(SAM, 1, params, batch, 0.3, 0.0, 1.0)
        sam = jax.jit(lambda p: SAM.value_and_grad(OBJECTIVE.apply, p, (), loss_state, batch, KEY)[1])
        want = sam(params)
        contract.assert_close(got, want, rtol=1e-5, atol=1e-6)

    def test_padding_is_absence(self):
        """A row of weight 0 may hold NaN and a label out of range."""
        inputs, labels = np.float32(X).copy(), Y.copy()
        inputs[2], labels[2] = np.nan, 7
        weights = np.array([1, 1, 0, 1, 1], np.float32)
        padded = {"inputs": inputs, "targets": labels, "weights": weights}
        kept = [0, 1, 3, 4]
        short = {"inputs": np.float32(X)[kept], "targets": Y[kept]}
        params = jax.tree.map(jnp.float32, FIRST)
        got, want = (ask(PLAIN, 1, params, batch, 0.3, 2.0, 0.4) for batch in (padded, short))
        contract.assert_close(got, want)
        nothing = ask(PLAIN, 1, params, {**padded, "weights": np.zeros(5, np.float32)}, 0.3, 2.0, 0.4)
        for gradient in nothing.values():
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.paper(194)
class TestErrors:
    @pytest.mark.parametrize(("name", "value"), [("rho", -1.0), ("step_size", -1.0)])
    def test_ranges(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            udim(PLAIN, model, losses.cross_entropy, **{name: value})

    def test_steps(self):
        with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
            udim(PLAIN, model, losses.cross_entropy, steps=0)

    def test_model_without_features(self):
        oracle = udim(PLAIN, model, losses.cross_entropy, features="hidden")
        batch, params = {"inputs": jnp.float32(X), "targets": Y}, jax.tree.map(jnp.float32, FIRST)
        with pytest.raises(ValueError, match="output must be one of 'features', 'logits'; got 'hidden'"):
            jax.eval_shape(
                lambda p: oracle.value_and_grad(
                    OBJECTIVE.apply, p, (), OBJECTIVE.init(p, batch, KEY), batch, KEY
                ),
                params,
            )

    def test_integer_inputs(self):
        oracle = udim(PLAIN, model, losses.cross_entropy)
        loss = lambda p, s, b, k: (jnp.sum(p["w"]), (s, {"terms": {}, "losses": {}, "metrics": {}}))  # noqa: E731
        with pytest.raises(ValueError, match="udim needs a floating input"):
            oracle.value_and_grad(
                loss, jax.tree.map(jnp.float32, FIRST), (), (), {"inputs": np.array([[0, 1, 2]])}, KEY
            )
