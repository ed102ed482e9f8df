"""TRAM: contract, the radius by hand, its reference over time, and SAM as the limit of a constant radius."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxdiv import core, losses, objectives, oracles, train
from jaxdiv.oracles.tram import tram, tram_x
from jaxdiv.testing import oracles as contract

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3)).astype(np.float32)
Y = np.array([0, 1, 1, 0, 1], np.int32)


def scores(params, state, inputs, key):
    """Outputs of the suite's models, a cheap function of the parameter that all of them have."""
    return inputs @ params["w"], state


def from_ones(base, **options):
    """TRAM-θ whose reference is that of a pretrained model, so that the first radius is not 0."""
    oracle = tram(base, scores, decay=1.0, **options)
    return oracle._replace(init=lambda p: oracle.init(p)._replace(reference=ones_like(p)))


def ones_like(params):
    return jax.tree.map(lambda w: jnp.full(w.shape, 0.5, jnp.promote_types(w.dtype, jnp.float32)), params)


def mean_square(past, present):
    return jnp.mean((past - present) ** 2)


@pytest.mark.paper(190)
class TramContract(contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(functools.partial(from_ones, divergence=mean_square))
    neutral = (("scale", 0.0),)
    cost = (2, 2)
    option = ("scale", 0.2)

    def test_neutral_wrapper_is_its_base(self):
        """As the suite has it, with the base's state inside that of TRAM."""
        args = contract.arguments()
        wrapped = self.wrap(contract.doubled(oracles.plain()), scale=0.0)
        result, direction, state, _ = jax.jit(lambda *args: contract.evaluate(wrapped, *args))(*args)
        expected, gradient, _, _ = contract.plain(*args)
        twice = jax.tree.map(lambda g: 2 * g, gradient)
        contract.assert_close((result, direction), (expected, twice), rtol=1e-5, atol=1e-6)
        assert int(state.base) == 1


@pytest.mark.paper(190)
class TramXContract(contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(functools.partial(tram_x, apply=scores, divergence=mean_square, sigma=0.5, scale=0.3))
    neutral = (("sigma", 0.0),)
    cost = (2, 2)
    option = ("sigma", 0.4)

    def test_float64_stays_float64(self):
        """As the suite has it, dtypes alone: each dtype has noise of its own."""
        with jax.enable_x64(True):
            result = jax.eval_shape(self.evaluation, *contract.arguments(dtype=jnp.float64))
        inexact = {x.dtype for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.inexact)}
        assert inexact == {jnp.dtype(jnp.float64)}


def logits(params, state, inputs, key):
    hidden = jnp.tanh(inputs @ params["w"])
    return {"logits": hidden @ params["v"], "hidden": hidden}, state


OBJECTIVE = objectives.chain(
    objectives.forward(logits), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()
)
FIRST = {
    "w": RNG.normal(size=(3, 4)).astype(np.float32),
    "v": RNG.normal(size=(4, 2)).astype(np.float32),
}
BATCH = {"inputs": X, "targets": Y}


@jax.jit
def loss_gradient(params):
    return jax.grad(lambda p: OBJECTIVE.apply(p, OBJECTIVE.init(p, BATCH, KEY), BATCH, KEY)[0])(params)


def log_softmax(params):
    z = np.tanh(np.float64(X) @ np.float64(params["w"])) @ np.float64(params["v"])
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def kl(reference, params, weights=None):
    """mean_i KL(softmax f(x_i; reference) || softmax f(x_i; params)) in numpy."""
    past, present = log_softmax(reference), log_softmax(params)
    return np.average((np.exp(past) * (past - present)).sum(1), weights=weights)


def within(params, radius):
    """SAM's gradient with a given radius."""
    return loss_gradient(core.perturb(params, loss_gradient(params), radius))


@functools.partial(jax.jit, static_argnums=0)
def ask(oracle, params, state, batch=BATCH):
    loss_state = OBJECTIVE.init(params, batch, KEY)
    return oracle.value_and_grad(OBJECTIVE.apply, params, state, loss_state, batch, KEY)


def trajectory(oracle, steps=3, learning_rate=0.5):
    """Parameters before each step of gradient descent, and the directions taken."""
    params, state, seen = FIRST, oracle.init(FIRST), []
    for _ in range(steps):
        _, gradient, state, _ = ask(oracle, params, state)
        seen.append((params, gradient))
        params = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)
    return seen


@pytest.mark.paper(190)
class TestRadius:
    def test_first_step_from_the_first_reference_is_plain(self):
        """θ_ref = θ_0: nothing has moved, so the radius is 0."""
        (_, gradient), *_ = trajectory(tram(oracles.plain(), logits, scale=1e3), steps=1)
        chex.assert_trees_all_close(gradient, loss_gradient(FIRST), rtol=1e-6)

    @pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
    def test_reference_is_previous_average_or_first(self, decay):
        """Each direction is SAM's with the KL from θ_ref, which moves after the radius is known."""
        reference = FIRST
        oracle = tram(oracles.plain(), logits, decay=jnp.float32(decay), scale=2.0)
        for params, gradient in trajectory(oracle):
            radius = 2.0 * kl(reference, params)
            chex.assert_trees_all_close(gradient, within(params, radius), rtol=1e-4, atol=1e-6)
            reference = jax.tree.map(lambda r, p: decay * r + (1 - decay) * np.asarray(p), reference, params)
        assert radius > 1e-3, "the outputs must have moved"

    def test_constant_divergence_is_sam(self):
        """A radius of 0.1 whatever the outputs: three steps of optax.contrib.sam."""
        tx, ascent = optax.sgd(0.3), optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
        peer = optax.contrib.sam(tx, ascent, sync_period=2, opaque_mode=True)
        constant = lambda past, present: jnp.full(len(past), 0.1)  # noqa: E731
        init, step = train.make_step(OBJECTIVE, tram(oracles.plain(), logits, divergence=constant), tx)
        state, params = init(FIRST, BATCH, KEY), jax.tree.map(jnp.asarray, FIRST)
        step, peer_state = jax.jit(step), peer.init(params)
        for _ in range(3):
            state, _ = step(state, BATCH)
            updates, peer_state = peer.update(
                loss_gradient(params), peer_state, params, grad_fn=lambda p, i: loss_gradient(p)
            )
            params = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-6)

    def test_padding_and_weights(self):
        """A row of weight 0 may hold NaN; the others weigh in the radius as they do in the loss."""
        weights = np.array([1.0, 2.0, 0.0, 0.5, 1.0], np.float32)
        spoiled = {**BATCH, "inputs": X.copy(), "weights": weights}
        spoiled["inputs"][2] = np.nan
        oracle = tram(oracles.plain(), logits, scale=2.0)
        state = oracle.init(jax.tree.map(lambda w: 0.5 * w, FIRST))
        radius = 2.0 * kl(jax.tree.map(lambda w: 0.5 * w, FIRST), FIRST, weights)
        expected = oracles.sam(oracles.plain(), rho=float(radius))
        got = ask(oracle, FIRST, state, spoiled)[1]
        want = ask(expected, FIRST, (), {**BATCH, "weights": weights})[1]
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)

    def test_other_outputs_and_divergences(self):
        """Half the squared distance of the hidden layer, per unit; a divergence of logits by name."""
        half = jax.tree.map(lambda w: 0.5 * w, FIRST)
        square = lambda past, present: (past - present) ** 2  # noqa: E731
        hidden = tram(oracles.plain(), logits, divergence=square, output="hidden")
        radius = np.mean((np.tanh(X @ half["w"]) - np.tanh(X @ FIRST["w"])) ** 2)
        got = ask(hidden, FIRST, hidden.init(half))[1]
        chex.assert_trees_all_close(got, within(FIRST, radius), rtol=1e-4, atol=1e-6)
        reverse = tram(oracles.plain(), logits, divergence="reverse_kl")
        got = ask(reverse, FIRST, reverse.init(half))[1]
        chex.assert_trees_all_close(got, within(FIRST, kl(FIRST, half)), rtol=1e-4, atol=1e-6)

    def test_noise_moves_the_radius_of_a_linear_model_by_its_size(self):
        """TRAM-x: for outputs x·w and squared distance, E d = σ² |w|²."""
        w = {"w": jnp.array([2.0, -1.0, 2.0])}
        apply = lambda p, state, x, key: (x @ p["w"], state)  # noqa: E731
        batch = {"inputs": jnp.zeros((4000, 3))}
        quadratic = lambda p, s, b, k: (  # noqa: E731
            0.5 * jnp.sum(p["w"] ** 2),
            (s, {"terms": {}, "losses": {}, "metrics": {}}),
        )
        oracle = tram_x(oracles.plain(), apply, divergence=lambda a, b: (a - b) ** 2, sigma=0.5, scale=1.0)
        _, gradient, _, _ = jax.jit(lambda p: oracle.value_and_grad(quadratic, p, (), (), batch, KEY))(w)
        # The gradient of |w|²/2 at w + d w/|w| is longer than w by d.
        radius = np.linalg.norm(gradient["w"]) - 3.0
        np.testing.assert_allclose(radius, 0.25 * 9.0, rtol=0.1)

    def test_model_state_comes_from_the_objective(self):
        """Stored statistics are found in the objective's state."""
        apply = lambda p, state, x, key: (x @ p["w"] * state["gain"], state)  # noqa: E731
        oracle = tram(oracles.plain(), apply, divergence=mean_square, model_state=lambda state: state[0])
        objective = objectives.chain(
            objectives.forward(apply, model_state={"gain": jnp.float32(3.0)}),
            objectives.loss(losses.squared_error, name="fit"),
            objectives.mean(),
        )
        batch, params = {"inputs": X, "targets": X[:, 0]}, {"w": np.ones(3, np.float32)}
        state = oracle.init({"w": np.zeros(3, np.float32)})
        loss_state = objective.init(params, batch, KEY)
        got, want = (
            o.value_and_grad(objective.apply, params, s, loss_state, batch, KEY)[1]
            for o, s in (
                (oracle, state),
                (oracles.sam(oracles.plain(), rho=9 * np.mean(X.sum(1) ** 2)), ()),
            )
        )
        chex.assert_trees_all_close(got, want, rtol=1e-4)


@pytest.mark.paper(190)
class TestErrors:
    @pytest.mark.parametrize(("name", "value"), [("decay", 1.1), ("decay", -0.1), ("scale", -1.0)])
    def test_ranges(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            tram(oracles.plain(), logits, **{name: value})

    def test_sigma(self):
        with pytest.raises(ValueError, match="sigma must lie in"):
            tram_x(oracles.plain(), logits, sigma=-1.0)

    def test_unknown_output(self):
        oracle = tram(oracles.plain(), logits, output="features")
        with pytest.raises(ValueError, match="output must be one of 'logits', 'hidden'"):
            ask(oracle, FIRST, oracle.init(FIRST))

    def test_values_without_a_batch_axis(self):
        oracle = tram(oracles.plain(), logits, divergence=lambda a, b: jnp.ones(2))
        with pytest.raises(ValueError, match="one value or row per example, first axis 5"):
            ask(oracle, FIRST, oracle.init(FIRST))

    def test_integer_inputs(self):
        oracle = tram_x(oracles.plain(), lambda p, s, x, key: (p["w"][x], s))
        with pytest.raises(ValueError, match="tram_x needs a floating input"):
            oracle.value_and_grad(OBJECTIVE.apply, FIRST, (), (), {"inputs": np.array([0, 1])}, KEY)
