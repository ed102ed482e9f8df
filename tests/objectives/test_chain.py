"""Chains: what passes from link to link, what is checked on the way, and many links at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import losses, objectives
from jaxdiv.testing import objectives as contract

CE, MEAN, FORWARD = contract.CROSS_ENTROPY, contract.MEAN, contract.FORWARD
KEY = jax.random.key(1)


def apply(*links, params=None, batch=None, key=KEY):
    params = contract.draw_params() if params is None else params
    batch = contract.draw_batch() if batch is None else batch
    objective = objectives.chain(*links)
    state = objective.init(params, batch, KEY)
    return objective.apply(params, state, batch, key)


def repeat():
    """A link that changes B: every row comes twice, as after a replay."""

    def update(params, record, key):
        twice = jax.tree.map(
            lambda x: jnp.concatenate([x, x]), (record.inputs, record.targets, record.weights, record.index)
        )
        inputs, targets, weights, index = twice
        return record._replace(inputs=inputs, targets=targets, weights=weights, index=index)

    return objectives.stateless(update)


class TestChain(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_terms_bear_names_and_sum_to_the_value(self):
        params, batch = contract.draw_params(), contract.draw_batch()
        objective = objectives.chain(
            FORWARD,
            CE,
            objectives.loss(losses.brier, name="brier", weight=0.5),
            MEAN,
            objectives.parameter_regularizer(optax.tree.norm, name="norm", weight=0.1),
        )
        value, (_, aux) = self.variant(objective.apply)(
            params, objective.init(params, batch, KEY), batch, KEY
        )
        assert set(aux["terms"]) == {"ce", "brier", "norm"}
        assert set(aux["losses"]) == {"ce", "brier"}
        logits = contract.model(params, (), batch["inputs"], None)[0]["logits"]
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        np.testing.assert_allclose(aux["terms"]["ce"], np.average(ce, weights=batch["weights"]), rtol=1e-5)
        np.testing.assert_allclose(aux["terms"]["norm"], 0.1 * optax.tree.norm(params), rtol=1e-6)
        np.testing.assert_allclose(value, sum(aux["terms"].values()), rtol=1e-6)

    def test_terms_are_differentiable_one_by_one(self):
        """The terms' gradients sum to the value's."""
        params, batch = contract.draw_params(), contract.draw_batch()
        objective = objectives.chain(FORWARD, CE, objectives.loss(losses.brier, name="brier"), MEAN)
        state = objective.init(params, batch, KEY)

        @jax.jit
        def gradients(params):
            def terms(params):
                value, (_, aux) = objective.apply(params, state, batch, KEY)
                return {"value": value, **aux["terms"]}

            return jax.jacrev(terms)(params)

        each = gradients(params)
        summed = jax.tree.map(jnp.add, each["ce"], each["brier"])
        chex.assert_trees_all_close(summed, each["value"], rtol=1e-5, atol=1e-6)
        assert np.any(each["ce"]["w"] != each["brier"]["w"])

    def test_one_forward_for_several_losses(self):
        calls = []

        def counted(params, state, inputs, key):
            calls.append(None)
            return contract.model(params, state, inputs, key)

        objective = objectives.chain(
            objectives.forward(counted),
            CE,
            objectives.loss(losses.brier, name="brier"),
            objectives.metric(lambda z, y: z.argmax(-1) == y, name="accuracy"),
            MEAN,
        )
        params, batch = contract.draw_params(), contract.draw_batch()
        state = objective.init(params, batch, KEY)
        calls.clear()
        jax.eval_shape(objective.apply, params, state, batch, KEY)
        assert len(calls) == 1

    def test_many_links_train_in_one_scan_traced_once(self):
        """Seven kinds of links under jit, grad and scan; their state advances and the value falls."""
        objective = objectives.chain(
            objectives.mixup(0.2, num_classes=3),
            FORWARD,
            objectives.ps_kd(contract.EXAMPLES, alpha=optax.linear_schedule(0.0, 0.8, 60)),
            objectives.smooth_labels(0.01),
            objectives.teacher(contract.model, contract.draw_params(3)),
            CE,
            objectives.loss(
                lambda z, t: jnp.sum((z - t) ** 2, -1), name="gap", weight=0.01, target="teacher"
            ),
            objectives.feature_regularizer(lambda f: jnp.sum(f**2, -1), name="energy", weight=1e-3),
            objectives.reweight(lambda record: 1 + record.losses["ce"]),
            objectives.cvar(0.8),
            objectives.parameter_regularizer(optax.tree.norm, name="norm", weight=1e-3),
            objectives.metric(lambda z, y: z.argmax(-1) == y.argmax(-1), name="accuracy"),
        )
        batch = {**contract.draw_batch(), "index": np.array([0, 1, 2, 2], np.int32)}
        params = jax.tree.map(jnp.asarray, contract.draw_params())

        @jax.jit
        @chex.assert_max_traces(n=1)
        def train(params, state, key):
            def body(carry, key):
                params, state = carry
                (value, (state, aux)), gradient = jax.value_and_grad(objective.apply, has_aux=True)(
                    params, state, batch, key
                )
                params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
                return (params, state), (value, aux["terms"])

            return jax.lax.scan(body, (params, state), jax.random.split(key, 30))

        chex.clear_trace_counter()
        state = objective.init(params, batch, KEY)
        (params, state), (values, terms) = train(params, state, jax.random.key(2))
        (params, state), (later, _) = train(params, state, jax.random.key(3))
        assert list(terms) == ["cvar", "norm"]
        np.testing.assert_allclose(values, terms["cvar"] + terms["norm"], rtol=1e-5)
        assert np.all(np.isfinite(later))
        assert later[-5:].mean() < 0.8 * values[:5].mean()
        np.testing.assert_array_equal(state[2].memory.visits, [60, 60, 60, 0, 0, 0, 0])
        assert state[2].updates == 60


class TestOrder:
    def test_a_link_may_change_the_size_of_the_batch(self):
        """Every row twice is the same mean, with twice the rows."""
        value, (_, aux) = apply(FORWARD, CE, MEAN)
        twice, (_, more) = apply(repeat(), FORWARD, CE, MEAN)
        np.testing.assert_allclose(twice, value, rtol=1e-6)
        chex.assert_shape((aux["losses"]["ce"], more["losses"]["ce"]), [(4,), (8,)])

    def test_input_links_stand_before_forward(self):
        """What a link does to the inputs after forward comes too late."""
        double = objectives.stateless(lambda p, record, k: record._replace(inputs=2 * record.inputs))
        plain = apply(FORWARD, CE, MEAN)[0]
        assert apply(double, FORWARD, CE, MEAN)[0] != plain
        assert apply(FORWARD, double, CE, MEAN)[0] == plain

    def test_weight_links_stand_before_the_reduction(self):
        focal = objectives.reweight(lambda record: record.losses["ce"])
        with pytest.raises(KeyError):
            apply(FORWARD, focal, CE, MEAN)
        assert apply(FORWARD, CE, focal, MEAN)[0] != apply(FORWARD, CE, MEAN, focal)[0]

    @pytest.mark.parametrize("kind", ["labels", "distributions"])
    def test_targets_may_be_labels_or_distributions(self, kind):
        batch = contract.draw_batch(targets=kind)
        value, _ = apply(FORWARD, CE, MEAN, batch=batch)
        logits = contract.model(contract.draw_params(), (), batch["inputs"], None)[0]["logits"]
        targets = np.eye(3)[batch["targets"]] if kind == "labels" else batch["targets"]
        expected = np.average(optax.softmax_cross_entropy(logits, targets), weights=batch["weights"])
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    def test_targets_may_be_named(self):
        batch = {**contract.draw_batch(), "extra": np.zeros((4, 3), np.float32)}
        batch["targets"] = {"class": batch["targets"], "value": np.ones((4, 3), np.float32)}
        _, (_, aux) = apply(
            FORWARD,
            objectives.loss(losses.cross_entropy, name="ce", target="class"),
            objectives.loss(lambda z, y: jnp.sum(z * y, -1), name="dot", target="value"),
            objectives.loss(lambda z, y: jnp.sum(z * y, -1), name="zero", target="extra"),
            MEAN,
            batch=batch,
        )
        assert list(aux["terms"]) == ["ce", "dot", "zero"]
        assert aux["terms"]["zero"] == 0

    def test_each_loss_is_reduced_once(self):
        hinge = objectives.loss(lambda z, y: jnp.max(z, -1), name="hinge")
        value, (_, aux) = apply(FORWARD, CE, MEAN, hinge, objectives.cvar(1.0))
        _, (_, apart) = apply(FORWARD, CE, hinge, MEAN)
        expected = {"ce": apart["terms"]["ce"], "cvar": apart["terms"]["hinge"]}
        chex.assert_trees_all_close(aux["terms"], expected, rtol=1e-6)
        np.testing.assert_allclose(value, sum(expected.values()), rtol=1e-6)
        with pytest.raises(ValueError, match=r"cvar needs .*; \['ce'\] are reduced already"):
            apply(FORWARD, CE, MEAN, objectives.cvar(1.0))

    def test_shared_entries_have_no_rows(self):
        """What belongs to the whole batch is neither checked nor filled."""
        shared = {"scale": jnp.array([2.0, 3.0, 4.0, jnp.nan])}
        weights = jnp.array([0.0, 1.0, 1.0, 1.0])
        record = objectives.from_batch({"inputs": jnp.ones(4), "weights": weights, "shared": shared})
        assert record.extras["shared"] is shared


def test_links_of_ones_own_from_the_exported_pieces():
    """`stateless`, `select` and `take_losses` are all that a reduction of a user's needs."""

    def update(params, record, key):
        named, record = objectives.take_losses("largest", record)
        features = objectives.select("largest", record, "features")
        largest = jnp.max(sum(named.values())) + 0.0 * jnp.sum(features)
        return record._replace(terms={**record.terms, "largest": largest})

    own = objectives.stateless(update)
    value, (_, aux) = apply(FORWARD, CE, own)
    assert value == aux["losses"]["ce"].max()
    with pytest.raises(ValueError, match="link largest needs per-example losses"):
        apply(FORWARD, own)


class TestBadInput:
    def test_empty_chain(self):
        with pytest.raises(ValueError, match="chain must get at least one link"):
            objectives.chain()

    def test_losses_that_nobody_reduced(self):
        with pytest.raises(ValueError, match=r"losses \['ce'\] not reduced.*objectives.mean"):
            apply(FORWARD, CE)
        late = objectives.loss(losses.brier, name="brier")
        with pytest.raises(ValueError, match=r"losses \['brier'\] not reduced"):
            apply(FORWARD, CE, MEAN, late)

    def test_nothing_to_minimize(self):
        with pytest.raises(ValueError, match="without a term"):
            apply(FORWARD)

    def test_reduction_without_losses(self):
        for link, name in ((MEAN, "mean"), (objectives.cvar(), "cvar"), (objectives.kl_dro(), "kl_dro")):
            with pytest.raises(ValueError, match=f"link {name} needs per-example losses"):
                apply(FORWARD, link)

    def test_loss_before_forward(self):
        with pytest.raises(ValueError, match=r"loss\('ce'\) needs 'logits'.*put objectives.forward before"):
            apply(CE, FORWARD, MEAN)

    def test_unknown_name_lists_what_there_is(self):
        with pytest.raises(
            ValueError, match=r"needs 'z'; the record holds inputs, targets, features, logits"
        ):
            apply(FORWARD, objectives.loss(losses.cross_entropy, output="z"), MEAN)

    def test_names_are_used_once(self):
        ridge = objectives.parameter_regularizer(optax.tree.norm, name="ce")
        metric = objectives.metric(lambda z, y: 1.0, name="one")
        with pytest.raises(ValueError, match="a loss of this name exists"):
            apply(FORWARD, CE, CE, MEAN)
        with pytest.raises(ValueError, match="a term 'ce' exists"):
            apply(FORWARD, CE, MEAN, ridge)
        with pytest.raises(ValueError, match="a metric of this name exists"):
            apply(FORWARD, CE, MEAN, metric, metric)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"inputs": np.zeros((0, 3), np.float32)}, "at least one example"),
            ({"inputs": {}}, "at least one example"),
            ({"inputs": np.float32(1)}, "at least one example"),
            ({"targets": np.zeros(3, np.int32)}, r"batch\['targets'\] must have 4 examples"),
            ({"weights": np.ones(3, np.float32)}, r"batch\['weights'\] must have 4 examples"),
            ({"weights": np.ones((4, 1), np.float32)}, r"batch\['weights'\] must have rank 1"),
            ({"weights": np.ones(4, np.int32)}, r"batch\['weights'\] must be floating"),
            ({"index": np.zeros(4, np.float32)}, r"batch\['index'\] must hold integers"),
            ({"index": np.zeros((4, 1), np.int32)}, r"batch\['index'\] must have rank 1"),
            ({"metrics": 1}, r"must not hold the keys \['metrics'\]"),
            ({"targets": np.zeros((4, 3), np.int32)}, "targets"),
        ],
    )
    def test_bad_batch(self, change, message):
        batch = {**contract.draw_batch(), **change}
        with pytest.raises(ValueError, match=message):
            apply(FORWARD, CE, MEAN, batch=batch)

    def test_batch_without_inputs(self):
        with pytest.raises(ValueError, match="batch must hold 'inputs'"):
            apply(FORWARD, CE, MEAN, batch={"targets": np.zeros(4, np.int32)})

    def test_integer_logits(self):
        integers = objectives.forward(lambda p, s, x, k: (jnp.ones((4, 3), jnp.int32), s))
        with pytest.raises(ValueError, match="logits must be floating"):
            apply(integers, CE, MEAN)

    def test_invalid_label_is_nan_in_its_row_and_in_the_value(self):
        batch = contract.draw_batch()
        _, (_, clean) = apply(FORWARD, CE, MEAN, batch=batch)
        batch["targets"] = np.where(np.arange(4) == 2, 7, batch["targets"]).astype(np.int32)
        value, (_, aux) = apply(FORWARD, CE, MEAN, batch=batch)
        assert np.isnan(value)
        np.testing.assert_array_equal(np.isnan(aux["losses"]["ce"]), [False, False, True, False])
        np.testing.assert_allclose(
            np.delete(aux["losses"]["ce"], 2), np.delete(clean["losses"]["ce"], 2), rtol=1e-6
        )
