"""Links one by one: the contract, and what each computes, against numpy, optax and identities."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import losses, objectives
from jaxdiv.testing import objectives as contract

CE, MEAN, FORWARD = contract.CROSS_ENTROPY, contract.MEAN, contract.FORWARD
KEY = jax.random.key(1)


def counting_model(params, state, inputs, key):
    """Dropout and a count, so that key and model state matter."""
    features = jnp.tanh(inputs @ params["w"])
    if key is not None:
        features = features * jax.random.randint(key, features.shape[1:], 0, 2, jnp.int32)
        state = state + 1
    return features @ params["v"], state


def record_of(**batch):
    return objectives.from_batch({name: jnp.asarray(entry) for name, entry in batch.items()})


class ForwardContract(contract.Contract):
    link = staticmethod(lambda: objectives.forward(counting_model, model_state=0))
    before, after = (), (CE, MEAN)


class LossContract(contract.Schedule):
    link = staticmethod(functools.partial(objectives.loss, losses.cross_entropy))
    after = (MEAN,)
    option = ("weight", 0.5)
    missing = r"link loss\('cross_entropy'\) needs 'logits'.*objectives.forward"


class BatchLossContract(contract.Schedule):
    link = staticmethod(
        functools.partial(
            objectives.batch_loss,
            lambda z, y, weights: jnp.sum(weights * jnp.sum((z - y) ** 2, -1)) / jnp.sum(weights),
            name="squares",
        )
    )
    after = (CE, MEAN)
    targets = "distributions"
    option = ("weight", 0.5)
    missing = r"link batch_loss\('squares'\) needs 'logits'"


class FeatureRegularizerContract(contract.Schedule):
    link = staticmethod(
        functools.partial(objectives.feature_regularizer, lambda f: jnp.sum(f**2, -1), name="energy")
    )
    after = (MEAN,)
    option = ("weight", 0.5)
    missing = r"link feature_regularizer\('energy'\) needs 'features'"


class ParameterRegularizerContract(contract.Schedule):
    link = staticmethod(
        functools.partial(
            objectives.parameter_regularizer,
            functools.partial(optax.tree.norm, squared=True),
            name="ridge",
            where=lambda params: params["w"],
        )
    )
    after = (CE, MEAN)
    option = ("weight", 0.5)


class MetricContract(contract.Contract):
    link = staticmethod(lambda: objectives.metric(lambda z, y: z.argmax(-1) == y, name="accuracy"))
    after = (CE, MEAN)
    missing = r"link metric\('accuracy'\) needs 'logits'"


class MixupContract(contract.NumericOption):
    link = staticmethod(functools.partial(objectives.mixup, num_classes=contract.CLASSES))
    before, after = (), (FORWARD, CE, MEAN)
    option = ("alpha", 0.5)
    draws = True


class SmoothLabelsContract(contract.NumericOption):
    link = staticmethod(objectives.smooth_labels)
    after = (CE, MEAN)
    option = ("alpha", 0.2)
    missing = "smooth_labels needs 'logits'"


class TeacherContract(contract.Contract):
    link = staticmethod(lambda: objectives.teacher(contract.model, contract.draw_params(5), (), name="other"))
    after = (objectives.loss(lambda z, t: jnp.sum((z - t) ** 2, -1), name="gap", target="other"), MEAN)


class ReweightContract(contract.Contract):
    link = staticmethod(lambda: objectives.reweight(lambda record: (1 - jnp.exp(-record.losses["ce"])) ** 2))
    before, after = (FORWARD, CE), (MEAN,)
    exact_gradient = False  # none passes the factors


class MeanContract(contract.Contract):
    link = staticmethod(objectives.mean)
    before = (FORWARD, CE)
    missing = "link mean needs per-example losses.*objectives.loss"


class CVaRContract(contract.NumericOption):
    link = staticmethod(objectives.cvar)
    before = (FORWARD, CE)
    option = ("alpha", 0.6)
    missing = "link cvar needs per-example losses"


class KLDROContract(contract.NumericOption):
    link = staticmethod(objectives.kl_dro)
    before = (FORWARD, CE)
    option = ("temperature", 0.6)
    missing = "link kl_dro needs per-example losses"


class TestForward:
    def test_array_is_called_logits_and_a_mapping_keeps_its_names(self):
        record = record_of(inputs=np.eye(2, 3, dtype=np.float32))
        array, _ = objectives.forward(lambda p, s, x, k: (x * p, s)).update(2.0, (), record, None)
        named, _ = objectives.forward(lambda p, s, x, k: ({"a": x, "b": p}, s)).update(2.0, (), array, None)
        assert list(array.outputs) == ["logits"]
        assert list(named.outputs) == ["logits", "a", "b"]
        np.testing.assert_array_equal(array.outputs["logits"], 2 * np.eye(2, 3))

    def test_module_trains_and_evaluates(self):
        """Batch statistics are the batch's in training, where they advance, and stored in evaluation."""

        class Model(nnx.Module):
            def __init__(self, rngs):
                self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=rngs)
                self.dropout = nnx.Dropout(0.5, rngs=rngs)

            def __call__(self, x):
                return {"normal": self.norm(x), "dropped": self.dropout(x)}

        module = Model(nnx.Rngs(0))
        link = objectives.forward(module)
        x = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
        record, params = record_of(inputs=x), nnx.state(module, nnx.Param)
        state = link.init(params, record, KEY)
        update = jax.jit(lambda state, key: link.update(params, state, record, key))
        trained, advanced = update(state, KEY)
        np.testing.assert_allclose(trained.outputs["normal"], [[-1, -1], [1, 1]], atol=1e-4)
        dropped = trained.outputs["dropped"]
        assert np.all((dropped == 0) | (dropped == 2 * x))
        stored = nnx.to_pure_dict(advanced)["norm"]
        np.testing.assert_allclose(stored["mean"], 0.5 * x.mean(0))
        np.testing.assert_allclose(stored["var"], 0.5 + 0.5 * x.var(0))
        evaluated, same = jax.jit(lambda state: link.update(params, state, record, None))(advanced)
        np.testing.assert_array_equal(evaluated.outputs["dropped"], x)
        normal = (x - stored["mean"]) / np.sqrt(stored["var"] + 1e-5)
        np.testing.assert_allclose(evaluated.outputs["normal"], normal, rtol=1e-5)
        chex.assert_trees_all_equal(same, advanced)

    def test_module_brings_its_own_state(self):
        with pytest.raises(ValueError, match="model_state must not be given for an nnx module"):
            objectives.forward(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), model_state=jnp.ones(2))

    def test_first_state_is_a_copy(self):
        """The training state may be donated."""
        own = jnp.ones(2)
        state = objectives.forward(counting_model, model_state=own).init(None, None, None)
        assert state is not own
        assert state.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()


ONES = np.ones(8, np.float32)
MIXUP = objectives.mixup(0.5, num_classes=8)
mixed_record = jax.jit(lambda batch, key: MIXUP.update(None, (), objectives.from_batch(batch), key)[0])


class TestMixup:
    @given(st.integers(0, 100))
    def test_pairs_and_lambda_are_shared_by_inputs_targets_and_weights(self, seed):
        """Of unit vectors the mixture shows lam and the permutation, which targets and weights share."""
        weights = np.random.default_rng(seed).uniform(0.5, 2, 8).astype(np.float32)
        batch = {"inputs": np.eye(8, dtype=np.float32), "targets": np.arange(8), "weights": weights}
        record = mixed_record(batch, jax.random.key(seed))
        mixed = np.asarray(record.inputs)
        np.testing.assert_allclose(mixed.sum(0), 1, rtol=1e-5)  # a permutation
        np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-5)
        np.testing.assert_array_equal(record.targets, mixed)
        np.testing.assert_allclose(record.weights, mixed @ weights, rtol=1e-5)
        lams = np.unique(np.diag(mixed)[np.diag(mixed) < 1].round(5))
        assert len(lams) <= 1  # one lambda per batch

    def test_lambda_follows_the_beta_distribution(self):
        """Beta(1/2, 1/2) by the Kolmogorov-Smirnov test over the keys in which a pair was formed."""
        batch = {"inputs": np.eye(8, dtype=np.float32), "targets": np.arange(8), "weights": ONES}
        keys = jax.random.split(KEY, 500)
        mixed = np.asarray(jax.lax.map(lambda key: mixed_record(batch, key).inputs, keys))
        own = np.einsum("kii->ki", mixed)
        paired = own < 1
        lams = np.where(paired, own, 0).max(1)[paired.any(1)]
        assert scipy.stats.kstest(lams, scipy.stats.beta(0.5, 0.5).cdf).pvalue > 0.01

    def test_padding_takes_no_part(self):
        weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
        batch = {"inputs": np.eye(8, dtype=np.float32), "targets": np.arange(8), "weights": weights}
        for seed in range(5):
            record = mixed_record(batch, jax.random.key(seed))
            np.testing.assert_array_equal(record.weights[5:], 0)
            np.testing.assert_array_equal(record.inputs[:5, 5:], 0)
            np.testing.assert_allclose(record.weights[:5], 1, rtol=1e-6)

    def test_evaluation_mixes_nothing(self):
        record = record_of(inputs=np.eye(3, dtype=np.float32), targets=np.array([0, 2, 3]))
        got, _ = objectives.mixup(num_classes=3).update(None, (), record, None)
        chex.assert_trees_all_equal(got.inputs, record.inputs)
        np.testing.assert_array_equal(got.targets[:2], np.eye(3)[[0, 2]])
        assert np.all(np.isnan(got.targets[2]))  # a label out of range spoils its row

    def test_integers_cannot_be_mixed(self):
        record = record_of(inputs=np.eye(2, dtype=np.float32), targets=np.array([0, 1]))
        with pytest.raises(ValueError, match=r"link mixup .*num_classes="):
            objectives.mixup().update(None, (), record, KEY)
        with pytest.raises(ValueError, match="link mixup: inputs must be floating"):
            objectives.mixup().update(None, (), record_of(inputs=np.eye(2, dtype=np.int32)), KEY)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan])
    def test_alpha_must_be_positive(self, alpha):
        with pytest.raises(ValueError, match="alpha must lie in"):
            objectives.mixup(alpha)


class TestSmoothLabels:
    @given(st.floats(0.0, 1.0), st.lists(st.integers(0, 3), min_size=4, max_size=4))
    def test_is_optax_on_labels_and_on_distributions(self, alpha, labels):
        one_hot = np.eye(4, dtype=np.float32)[labels]
        for targets in (np.array(labels), one_hot):
            record = record_of(inputs=one_hot, targets=targets)._replace(
                outputs={"logits": jnp.zeros((4, 4))}
            )
            record, _ = objectives.smooth_labels(alpha).update(None, (), record, None)
            np.testing.assert_allclose(record.targets, optax.smooth_labels(one_hot, alpha), rtol=1e-6)

    def test_invalid_label_spoils_its_row_alone(self):
        record = record_of(inputs=np.eye(2), targets=np.array([1, 4]))
        record = record._replace(outputs={"logits": jnp.zeros((2, 4))})
        targets = objectives.smooth_labels(0.4).update(None, (), record, None)[0].targets
        np.testing.assert_allclose(targets[0], [0.1, 0.7, 0.1, 0.1], rtol=1e-6)
        assert np.all(np.isnan(targets[1]))

    @pytest.mark.parametrize(
        ("targets", "logits", "message"),
        [
            (np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), "distributions must have shape"),
            (np.zeros((2, 1), np.int32), np.zeros((2, 4), np.float32), "labels must have shape"),
            (np.zeros(2, np.int32), np.zeros((2, 4), np.int32), "logits must be floating"),
            (np.zeros((2, 4), bool), np.zeros((2, 4), np.float32), "targets must be floating"),
            ({"a": np.zeros(2, np.int32)}, np.zeros((2, 4), np.float32), "array of labels or distributions"),
        ],
    )
    def test_bad_targets_and_logits(self, targets, logits, message):
        record = objectives.from_batch({"inputs": np.eye(2), "targets": targets})
        with pytest.raises(ValueError, match=f"link smooth_labels.*{message}"):
            objectives.smooth_labels().update(None, (), record._replace(outputs={"logits": logits}), None)

    @pytest.mark.parametrize("alpha", [-0.1, 1.1])
    def test_alpha_outside_the_unit_interval(self, alpha):
        with pytest.raises(ValueError, match="alpha must lie in"):
            objectives.smooth_labels(alpha)


class TestTeacher:
    def test_output_of_a_stored_copy_without_gradient(self):
        """It is the teacher's output on the record's inputs, and nothing is learned through it."""
        own = jnp.ones((3, 2))
        link = objectives.teacher(lambda p, s, x, k: ({"logits": x @ p, "other": x}, s), own)
        state = link.init(None, None, None)
        assert state.params.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()
        x = np.arange(6, dtype=np.float32).reshape(2, 3)

        def total(state, x):
            return link.update(None, state, record_of(inputs=x), KEY)[0].extras["teacher"].sum()

        np.testing.assert_allclose(total(state, x), 2 * x.sum())
        gradients = jax.grad(total, (0, 1))(state, x)
        chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, (state, x)))

    def test_runs_in_evaluation_mode(self):
        def apply(params, state, inputs, key):
            assert key is None
            return inputs * state, state

        link = objectives.teacher(apply, (), 3.0, name="t")
        record = record_of(inputs=np.ones((2, 1), np.float32))
        record, state = link.update(None, link.init(None, None, None), record, KEY)
        np.testing.assert_array_equal(record.extras["t"], 3.0)
        np.testing.assert_array_equal(state.model_state, 3.0)

    @pytest.mark.parametrize("name", ["targets", "inputs", "logits", "mask"])
    def test_name_must_be_new(self, name):
        record = record_of(inputs=np.ones((2, 1)), mask=np.ones(2))._replace(outputs={"logits": np.ones(2)})
        link = objectives.teacher(lambda p, s, x, k: (x, s), (), name=name)
        with pytest.raises(ValueError, match=rf"link teacher\('{name}'\).*exists already"):
            link.update(None, link.init(None, None, None), record, None)

    def test_unknown_output(self):
        link = objectives.teacher(lambda p, s, x, k: ({"a": x}, s), ())
        with pytest.raises(ValueError, match=r"needs the output 'logits'; the teacher has \['a'\]"):
            link.update(None, link.init(None, None, None), record_of(inputs=np.ones((2, 1))), None)


class TestLosses:
    RECORD = record_of(inputs=np.ones((2, 1), np.float32), targets=np.ones(2, np.float32))._replace(
        outputs={"logits": jnp.array([3.0, 5.0])}
    )

    @staticmethod
    def gap(z, y):
        return z - y

    def run(self, link):
        return link.update(None, jnp.int32(0), self.RECORD, None)[0]

    def test_weighs_and_names(self):
        np.testing.assert_array_equal(self.run(objectives.loss(self.gap)).losses["gap"], [2, 4])
        record = self.run(objectives.loss(self.gap, name="half", weight=0.5, target="logits"))
        np.testing.assert_array_equal(record.losses["half"], [0, 0])
        record = self.run(objectives.batch_loss(lambda z, y, weights: jnp.sum(weights * z * y), name="dot"))
        assert float(record.terms["dot"]) == 8

    def test_lambdas_and_partials_need_a_name(self):
        for factory in (
            objectives.loss,
            objectives.batch_loss,
            objectives.feature_regularizer,
            objectives.parameter_regularizer,
        ):
            for fn in (lambda x: x, functools.partial(self.gap, 1)):
                with pytest.raises(ValueError, match="needs name="):
                    factory(fn)

    def test_shapes_and_dtypes_are_checked(self):
        with pytest.raises(ValueError, match=r"loss\('a'\) must give one value per example.*batch_loss"):
            self.run(objectives.loss(lambda z, y: z.sum(), name="a"))
        with pytest.raises(ValueError, match=r"batch_loss\('a'\) must give a scalar"):
            self.run(objectives.batch_loss(lambda z, y, weights: z, name="a"))
        with pytest.raises(ValueError, match=r"loss\('a'\): the loss must be floating"):
            self.run(objectives.loss(lambda z, y: jnp.ones(2, int), name="a"))
        with pytest.raises(ValueError, match=r"metric\('a'\) must give a scalar or one value per example"):
            self.run(objectives.metric(lambda z, y: jnp.ones(3), name="a"))
        with pytest.raises(ValueError, match="reweight needs one factor per example"):
            self.run(objectives.reweight(lambda record: jnp.ones(3)))

    def test_parameter_regularizer_looks_at_its_part(self):
        link = objectives.parameter_regularizer(jnp.sum, weight=2.0, where=lambda params: params["b"])
        record, _ = link.update({"a": jnp.ones(3), "b": jnp.arange(3.0)}, jnp.int32(0), self.RECORD, None)
        assert float(record.terms["sum"]) == 6

    def test_metric_averages_under_the_weights_without_gradient(self):
        record = self.RECORD._replace(weights=jnp.array([1.0, 3.0]))

        def reported(z):
            link = objectives.metric(self.gap, name="gap")
            outputs = {"logits": z}
            return link.update(None, (), record._replace(outputs=outputs), None)[0].extras["metrics"]["gap"]

        value, slope = jax.value_and_grad(reported)(jnp.array([3.0, 5.0]))
        assert float(value) == 3.5
        np.testing.assert_array_equal(slope, 0)


class TestReweight:
    def test_focal_weights(self):
        """(1 - p)^2 of the cross entropy, Lin et al., eq. (4), as constants."""
        p = np.array([0.9, 0.5, 0.2, 0.7], np.float32)
        focal = objectives.reweight(lambda record: (1 - jnp.exp(-record.losses["ce"])) ** 2)
        record = record_of(inputs=p, weights=np.array([1, 2, 1, 0], np.float32))

        def weights(ce):
            return focal.update(None, (), record._replace(losses={"ce": ce}), None)[0].weights

        got, pull = jax.vjp(weights, -jnp.log(p))
        np.testing.assert_allclose(got, [0.01, 0.5, 0.64, 0.0], rtol=1e-5)
        np.testing.assert_array_equal(pull(jnp.ones(4))[0], 0)

    def test_factor_of_padding_may_be_nan(self):
        record = record_of(inputs=np.ones(2), weights=np.array([1, 0], np.float32))
        link = objectives.reweight(lambda record: jnp.array([2.0, jnp.nan]))
        np.testing.assert_array_equal(link.update(None, (), record, None)[0].weights, [2, 0])
