"""Distillation losses: contract, the papers' formulas in float64 numpy, limits and identities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import losses
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(4)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, 6, 5))
LABELS = RNG.integers(0, 5, 6)
S, T = jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32)

# Eager calls compile dozens of single operations.
kd = jax.jit(losses.kd, static_argnames="divergence")
dkd = jax.jit(losses.dkd)
bd_kd_student = jax.jit(losses.bd_kd_student, static_argnames="balance")
binary_kl = jax.jit(losses.binary_kl)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class KD(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.kd)
    targets = ("logits",)
    option = ("temperature", 2.0)


class DKD(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.dkd)
    targets = ("logits", "labels")
    option = ("beta", 2.0)


@pytest.mark.paper(16)
class BDKDStudent(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.bd_kd_student)
    targets = ("logits",)
    option = ("nu", 2.0)


@pytest.mark.paper(16)
class BDKDTeacher(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.bd_kd_teacher)
    targets = ("logits",)
    option = ("temperature", 2.0)


@pytest.mark.paper(151)
class BinaryKL(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.binary_kl)
    targets = ("logits",)
    option = ("temperature", 2.0)


@pytest.mark.paper(151)
class BinaryKLNorm(contract.PerExample, contract.ClassMask, contract.NumericOption):
    loss = staticmethod(losses.binary_kl_norm)
    targets = ("logits",)
    option = ("temperature", 2.0)


class TestKD:
    @pytest.mark.parametrize(
        ("divergence", "formula"),
        [("kl", kl), ("reverse_kl", lambda p, q: kl(q, p)), ("tv", lambda p, q: abs(p - q).sum(-1) / 2)],
    )
    def test_is_its_formula(self, divergence, formula):
        expected = 9 * formula(softmax(TEACHER / 3), softmax(STUDENT / 3))
        result = kd(S, T, divergence=divergence, temperature=3.0)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)

    def test_gradient_is_hintons(self):
        """Hinton et al., eq. (2): (1/T)(q - p) times T^2, per logit."""
        expected = 3 * (softmax(STUDENT / 3) - softmax(TEACHER / 3))
        gradient = jax.grad(lambda s: kd(s, T, temperature=3.0).sum())(S)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)

    def test_high_temperature_matches_logits(self):
        """Hinton et al., eq. (4): the gradient tends to (z - v) / C for centered logits."""
        s, t = (z - z.mean(-1, keepdims=True) for z in (STUDENT, TEACHER))
        with jax.enable_x64(True):
            gradient = jax.grad(lambda x: kd(x, jnp.asarray(t), temperature=1e4).sum())
            np.testing.assert_allclose(gradient(jnp.asarray(s)), (s - t) / 5, atol=1e-3)

    def test_unknown_divergence(self):
        with pytest.raises(ValueError, match="kl"):
            losses.kd(S, T, divergence="euclid")

    @pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
    def test_temperature_must_be_positive(self, temperature):
        with pytest.raises(ValueError, match="temperature must lie in"):
            losses.kd(S, T, temperature=temperature)


class TestStandardizeLogits:
    def test_is_the_z_score(self):
        expected = (TEACHER - TEACHER.mean(1, keepdims=True)) / TEACHER.std(1, keepdims=True)
        np.testing.assert_allclose(losses.standardize_logits(T), expected, rtol=1e-4, atol=1e-5)

    def test_shift_and_scale_do_not_matter(self):
        """The paper's point: a student whose logits are an affine image of the teacher's has loss 0."""
        student = losses.standardize_logits(0.1 * T - 7)
        loss = kd(student, losses.standardize_logits(T), temperature=2.0)
        np.testing.assert_allclose(loss, 0.0, atol=1e-9)

    def test_gradient_against_finite_differences(self):
        with jax.enable_x64(True):
            weights = jnp.asarray(STUDENT)
            chex.assert_numerical_grads(
                lambda z: (weights * losses.standardize_logits(z)).sum(), (jnp.asarray(TEACHER),), 1
            )

    def test_extremes(self):
        """Equal logits, and logits whose squares overflow."""
        z = jnp.array([[3.0, 3.0, 3.0], [1e30, -1e30, 0.0], [1e-30, 0.0, -1e-30]])
        scores, pull = jax.vjp(losses.standardize_logits, z)
        chex.assert_tree_all_finite((scores, pull(jnp.ones_like(z))))
        np.testing.assert_array_equal(scores[0], 0.0)
        np.testing.assert_allclose(abs(scores[1:]).max(1), np.sqrt(1.5), rtol=1e-6)

    def test_mask(self):
        where = np.array([True, False, True, True, True])
        poisoned = T.at[:, 1].set(jnp.nan)
        scores = losses.standardize_logits(poisoned, where=where)
        np.testing.assert_allclose(scores[:, where], losses.standardize_logits(T[:, where]), rtol=1e-5)
        np.testing.assert_array_equal(scores[:, 1], 0.0)

    def test_keeps_the_dtype(self):
        assert losses.standardize_logits(T.astype(jnp.bfloat16)).dtype == jnp.bfloat16

    def test_integers_raise(self):
        with pytest.raises(ValueError, match="logits must be floating point"):
            losses.standardize_logits(jnp.ones((2, 3), jnp.int32))


class TestDKD:
    def test_is_its_formula(self):
        """Zhao et al., eqs. (4)-(7), from probabilities."""
        temperature, alpha, beta = 3.0, 0.5, 2.0
        rows = np.arange(6)
        p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
        binary = [np.stack([x[rows, LABELS], 1 - x[rows, LABELS]], 1) for x in (p, q)]
        others = np.eye(5)[LABELS] == 0
        rest = [x[others].reshape(6, 4) for x in (p, q)]
        rest = [x / x.sum(1, keepdims=True) for x in rest]
        expected = temperature**2 * (alpha * kl(*binary) + beta * kl(*rest))
        result = dkd(S, T, jnp.asarray(LABELS), alpha=alpha, beta=beta, temperature=3.0)
        np.testing.assert_allclose(result, expected, rtol=1e-4)

    def test_recouples_to_classical_distillation(self):
        """KD = TCKD + (1 - p_t,y) NCKD, Zhao et al., eq. (7)."""
        labels = jnp.asarray(LABELS)
        target = dkd(S, T, labels, alpha=1.0, beta=0.0, temperature=4.0)
        others = dkd(S, T, labels, alpha=0.0, beta=1.0, temperature=4.0)
        confidence = softmax(TEACHER / 4)[np.arange(6), LABELS]
        whole = kd(S, T, temperature=4.0)
        np.testing.assert_allclose(target + (1 - confidence) * others, whole, rtol=1e-4)

    def test_two_classes_have_no_other_term(self):
        target = dkd(S[:, :2], T[:, :2], jnp.asarray(LABELS % 2), beta=5.0)
        whole = kd(S[:, :2], T[:, :2], temperature=4.0)
        np.testing.assert_allclose(target, whole, rtol=1e-4, atol=1e-6)

    def test_one_class_raises(self):
        with pytest.raises(ValueError, match="at least two classes"):
            dkd(S[:, :1], T[:, :1], jnp.asarray(LABELS))

    def test_excluded_label_is_nan(self):
        where = jnp.arange(5) != LABELS[0]
        result = dkd(S, T, jnp.asarray(LABELS), where=where)
        np.testing.assert_array_equal(np.isnan(result), LABELS[0] == LABELS)


@pytest.mark.paper(16)
class TestBDKD:
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_is_its_formula(self, mirrored):
        p, q = softmax(TEACHER / 2), softmax(STUDENT / 2)
        confident = (entropy(p) > entropy(q)) != mirrored
        assert confident.any()
        assert not confident.all()
        forward, reverse = np.where(confident, 3.0, 1.0), np.where(confident, 1.0, 3.0)
        rule = losses.mirrored_entropy_gap_weights if mirrored else losses.entropy_gap_weights
        result = bd_kd_student(S, T, nu=3.0, balance=rule, temperature=2.0)
        np.testing.assert_allclose(result, 4 * (forward * kl(p, q) + reverse * kl(q, p)), rtol=1e-4)

    def test_nu_one_is_jeffreys(self):
        expected = kd(S, T, divergence="jeffreys", temperature=2.0)
        result = bd_kd_student(S, T, nu=1.0, temperature=2.0)
        np.testing.assert_allclose(result, expected, rtol=1e-4)

    def test_tie_emphasizes_the_reverse_side(self):
        zero = jnp.zeros(1)
        assert [float(w[0]) for w in losses.entropy_gap_weights(zero, 2.0)] == [1.0, 2.0]
        assert [float(w[0]) for w in losses.mirrored_entropy_gap_weights(zero, 2.0)] == [2.0, 1.0]

    def test_stationary_where_both_agree(self):
        gradient = jax.grad(lambda s: bd_kd_student(s, T).sum())(T)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)

    def test_each_side_is_constant_to_the_other(self):
        for loss in (losses.bd_kd_student, losses.bd_kd_teacher):
            total = lambda x, y, loss=loss: loss(x, y).sum()  # noqa: E731
            own, other = jax.jit(jax.grad(total, argnums=(0, 1)))(S, T)
            assert np.abs(own).max() > 0.1
            np.testing.assert_array_equal(other, 0.0)

    def test_weights_are_constant(self):
        """A smooth rule must not be differentiated through."""

        def rule(gap, nu):
            return jnp.exp(nu * gap), jnp.zeros_like(gap)

        gap = jnp.asarray(entropy(softmax(TEACHER)) - entropy(softmax(STUDENT)), jnp.float32)
        expected = jax.grad(lambda s: (jnp.exp(2 * gap) * kd(s, T, temperature=1.0)).sum())(S)
        gradient = jax.grad(lambda s: bd_kd_student(s, T, balance=rule).sum())(S)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)

    def test_teacher_is_reverse_divergence(self):
        expected = 4 * kl(softmax(TEACHER / 2), softmax(STUDENT / 2))
        result = losses.bd_kd_teacher(T, S, temperature=2.0)
        np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.paper(151)
class TestBinaryKL:
    def test_is_its_formula(self):
        p, q = sigmoid(TEACHER / 2), sigmoid(STUDENT / 2)
        expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1)
        np.testing.assert_allclose(binary_kl(S, T), expected, rtol=1e-4)

    def test_sees_a_common_shift(self):
        """What a softmax loss cannot see."""
        assert float(binary_kl(T + 3, T).min()) > 1
        np.testing.assert_allclose(kd(T + 3, T), 0.0, atol=1e-9)


@pytest.mark.paper(151)
class TestBinaryKLNorm:
    def test_is_its_definition(self):
        """T^2 sum_k KL(Bern(1/2) || Bern(sigma(d_k)))."""
        q = sigmoid((STUDENT - TEACHER) / 2)
        expected = 4 * (0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q))).sum(1)
        np.testing.assert_allclose(losses.binary_kl_norm(S, T), expected, rtol=1e-5)

    def test_is_log_cosh(self):
        with jax.enable_x64(True):
            result = losses.binary_kl_norm(jnp.asarray(STUDENT), jnp.asarray(TEACHER), temperature=3.0)
        expected = 9 * np.log(np.cosh((STUDENT - TEACHER) / 6)).sum(1)
        np.testing.assert_allclose(result, expected, rtol=1e-12)

    @pytest.mark.parametrize("temperature", [1e2, 1e4])
    def test_high_temperature_is_the_squared_distance(self, temperature):
        """|z_s - z_t|^2 / 8, in float32: T^2 must not amplify rounding."""
        expected = ((STUDENT - TEACHER) ** 2).sum(1) / 8
        result = losses.binary_kl_norm(S, T, temperature=temperature)
        np.testing.assert_allclose(result, expected, rtol=1e-3)

    def test_gradient_is_tanh(self):
        gradient = jax.grad(lambda s: losses.binary_kl_norm(s, T).sum())(S)
        np.testing.assert_allclose(gradient, np.tanh((STUDENT - TEACHER) / 4), rtol=1e-4, atol=1e-6)

    def test_zero_iff_equal(self):
        np.testing.assert_array_equal(losses.binary_kl_norm(T, T), 0.0)
        nudged = losses.binary_kl_norm(T.at[:, 0].add(1e-3), T)
        assert float(nudged.min()) > 0
