"""Voting self-distillation: the mean vote of earlier parameters, when they are kept, and when it changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import losses, nn, objectives
from jaxdiv.objectives import voting_self_distillation
from jaxdiv.testing import objectives as contract

KEY = jax.random.key(1)
LABELS = np.array([0, 2, 1, 1], np.int32)
BATCH = {"inputs": np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), "targets": LABELS}


def model(params, state, inputs, key):
    return jnp.tanh(inputs) @ params, state


def draw(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 2, 3)).astype(np.float32)


def chain(**options):
    return objectives.chain(
        objectives.forward(model),
        objectives.loss(losses.cross_entropy, name="ce"),
        voting_self_distillation(model, **options),
        objectives.mean(),
    )


@functools.partial(jax.jit, static_argnames=("interval", "num_teachers"))
def step(params, state, options, interval=1, num_teachers=1):
    """One update: its distillation losses, the gradient of the sum of all losses, the new state."""

    def total(params):
        objective = chain(interval=interval, num_teachers=num_teachers, **options)
        value, (new_state, aux) = objective.apply(params, state, BATCH, KEY)
        return 4 * value, (aux["losses"]["self_distillation"], new_state)

    gradient, (values, new_state) = jax.grad(total, has_aux=True)(params)
    return values, gradient, new_state


def follow(path, options, interval=1, num_teachers=1):
    """The losses at every parameter of a path."""
    state = chain(interval=interval, num_teachers=num_teachers).init(path[0], BATCH, KEY)
    seen = []
    for params in path:
        values, _, state = step(params, state, options, interval, num_teachers)
        seen.append(np.asarray(values))
    return np.stack(seen), state


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(student, teachers, temperature=2.0, sharpening=1.0, weight=1.0):
    """τ² KL(mean vote ‖ student) by numpy in float64."""
    features = np.tanh(BATCH["inputs"].astype(np.float64))
    p = softmax(features @ student / temperature)
    vote = np.mean([softmax(features @ teacher / (temperature * sharpening)) for teacher in teachers], axis=0)
    return weight * temperature**2 * np.sum(vote * np.log(vote / p), axis=-1)


@pytest.mark.paper(49)
class VotingContract(contract.Schedule, contract.Contract):
    link = staticmethod(
        functools.partial(voting_self_distillation, contract.model, interval=1, num_teachers=1)
    )
    after = (contract.CROSS_ENTROPY, contract.MEAN)
    option = ("weight", 0.7)
    missing = "voting_self_distillation needs 'logits'"


@pytest.mark.paper(49)
class TestExact:
    def test_loss_is_the_divergence_from_the_mean_vote(self):
        """From the third update on the two latest parameters vote; before, the loss is 0."""
        path = draw(5)
        options = {"temperature": 1.5, "sharpening": 0.5, "weight": 0.7}
        got, _ = follow(path, options, num_teachers=2)
        np.testing.assert_array_equal(got[:2], 0.0)
        for now in range(2, 5):
            want = expected(path[now], path[now - 2 : now], *options.values())
            np.testing.assert_allclose(got[now], want, rtol=1e-4, atol=1e-5)

    def test_every_interval_th_update_is_kept(self):
        """With interval 3 and M = 2 the updates 2 and 5 vote from 6 to 8, 5 and 8 from 9 on."""
        path = draw(11)
        got, state = follow(path, {}, interval=3, num_teachers=2)
        np.testing.assert_array_equal(got[:6], 0.0)
        for now, kept in ((6, [2, 5]), (8, [2, 5]), (9, [8, 5]), (10, [8, 5])):
            np.testing.assert_allclose(got[now], expected(path[now], path[kept]), rtol=1e-4, atol=1e-5)
        (params, _), updates = state[2]
        np.testing.assert_array_equal(params, path[[8, 5]])
        assert updates == 11

    def test_weight_zero_changes_nothing(self):
        """Value and gradient are those of the cross entropy alone."""
        path = draw(3)
        _, state = follow(path[:2], {})
        values, gradient, _ = step(path[2], state, {"weight": 0.0})
        np.testing.assert_array_equal(values, 0.0)
        alone = objectives.chain(*plain_links())
        np.testing.assert_allclose(gradient, 4 * first_gradient(alone, path[2]), rtol=1e-6, atol=1e-7)

    def test_a_teacher_that_is_the_student_gives_no_gradient(self):
        """KL(p ‖ p_θ) is stationary at p_θ = p, unless the vote is sharpened."""
        (params,) = draw(1, 3)
        _, state = follow([params] * 2, {})
        values, gradient, _ = step(params, state, {})
        np.testing.assert_allclose(values, 0.0, atol=1e-6)
        alone = 4 * first_gradient(objectives.chain(*plain_links()), params)
        np.testing.assert_allclose(gradient, alone, rtol=1e-5, atol=1e-6)
        _, sharpened, _ = step(params, state, {"sharpening": 0.5})
        assert np.max(np.abs(sharpened - alone)) > 0.1

    def test_gradient_is_student_minus_vote(self):
        """By the student's logits it is τ (softmax(z/τ) − p_T); none passes the teachers, not even equal ones."""
        path = draw(2, 4)
        _, state = follow(path[:1], {})
        with_vote = step(path[1], state, {"temperature": 3.0})[1]
        without = step(path[1], state, {"temperature": 3.0, "weight": 0.0})[1]
        features = np.tanh(BATCH["inputs"])
        gap = softmax(features @ path[1] / 3) - softmax(features @ path[0] / 3)
        np.testing.assert_allclose(with_vote - without, features.T @ (3 * gap), rtol=1e-4, atol=1e-5)


def plain_links():
    return objectives.forward(model), objectives.loss(losses.cross_entropy, name="ce"), objectives.mean()


def first_gradient(objective, params):
    state = objective.init(params, BATCH, KEY)
    return jax.jit(jax.grad(lambda p: objective.apply(p, state, BATCH, KEY)[0]))(params)


@pytest.mark.paper(49)
class TestUse:
    def test_temperatures_may_be_traced(self):
        """Slopes in temperature and sharpening are central differences of the definition."""
        path = draw(2)
        _, state = follow(path[:1], {})

        def value(options):
            temperature, sharpening = options
            return jnp.sum(step(path[1], state, {"temperature": temperature, "sharpening": sharpening})[0])

        slope = jax.jit(jax.grad(value))(jnp.array([2.0, 0.5]))
        for i, move in enumerate(1e-5 * np.eye(2)):
            up, down = (expected(path[1], path[:1], *(np.array([2.0, 0.5]) + m)).sum() for m in (move, -move))
            np.testing.assert_allclose(slope[i], (up - down) / 2e-5, rtol=1e-3)

    def test_teachers_bring_their_statistics(self):
        """A model with batch normalization votes in evaluation mode, by the statistics of its time."""
        module = nn.functional(
            nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
        )
        objective = objectives.chain(
            objectives.forward(module.apply, model_state=module.model_state),
            voting_self_distillation(module.apply, interval=1, num_teachers=1),
            objectives.mean(),
        )
        state = objective.init(module.params, BATCH, KEY)
        _, (state, _) = objective.apply(module.params, state, BATCH, KEY)
        moved = {**BATCH, "inputs": BATCH["inputs"] + 3}
        _, (_, aux) = objective.apply(module.params, state, moved, KEY)
        _, stored = module.apply(module.params, module.model_state, BATCH["inputs"], KEY)
        teacher, _ = module.apply(module.params, stored, moved["inputs"], None)
        student, _ = module.apply(module.params, stored, moved["inputs"], KEY)
        want = losses.kd(student, teacher, temperature=2.0)
        assert np.max(want) > 1e-2
        np.testing.assert_allclose(aux["losses"]["self_distillation"], want, rtol=1e-5)

    def test_a_model_that_is_nan_at_zero_is_harmless(self):
        """Before there are teachers neither value nor gradient sees what stands in their place."""

        def unit(params, state, inputs, key):
            return inputs @ (params / jnp.sqrt(jnp.sum(params**2))), state

        objective = objectives.chain(
            objectives.forward(unit), voting_self_distillation(unit, interval=5), objectives.mean()
        )
        (params,) = draw(1)
        state = objective.init(params, BATCH, KEY)
        value, gradient = jax.jit(jax.value_and_grad(lambda p: objective.apply(p, state, BATCH, KEY)[0]))(
            params
        )
        assert value == 0
        np.testing.assert_array_equal(gradient, 0.0)

    def test_second_derivatives_see_the_divergence(self):
        """At teacher = student the gradient vanishes, the Hessian does not."""
        (params,) = draw(1, 3)
        _, state = follow([params], {})

        def only_vote(params):
            objective = objectives.chain(
                objectives.forward(model),
                voting_self_distillation(model, interval=1, num_teachers=1),
                objectives.mean(),
            )
            return objective.apply(params, (state[0], state[2], state[3]), BATCH, KEY)[0]

        hessian = jax.jit(jax.hessian(only_vote))(params).reshape(6, 6)
        assert np.linalg.eigvalsh(hessian)[-1] > 1e-2


@pytest.mark.paper(49)
class TestBadInput:
    @pytest.mark.parametrize("option", ["interval", "num_teachers"])
    def test_counts_below_one(self, option):
        with pytest.raises(ValueError, match=f"{option} must be at least 1"):
            voting_self_distillation(model, **{"interval": 1, option: 0})

    @pytest.mark.parametrize("option", ["temperature", "sharpening"])
    def test_temperatures_that_are_not_positive(self, option):
        with pytest.raises(ValueError, match=f"{option} must lie in"):
            voting_self_distillation(model, interval=1, **{option: 0.0})

    def test_name_is_taken(self):
        with pytest.raises(ValueError, match="a loss 'ce' exists already"):
            chain(interval=1, name="ce").init(draw(1)[0], BATCH, KEY)
