"""SAF and MESA: the trajectory loss by hand, its gradient, what it looks back to."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses, objectives, oracles, train
from jaxdiv.objectives.mesa import mesa
from jaxdiv.objectives.saf import saf
from jaxdiv.testing import objectives as contract

N, CLASSES = contract.EXAMPLES, contract.CLASSES
KEY = jax.random.key(1)
INDEX = np.array([3, 0, 6, 1], np.int32)
LABELS = np.array([0, 2, 1, 1], np.int32)
T = 5.0


def logits_model(params, state, inputs, key):
    """The logits are the parameters themselves: one row per example of the batch."""
    return params + 0.0 * inputs, state


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def trajectory(now, past, weight=0.3):
    """The loss by numpy."""
    p, q = softmax(np.float64(past) / T), softmax(np.float64(now) / T)
    return weight * T**2 * (p * np.log(p / q)).sum(-1)


def draw(seed, count=2):
    return 3 * np.random.default_rng(seed).normal(size=(count, 4, CLASSES)).astype(np.float32)


def batch(index=INDEX):
    return {"inputs": np.zeros((4, CLASSES), np.float32), "targets": LABELS, "index": index}


def chain(link):
    return objectives.chain(
        objectives.forward(logits_model),
        objectives.loss(losses.cross_entropy, name="ce"),
        link,
        objectives.mean(),
    )


@functools.partial(jax.jit, static_argnums=0)
def visit(objective, logits, state, index=INDEX):
    """One update: per-example losses, four times the gradient, the new state."""

    def total(logits):
        value, (new_state, aux) = objective.apply(logits, state, batch(index), KEY)
        return 4 * value, (aux["losses"], new_state)

    gradient, (values, new_state) = jax.grad(total, has_aux=True)(logits)
    return values, gradient, new_state


SAF, LAGGED, MESA = chain(saf(N, lag=1)), chain(saf(N, lag=2)), chain(mesa(logits_model, decay=0.75))


def first(objective, logits=None):
    return objective.init(np.zeros((4, CLASSES), np.float32) if logits is None else logits, batch(), KEY)


@pytest.mark.paper(26)
class SAFContract(contract.Schedule, contract.PerExampleMemory):
    link = staticmethod(functools.partial(saf, N, lag=1))
    after = (contract.MEAN,)
    option = ("weight", 0.5)
    missing = "saf needs 'logits'"

    def test_schedule_counts_updates(self):
        """As the suite has it, from a state in which the examples have a past."""
        params, state = self.visited

        def weight(count):
            return 0.5 * (1 - 0.3 * count)

        scheduled, own = self.objective(weight=weight), self.batch()
        for count in range(1, 3):
            constant = self.objective(weight=np.float32(weight(count)))
            expected, _ = constant.apply(params, state, own, KEY)
            got, (state, _) = scheduled.apply(params, state, own, KEY)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.paper(26)
class MESAContract(contract.Schedule):
    link = staticmethod(functools.partial(mesa, contract.model, decay=0.0))
    after = (contract.CROSS_ENTROPY, contract.MEAN)
    option = ("weight", 0.5)
    missing = "mesa needs 'logits'"

    def test_schedule_counts_updates(self):
        """As the suite has it, from a state whose average is not the present model."""
        params, state = self.visited
        params = contract.draw_params(2)

        def weight(count):
            return 0.5 * (1 - 0.3 * count)

        scheduled, own = self.objective(weight=weight), self.batch()
        for count in range(1, 3):
            constant = self.objective(weight=np.float32(weight(count)))
            expected, _ = constant.apply(params, state, own, KEY)
            got, (state, _) = scheduled.apply(params, state, own, KEY)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.paper(26)
class TestSAF:
    def test_loss_and_gradient_are_the_papers(self):
        """First visit 0; second λ T² KL with gradient λ T (softmax(z/T) - softmax(z_past/T))."""
        past, now = draw(0)
        values, _, state = visit(SAF, past, first(SAF))
        np.testing.assert_array_equal(values["saf"], 0.0)
        values, gradient, _ = visit(SAF, now, state)
        np.testing.assert_allclose(values["saf"], trajectory(now, past), rtol=1e-4)
        hard = softmax(now) - np.eye(CLASSES)[LABELS]
        extra = 0.3 * T * (softmax(now / T) - softmax(past / T))
        np.testing.assert_allclose(gradient, hard + extra, rtol=1e-4, atol=1e-6)

    def test_nothing_changed_costs_nothing(self):
        """z = z_past: value and gradient of the extra loss are 0."""
        (now,) = draw(1, 1)
        _, _, state = visit(SAF, now, first(SAF))
        values, gradient, _ = visit(SAF, now, state)
        np.testing.assert_allclose(values["saf"], 0.0, atol=1e-6)
        np.testing.assert_allclose(gradient, softmax(now) - np.eye(CLASSES)[LABELS], atol=1e-6)

    def test_lag_counts_visits_of_the_example(self):
        """With lag 2 the third visit looks back to the first, wherever the example stands in the batch."""
        one, two, three = draw(2, 3)
        _, _, state = visit(LAGGED, one, first(LAGGED))
        values, _, state = visit(LAGGED, two, state, INDEX[::-1].copy())
        np.testing.assert_array_equal(values["saf"], 0.0)
        values, _, _ = visit(LAGGED, three, state)
        np.testing.assert_allclose(values["saf"], trajectory(three, one), rtol=1e-4)

    def test_memory_may_be_float16(self):
        past, now = draw(3)
        halved = chain(saf(N, lag=1, dtype=jnp.float16))
        _, _, state = visit(halved, past, first(halved))
        assert state[2].memory.table.dtype == jnp.float16
        values, _, _ = visit(halved, now, state)
        assert values["saf"].dtype == jnp.float32
        np.testing.assert_allclose(values["saf"], trajectory(now, past), rtol=5e-2, atol=1e-3)

    def test_evaluation_adds_nothing_and_needs_no_index(self):
        (now,) = draw(4, 1)
        held_out = {name: entry for name, entry in batch().items() if name != "index"}
        value, (_, aux) = SAF.apply(now, first(SAF), held_out, None)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(now, LABELS)
        np.testing.assert_allclose(value, cross_entropy.mean(), rtol=1e-6)
        np.testing.assert_array_equal(aux["losses"]["saf"], 0.0)

    def test_needs_as_many_gradients_as_sgd_and_visits_once_under_sam(self):
        """It is part of the objective: under any oracle the memory advances once a step."""
        init, step = train.make_step(SAF, oracles.sam(oracles.plain(), rho=0.1), optax.sgd(0.1))
        (start,) = draw(5, 1)
        state = init(start, batch(), KEY)
        state, _ = jax.jit(step)(state, batch())
        np.testing.assert_array_equal(state.loss_state[2].memory.visits, np.isin(np.arange(N), INDEX))
        np.testing.assert_allclose(state.loss_state[2].memory.table[INDEX, 0], start, rtol=1e-6)


@pytest.mark.paper(26)
class TestMESA:
    def test_teacher_is_the_average_of_what_came_before(self):
        """Decay 3/4: z_0, z_0 again (the average of z_0 alone), then 3/4 z_0 + 1/4 z_1."""
        zero, one, two = draw(6, 3)
        values, _, state = visit(MESA, zero, first(MESA, zero))
        np.testing.assert_allclose(values["mesa"], 0.0, atol=1e-6)
        values, _, state = visit(MESA, one, state)
        np.testing.assert_allclose(values["mesa"], trajectory(one, zero, 0.8), rtol=1e-4)
        values, gradient, state = visit(MESA, two, state)
        average = 0.75 * zero + 0.25 * one
        np.testing.assert_allclose(values["mesa"], trajectory(two, average, 0.8), rtol=1e-4)
        hard = softmax(two) - np.eye(CLASSES)[LABELS]
        extra = 0.8 * T * (softmax(two / T) - softmax(average / T))
        np.testing.assert_allclose(gradient, hard + extra, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state[2].average, 0.75 * average + 0.25 * two, rtol=1e-6)

    def test_average_of_half_precision_is_kept_in_float32(self):
        """A thousandth of a step is lost in bfloat16, not in the average."""
        link = mesa(logits_model, decay=0.999)
        ones = jnp.ones((4, CLASSES), jnp.bfloat16)
        record = objectives.from_batch({"inputs": ones})._replace(outputs={"logits": ones})
        _, state = link.update(2 * ones, link.init(ones, record, KEY), record, KEY)
        chex.assert_type(state.average, jnp.float32)
        np.testing.assert_allclose(state.average, 1.001, rtol=1e-6)


@pytest.mark.paper(26)
class TestErrors:
    @pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf])
    def test_temperature(self, temperature):
        for build in (functools.partial(saf, N), functools.partial(mesa, logits_model)):
            with pytest.raises(ValueError, match="temperature must lie in"):
                build(temperature=temperature)

    def test_decay(self):
        with pytest.raises(ValueError, match="decay must lie in"):
            mesa(logits_model, decay=1.5)

    @pytest.mark.parametrize("link", [saf(N, name="ce"), mesa(logits_model, name="ce")])
    def test_name_is_taken(self, link):
        with pytest.raises(ValueError, match="a loss 'ce' exists already"):
            first(chain(link))
