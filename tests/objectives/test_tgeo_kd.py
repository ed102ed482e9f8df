"""Learned fusion ratios and TGeO-KD: the formula, its limits, the gradient of the ratio, the two levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel, losses, objectives
from jaxdiv.testing import objectives as contract

KEY = jax.random.key(1)
B, CLASSES = contract.BATCH, contract.CLASSES
TEACHER = objectives.teacher(contract.model, contract.draw_params(5))
TABLE = np.random.default_rng(3).dirichlet(np.ones(CLASSES), CLASSES).astype(np.float32)
GAP = objectives.loss(lambda z, y: jnp.sum(z**2, -1), name="gap")


def linear(params, state, inputs, key):
    """One number per example, as [B, 1]."""
    return inputs @ params[:, None], state


def first_edge(params, state, inputs, key):
    """Reads the first edge, student minus teacher."""
    return inputs[:, :CLASSES] @ params, state


class LearnedFusionContract(contract.Contract):
    link = staticmethod(
        lambda: objectives.learned_fusion(
            linear, lambda record: record.inputs, losses=("gap", "ce"), where=lambda params: params["w"][:, 0]
        )
    )
    before, after = (contract.FORWARD, contract.CROSS_ENTROPY, GAP), (contract.MEAN,)
    missing = "link learned_fusion needs the losses 'gap' and 'ce'"


@pytest.mark.paper(184)
class TGeoKDContract(contract.NumericOption):
    link = staticmethod(
        functools.partial(objectives.tgeo_kd, first_edge, TABLE, where=lambda params: params["w"][:, 0])
    )
    before, after = (contract.FORWARD, TEACHER), (contract.MEAN,)
    option = ("temperature", 2.0)
    missing = "link tgeo_kd needs 'logits'"
    exact_gradient = False  # the features are constants


def student(params, state, inputs, key):
    return contract.model(params[1], state, inputs, key)


def chain(network, **options):
    return objectives.chain(
        objectives.forward(student),
        TEACHER,
        objectives.tgeo_kd(network, TABLE, where=lambda params: params[0], temperature=3.0, **options),
        objectives.metric(lambda ratio, _: ratio, name="ratio", output="ratio"),
        objectives.mean(),
    )


@functools.partial(jax.jit, static_argnums=0)
def evaluate(objective, params, batch):
    """Value, gradient by the pair, and what is reported."""
    state = objective.init(params, batch, KEY)
    (value, (_, aux)), gradient = jax.value_and_grad(objective.apply, has_aux=True)(params, state, batch, KEY)
    return value, gradient, aux


def per_example(theta, batch):
    """The two losses [B] of the student, by its own and the teacher's logits."""
    z, t = (
        contract.model(params, (), batch["inputs"], None)[0]["logits"]
        for params in (theta, contract.draw_params(5))
    )
    return losses.kd(z, t, temperature=3.0), losses.cross_entropy(z, batch["targets"]), z, t


@pytest.mark.paper(184)
class TestTGeoKD:
    def test_constant_ratio_is_fixed_distillation(self):
        """Value and gradient of α τ² KL + (1 - α) CE, averaged under the weights."""
        batch, theta = contract.draw_batch(), contract.draw_params()
        score, alpha = np.float32(0.8), 1 / (1 + np.exp(-0.8))

        def network(params, state, inputs, key):
            return jnp.full(inputs.shape[0], params), state

        fixed = objectives.chain(
            objectives.forward(contract.model),
            TEACHER,
            objectives.loss(
                functools.partial(losses.kd, temperature=3.0), name="kd", weight=alpha, target="teacher"
            ),
            objectives.loss(losses.cross_entropy, weight=1 - alpha),
            objectives.mean(),
        )
        value, (_, gradient), aux = evaluate(chain(network), (score, theta), batch)
        expected, expected_gradient, _ = evaluate(fixed, theta, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for got, want in zip(gradient.values(), expected_gradient.values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(aux["metrics"]["ratio"], alpha, rtol=1e-6)

    def test_ratio_sees_the_trilateral_features(self):
        """Per example the losses are fused by the network's number for its five edges."""
        batch, theta = contract.draw_batch(), contract.draw_params()
        omega = np.random.default_rng(0).normal(size=5 * CLASSES).astype(np.float32)
        _, _, aux = evaluate(chain(linear), (omega, theta), batch)
        kd, ce, z, t = per_example(theta, batch)
        edges = losses.trilateral_features(z, t, batch["targets"], TABLE[batch["targets"]])
        alpha = 1 / (1 + np.exp(-np.asarray(edges) @ omega))
        np.testing.assert_allclose(aux["losses"]["kd"], alpha * kd, rtol=1e-5)
        np.testing.assert_allclose(aux["losses"]["ce"], (1 - alpha) * ce, rtol=1e-5)

    def test_gradient_of_the_ratio_is_the_difference_of_the_losses(self):
        """∂L/∂score_i is α (1 - α) (kd_i - ce_i); ω alone moves the ratio, not the student through Δ."""
        batch, theta = contract.draw_batch(), contract.draw_params()

        def network(scores, state, inputs, key):
            return scores + 0.0 * inputs[:, 0], state

        scores = np.linspace(-1, 2, B).astype(np.float32)
        _, (gradient, _), _ = evaluate(chain(network), (scores, theta), batch)
        kd, ce, _, _ = per_example(theta, batch)
        alpha, weights = 1 / (1 + np.exp(-scores)), batch["weights"] / batch["weights"].sum()
        np.testing.assert_allclose(gradient, weights * alpha * (1 - alpha) * (kd - ce), rtol=1e-4, atol=1e-6)

    def test_look_ahead_hypergradient_is_the_finite_difference(self):
        """One step of gradient descent ahead, `unrolled` gives d/dω of the held-out loss at θ'(ω), to 1e-4."""
        train, held_out = contract.draw_batch(), contract.draw_batch(seed=1)
        rng = np.random.default_rng(7)
        omega, direction = rng.normal(size=(2, 5 * CLASSES))
        inner = chain(linear)
        outer = objectives.chain(objectives.forward(student), contract.CROSS_ENTROPY, contract.MEAN)
        with jax.enable_x64(True):
            theta, train, held_out = (
                {name: np.float64(x) if x.dtype == np.float32 else x for name, x in tree.items()}
                for tree in (contract.draw_params(), train, held_out)
            )
            data = bilevel.Data(inner=train, outer=held_out)
            # One step of descent at rate 1 shows the hypergradient.
            init, step = bilevel.make_step(
                bilevel.problem(inner, outer),
                bilevel.unrolled(),
                optax.sgd(0.1),
                optax.sgd(1.0),
                inner_steps=1,
            )
            after, info = jax.jit(lambda omega: step(init(omega, theta, data, KEY), data))(omega)
            state = inner.init((omega, theta), train, KEY)

            @jax.jit
            @jax.vmap
            def look_ahead(omega):
                gradient = jax.grad(lambda y: inner.apply((omega, y), state, train, KEY)[0])(theta)
                ahead = jax.tree.map(lambda y, g: y - 0.1 * g, theta, gradient)
                logits = contract.model(ahead, (), held_out["inputs"], None)[0]["logits"]
                ce = losses.cross_entropy(logits, held_out["targets"])
                return jnp.sum(held_out["weights"] * ce) / jnp.sum(held_out["weights"])

            value, up, down = look_ahead(omega + 1e-5 * direction * np.array([[0.0], [1.0], [-1.0]]))
            slope = np.vdot(omega - after.outer, direction)
            np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-4)
            assert abs(slope) > 1e-5
            np.testing.assert_allclose(info.value, value, rtol=1e-10)

    def test_wrong_teacher_loses_weight(self):
        """Where the teacher has every class wrong, the look-ahead lowers the ratio, where it is right it rises."""
        batch, theta = contract.draw_batch(), contract.draw_params()
        init, step = bilevel.make_step(
            bilevel.problem(
                objectives.chain(
                    objectives.forward(student),
                    objectives.tgeo_kd(
                        lambda p, s, x, k: (jnp.full(x.shape[0], p), s), TABLE, where=lambda params: params[0]
                    ),
                    objectives.mean(),
                ),
                objectives.chain(objectives.forward(student), contract.CROSS_ENTROPY, contract.MEAN),
            ),
            bilevel.unrolled(),
            optax.sgd(0.1),
            optax.sgd(1.0),
            inner_steps=1,
        )

        @jax.jit
        def moved(teacher):
            data = bilevel.Data(inner={**batch, "teacher": teacher}, outer=batch)
            return step(init(jnp.zeros(()), theta, data, KEY), data)[0].outer

        for shift, sign in ((1, -1), (0, 1)):
            teacher = 5.0 * np.roll(np.eye(CLASSES, dtype=np.float32), shift, axis=1)[batch["targets"]]
            assert sign * moved(teacher) > 0


@pytest.mark.paper(184)
class TestBadInput:
    def batch(self, **other):
        return {**contract.draw_batch(), **other}

    def init(self, objective, batch, params=None):
        params = (np.zeros(5 * CLASSES, np.float32), contract.draw_params()) if params is None else params
        return objective.init(params, batch, KEY)

    def test_network_of_several_outputs(self):
        two = chain(lambda p, s, x, k: (jnp.stack([x @ p, x @ p], 1), s))
        with pytest.raises(ValueError, match=r"one number per example, shape \(4,\).*got \(4, 2\)"):
            self.init(two, self.batch())

    def test_table_of_other_classes(self):
        objective = objectives.chain(
            objectives.forward(student), TEACHER, objectives.tgeo_kd(linear, TABLE[:2], where=lambda p: p[0])
        )
        with pytest.raises(ValueError, match=r"class_predictions of shape \(3, 3\); got \(2, 3\)"):
            self.init(objective, self.batch())

    def test_targets_must_be_labels(self):
        with pytest.raises(ValueError, match="tgeo_kd: targets must hold integers"):
            self.init(chain(linear), contract.draw_batch(targets="distributions"))

    def test_teacher_must_stand_before(self):
        objective = objectives.chain(
            objectives.forward(student), objectives.tgeo_kd(linear, TABLE, where=lambda p: p[0])
        )
        with pytest.raises(ValueError, match="needs 'teacher'"):
            self.init(objective, self.batch())

    @pytest.mark.parametrize("temperature", [0.0, -1.0])
    def test_temperature_must_be_positive(self, temperature):
        with pytest.raises(ValueError, match="temperature must lie in"):
            objectives.tgeo_kd(linear, TABLE, where=lambda p: p[0], temperature=temperature)

    def test_name_of_the_ratio_may_not_be_taken(self):
        fusion = objectives.learned_fusion(
            linear, lambda r: r.inputs, losses=("a", "b"), where=lambda p: p, name="logits"
        )
        record = objectives.from_batch({"inputs": jnp.ones((B, 3))})
        record = record._replace(losses={"a": jnp.ones(B), "b": jnp.ones(B)}, outputs={"logits": jnp.ones(B)})
        with pytest.raises(ValueError, match="a field 'logits' exists already"):
            fusion.update(jnp.ones(3), (), record, None)
