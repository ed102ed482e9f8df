"""PS-KD: targets from the previous visit's predictions, and the gradient that rescales by difficulty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import losses, objectives
from jaxdiv.testing import objectives as contract

N, CLASSES = contract.EXAMPLES, contract.CLASSES
KEY = jax.random.key(1)
INDEX = np.array([3, 0, 6, 1], np.int32)
LABELS = np.array([0, 2, 1, 1], np.int32)


def logits_model(params, state, inputs, key):
    """The logits are the parameters themselves: one row per example of the batch."""
    return params + 0.0 * inputs, state


def chain(**options):
    return objectives.chain(
        objectives.forward(logits_model),
        objectives.ps_kd(N, **options),
        objectives.loss(losses.cross_entropy, name="ce"),
        objectives.mean(),
    )


@functools.partial(jax.jit, static_argnames="lag")
def visit(logits, state, index, alpha, lag=1):
    """One update with its per-example losses and the gradient of their sum."""

    def total(logits):
        batch = {"inputs": jnp.zeros((4, CLASSES)), "targets": LABELS, "index": index}
        value, (new_state, aux) = chain(alpha=alpha, lag=lag).apply(logits, state, batch, KEY)
        return 4 * value, (aux["losses"]["ce"], new_state)

    gradient, (values, new_state) = jax.grad(total, has_aux=True)(logits)
    return values, gradient, new_state


def empty(lag=1):
    batch = {"inputs": np.zeros((4, CLASSES), np.float32), "targets": LABELS, "index": INDEX}
    return chain(lag=lag).init(jnp.zeros((4, CLASSES)), batch, KEY)


def draw(seed, count=2):
    return np.random.default_rng(seed).normal(size=(count, 4, CLASSES)).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(logits, past, alpha):
    """Eqs. (3) and (5) by numpy."""
    targets = (1 - alpha) * np.eye(CLASSES)[LABELS] + alpha * softmax(past)
    return -(targets * np.log(softmax(logits))).sum(-1)


@pytest.mark.paper(76)
class PSKDContract(contract.Schedule, contract.PerExampleMemory):
    link = staticmethod(functools.partial(objectives.ps_kd, N))
    after = (contract.CROSS_ENTROPY, contract.MEAN)
    option = ("alpha", 0.5)
    missing = "ps_kd needs 'logits'"


@pytest.mark.paper(76)
class TestExact:
    @given(st.integers(0, 1000), st.floats(0.0, 1.0))
    def test_loss_is_the_papers(self, seed, alpha):
        """First visit: hard targets; second: eq. (3) with the softmax of the first visit's logits."""
        past, now = draw(seed)
        first, _, state = visit(past, empty(), INDEX, alpha)
        np.testing.assert_allclose(first, expected(past, past, 0.0), rtol=1e-5, atol=1e-6)
        second, _, _ = visit(now, state, INDEX, alpha)
        np.testing.assert_allclose(second, expected(now, past, alpha), rtol=1e-5, atol=1e-6)

    def test_alpha_zero_is_cross_entropy(self):
        past, now = draw(0)
        _, _, state = visit(past, empty(), INDEX, 0.0)
        values, gradient, _ = visit(now, state, INDEX, 0.0)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        np.testing.assert_allclose(values, cross_entropy(now, LABELS), rtol=1e-6)
        np.testing.assert_allclose(gradient, softmax(now) - np.eye(CLASSES)[LABELS], rtol=1e-5, atol=1e-6)

    @given(st.integers(0, 1000), st.floats(0.05, 0.95))
    def test_gradient_is_rescaled_by_difficulty(self, seed, alpha):
        """sum_i |dL/dz_i| is 1 - alpha (1 - P_past,y) / (1 - P_y) times that of CE, where the signs allow."""
        past, now = draw(seed)
        now = past + 0.3 * now
        _, _, state = visit(past, empty(), INDEX, alpha)
        _, gradient, _ = visit(now, state, INDEX, alpha)
        before, after, rows = softmax(past), softmax(now), np.arange(4)
        other = np.arange(CLASSES) != LABELS[:, None]
        holds = np.all((after >= alpha * before) | ~other, axis=1)
        hard = np.abs(after - np.eye(CLASSES)[LABELS]).sum(1)
        ratio = 1 - alpha * (1 - before[rows, LABELS]) / (1 - after[rows, LABELS])
        got = np.abs(gradient).sum(1) / hard
        np.testing.assert_allclose(got[holds], ratio[holds], rtol=1e-4, atol=1e-5)
        # Elsewhere the sum of absolute values is larger than the signed one.
        assert np.all(got[~holds] > ratio[~holds] - 1e-5)

    def test_improved_examples_weigh_less_than_regressed_ones(self):
        """P_y from .5 to .7, .5, .4 at alpha = .5 leaves .167, .5, .583 of the gradient."""
        before = np.full((4, CLASSES), 0.25)
        after = before.copy()
        for row, p in enumerate((0.7, 0.5, 0.4, 0.5)):
            before[row, LABELS[row]] = 0.5
            after[row] = (1 - p) / 2
            after[row, LABELS[row]] = p
        _, _, state = visit(np.log(before).astype(np.float32), empty(), INDEX, 0.5)
        _, gradient, _ = visit(np.log(after).astype(np.float32), state, INDEX, 0.5)
        hard = np.abs(after - np.eye(CLASSES)[LABELS]).sum(1)
        ratios = np.abs(gradient).sum(1) / hard
        np.testing.assert_allclose(ratios[:3], [1 / 6, 0.5, 7 / 12], rtol=1e-5)


@pytest.mark.paper(76)
class TestMemory:
    def test_prediction_is_the_previous_visits_of_that_example(self):
        """Each example finds its own past, wherever in the batch it stands and whatever came between."""
        first, second, third = draw(1, 3)
        _, _, state = visit(first, empty(), INDEX, 0.5)
        others = np.array([2, 4, 5, 0], np.int32)
        _, _, state = visit(second, state, others, 0.5)  # 0 is visited again, 3, 6 and 1 are not
        values, _, _ = visit(third, state, INDEX[::-1].copy(), 0.5)
        past = first[::-1].copy()
        past[2] = second[3]
        np.testing.assert_allclose(values, expected(third, past, 0.5), rtol=1e-5)

    def test_lag_counts_visits(self):
        """With lag 2 the first two visits have hard targets, the third looks back to the first."""
        logits, state = draw(2, 4), empty(2)
        for count, past in enumerate((None, None, 0, 1)):
            values, _, state = visit(logits[count], state, INDEX, 0.5, lag=2)
            target = logits[count] if past is None else logits[past]
            alpha = 0.0 if past is None else 0.5
            np.testing.assert_allclose(values, expected(logits[count], target, alpha), rtol=1e-5)

    def test_memory_holds_probabilities_of_the_current_logits(self):
        """The table's rows are the softmax of what was just computed; unvisited rows are untouched."""
        (logits,) = draw(3, 1)
        _, _, state = visit(logits, empty(), INDEX, 0.5)
        table, visits = state[1].memory
        np.testing.assert_allclose(table[INDEX, 0], softmax(logits), rtol=1e-5)
        np.testing.assert_array_equal(visits, np.isin(np.arange(N), INDEX))
        np.testing.assert_array_equal(np.delete(table, INDEX, axis=0), 0.0)
        assert state[1].updates == 1

    def test_no_gradient_passes_the_past(self):
        """The past enters as a constant: the gradient is P - y_t."""
        past, now = draw(4)
        _, _, state = visit(past, empty(), INDEX, 0.5)
        _, gradient, _ = visit(now, state, INDEX, 0.5)
        targets = 0.5 * np.eye(CLASSES)[LABELS] + 0.5 * softmax(past)
        np.testing.assert_allclose(gradient, softmax(now) - targets, rtol=1e-4, atol=1e-6)

    def test_memory_may_be_float16(self):
        past, now = draw(5)
        link = objectives.ps_kd(N, alpha=0.5, dtype=jnp.float16)
        record = objectives.from_batch({"inputs": past, "targets": LABELS, "index": INDEX})
        record = record._replace(outputs={"logits": past})
        state = link.init(None, record, None)
        assert state.memory.table.dtype == jnp.float16
        _, state = link.update(None, state, record, KEY)
        record, _ = link.update(None, state, record._replace(outputs={"logits": now}), KEY)
        assert record.targets.dtype == jnp.float32
        np.testing.assert_allclose(
            record.targets, 0.5 * np.eye(CLASSES)[LABELS] + 0.5 * softmax(past), atol=1e-3
        )

    def test_evaluation_has_hard_targets_and_needs_no_index(self):
        (logits,) = draw(6, 1)
        objective = chain(alpha=0.5)
        batch = {"inputs": np.zeros((4, CLASSES), np.float32), "targets": LABELS}
        value, _ = objective.apply(logits, empty(), batch, None)
        np.testing.assert_allclose(value, expected(logits, logits, 0.0).mean(), rtol=1e-5)


@pytest.mark.paper(76)
class TestBadInput:
    @pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
    def test_alpha_outside_the_unit_interval(self, alpha):
        with pytest.raises(ValueError, match="alpha must lie in"):
            objectives.ps_kd(N, alpha=alpha)

    @pytest.mark.parametrize(("samples", "lag", "name"), [(0, 1, "num_samples"), (4, 0, "lag")])
    def test_counts_below_one(self, samples, lag, name):
        batch = {"inputs": np.zeros((4, CLASSES), np.float32), "targets": LABELS, "index": INDEX}
        objective = objectives.chain(objectives.forward(logits_model), objectives.ps_kd(samples, lag=lag))
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            objective.init(jnp.zeros((4, CLASSES)), batch, KEY)

    def test_targets_of_another_width(self):
        batch = {"inputs": np.zeros((4, CLASSES), np.float32), "targets": np.ones((4, 2), np.float32)}
        with pytest.raises(ValueError, match="ps_kd: distributions must have shape"):
            chain().init(jnp.zeros((4, CLASSES)), batch, KEY)
