"""DEPICT: targets from each example's last clean prediction, and the loss of the two paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import losses, nn, objectives
from jaxdiv.testing import objectives as contract

N, K = contract.EXAMPLES, contract.CLASSES
KEY = jax.random.key(1)
LABELS = np.array([0, 2, 1, 1], np.int32)
FIRST, SECOND = np.array([3, 0, 6, 1], np.int32), np.array([2, 4, 5, 0], np.int32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def update(p, mass):
    q = p / np.sqrt(mass)
    return q / q.sum(1, keepdims=True)


def draw(seed, count):
    return 2 * np.random.default_rng(seed).normal(size=(count, 4, K)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="train")
def visit(logits, state, index, train=True):
    """The targets that a batch of these clean logits gets, and the next memory."""
    record = objectives.from_batch({"inputs": logits, "targets": LABELS, "index": index})
    record = record._replace(outputs={"clean_logits": logits})
    record, state = objectives.depict(N).update(None, state, record, KEY if train else None)
    return record.targets, state


def empty():
    record = objectives.from_batch({"inputs": np.zeros((4, K), np.float32)})
    record = record._replace(outputs={"clean_logits": np.zeros((4, K), np.float32)})
    return objectives.depict(N).init(None, record, KEY)


@pytest.mark.paper(3)
class DepictContract(contract.NumericOption, contract.PerExampleMemory):
    link = staticmethod(functools.partial(objectives.depict, N, output="logits"))
    after = (contract.CROSS_ENTROPY, contract.MEAN)
    option = ("prior_weight", 0.5)
    missing = "depict needs 'logits'"


@pytest.mark.paper(3)
class LayerReconstructionContract(contract.Schedule):
    link = staticmethod(functools.partial(objectives.layer_reconstruction, output="logits", target="targets"))
    after = (contract.MEAN,)
    targets = "values"
    option = ("weight", 0.5)
    missing = r"link loss\('reconstruction'\) needs 'logits'"


@pytest.mark.paper(3)
class TestTargets:
    def test_second_pass_has_the_papers_targets(self):
        """After one pass, in any order, they are `depict_targets` of all predictions of that pass."""
        one, two, now = draw(0, 3)
        first, state = visit(one, empty(), FIRST)
        np.testing.assert_array_equal(first, np.eye(K)[LABELS])  # until then the first clustering
        _, state = visit(two, state, SECOND)  # 0 comes twice, the last one counts
        table = np.zeros((N, K))
        table[FIRST], table[SECOND] = softmax(one), softmax(two)
        q = update(table, table.sum(0))
        np.testing.assert_allclose(visit(now, state, FIRST)[0], q[FIRST], rtol=1e-5)
        np.testing.assert_allclose(losses.depict_targets(np.log(table).astype(np.float32)), q, rtol=1e-5)

    def test_frequencies_are_of_visited_examples(self):
        """In the middle of the first pass an example that comes again counts those seen so far."""
        one, now = draw(1, 2)
        _, state = visit(one, empty(), FIRST)
        got, _ = visit(now, state, SECOND)
        p = softmax(one)
        np.testing.assert_array_equal(got[:3], np.eye(K)[LABELS[:3]])
        np.testing.assert_allclose(got[3], update(p, p.sum(0))[1], rtol=1e-5)

    def test_rare_cluster_is_called_for(self):
        """A cluster on the way out gets more in the targets than in the predictions, the others less."""
        one, two = draw(2, 2)
        one[..., 1] -= 8
        two[..., 1] -= 8
        _, state = visit(one, empty(), FIRST)
        _, state = visit(two, state, SECOND)
        got, _ = visit(one, state, SECOND)
        p = softmax(two)
        assert np.all(got[:, 1] > 10 * p[:, 1])

    def test_evaluation_uses_current_predictions(self):
        one, now = draw(3, 2)
        _, state = visit(one, empty(), FIRST)
        got, same = visit(now, state, SECOND, train=False)
        np.testing.assert_allclose(got, update(softmax(now), softmax(one).sum(0)), rtol=1e-5)
        np.testing.assert_array_equal(same.table, state.table)
        untrained, _ = visit(now, empty(), SECOND, train=False)
        np.testing.assert_allclose(untrained, softmax(now), rtol=1e-5)


@pytest.mark.paper(3)
class TestLoss:
    """The whole chain on the autoencoder."""

    @classmethod
    def setup_class(cls):
        cls.model = nn.functional(nn.CorruptedAutoencoder((5, 4, 2), K, dropout=0.5, rngs=nnx.Rngs(0)))
        apply = cls.model.apply
        rng = np.random.default_rng(0)
        cls.batch = {
            "inputs": rng.normal(size=(4, 5)).astype(np.float32),
            "targets": LABELS,
            "index": np.arange(4, dtype=np.int32),
        }
        objective = objectives.chain(
            objectives.forward(apply),
            objectives.depict(4),
            objectives.loss(losses.cross_entropy, name="clustering"),
            objectives.layer_reconstruction(weight=0.5, hidden_weight=0.2),
            objectives.mean(),
        )
        cls.objective = objective

        @jax.jit
        def step(params, state, key):
            (_, (state, aux)), gradient = jax.value_and_grad(objective.apply, has_aux=True)(
                params, state, cls.batch, key
            )
            return aux["terms"], gradient, state

        cls.step = staticmethod(step)
        cls.state = objective.init(cls.model.params, cls.batch, KEY)
        _, _, cls.visited = step(cls.model.params, cls.state, KEY)
        cls.moved = jax.tree.map(lambda x: x + 0.3, cls.model.params)

    def test_is_the_papers(self):
        """Cross entropy of the noisy path to the clean path's targets, and every layer's error."""
        terms, _, _ = self.step(self.moved, self.visited, KEY)
        clean = self.model.apply(self.model.params, (), self.batch["inputs"], None)[0]["clean_logits"]
        p = softmax(np.asarray(clean))
        noisy, _ = self.model.apply(self.moved, (), self.batch["inputs"], jax.random.fold_in(KEY, 0))
        expected = -(update(p, p.sum(0)) * np.log(softmax(np.asarray(noisy["logits"])))).sum(1).mean()
        np.testing.assert_allclose(terms["clustering"], expected, rtol=1e-5)
        pairs = zip(noisy["clean"], noisy["reconstruction"], strict=True)
        errors = [((z - r) ** 2).mean() for z, r in pairs]
        assert len(errors) == 2
        np.testing.assert_allclose(terms["reconstruction"], 0.5 * (errors[0] + 0.2 * errors[1]), rtol=1e-5)

    def test_no_gradient_passes_the_targets(self):
        """Nor is there one to the memory they come from: it is that of constant targets."""

        def clustering(params, state):
            return self.objective.apply(params, state, self.batch, KEY)[1][1]["terms"]["clustering"]

        p = jnp.exp(self.visited[1].table[:, 0])
        q = update(p, p.sum(0))

        def constant(params):
            outputs, _ = self.model.apply(params, (), self.batch["inputs"], jax.random.fold_in(KEY, 0))
            return losses.cross_entropy(outputs["logits"], q).mean()

        got, expected = (
            jax.jit(jax.grad(clustering))(self.moved, self.visited),
            jax.jit(jax.grad(constant))(self.moved),
        )
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.paper(3)
class TestBadInput:
    @pytest.mark.parametrize("prior_weight", [-0.1, np.inf, np.nan])
    def test_prior_weight_out_of_range(self, prior_weight):
        with pytest.raises(ValueError, match="prior_weight must lie in"):
            objectives.depict(N, prior_weight=prior_weight)

    def test_targets_of_another_width(self):
        record = objectives.from_batch(
            {"inputs": np.zeros((4, K)), "targets": np.ones((4, 2), np.float32), "index": FIRST}
        )
        record = record._replace(outputs={"clean_logits": np.zeros((4, K), np.float32)})
        with pytest.raises(ValueError, match="link depict: distributions must have shape"):
            objectives.depict(N).update(None, empty(), record, KEY)

    def test_layers_that_do_not_match(self):
        record = objectives.from_batch({"inputs": np.zeros((4, 2), np.float32)})
        layer = np.zeros((4, 2), np.float32)
        link = objectives.layer_reconstruction()
        for reconstruction in ((layer,), (layer, layer[:, :1])):
            outputs = {"clean": (layer, layer), "reconstruction": reconstruction}
            with pytest.raises(ValueError, match=r"same shape|structure|[Tt]uple arity"):
                link.update(None, jnp.int32(0), record._replace(outputs=outputs), None)
