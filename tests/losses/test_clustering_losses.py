"""Cluster targets: the paper's update, its identity with transport, limits, and empty clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv import losses
from jaxdiv.testing import losses as contract

N, K = 6, 4
LOGITS = 2 * np.random.default_rng(3).normal(size=(N, K))
Z = LOGITS.astype(np.float32)

targets = jax.jit(losses.depict_targets)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def update(p, exponent=0.5):
    """The paper's formula, from probabilities."""
    q = p / p.sum(0) ** exponent
    return q / q.sum(1, keepdims=True)


def objective(q, p, prior_weight=1.0):
    f = q.mean(0)
    return (q * np.log(q / p)).sum() / len(p) + prior_weight * (f * np.log(f * q.shape[1])).sum()


@pytest.mark.paper(3)
class DepictTargetsContract(contract.Contract):
    loss = staticmethod(losses.depict_targets)
    targets = ()

    def test_mismatched_shapes_raise(self):
        """There is one argument, of any number of rows: what can be wrong is its rank."""
        for wrong in (Z[0], Z[..., None]):
            self.assert_raises_naming("logits", wrong)


@pytest.mark.paper(3)
class TestExact:
    def test_is_the_papers_update(self):
        np.testing.assert_allclose(targets(Z), update(softmax(LOGITS)), rtol=1e-5)

    @pytest.mark.parametrize("prior_weight", [0.25, 1.0, 4.0])
    def test_is_one_scaling_iteration_of_semi_relaxed_transport(self, prior_weight):
        """Exact rows, columns under rho KL with rho = w epsilon: g, then f, from zero, in float64."""
        epsilon = 0.7
        cost, rho = -epsilon * np.log(softmax(LOGITS)), prior_weight * epsilon
        mass = np.exp(-cost / epsilon).sum(0)
        g = rho / (rho + epsilon) * epsilon * (np.log(N / K) - np.log(mass))
        f = -epsilon * np.log(np.exp((g - cost) / epsilon).sum(1, keepdims=True))
        plan = np.exp((f + g - cost) / epsilon)
        with jax.enable_x64(True):
            result = targets(LOGITS, prior_weight=prior_weight)
        np.testing.assert_allclose(result, plan, rtol=1e-12)

    def test_iterated_it_is_the_minimum(self):
        """Scaling with the rows' factors fed back ends where q is proportional to p / f."""
        p = softmax(LOGITS)
        r = np.ones((N, 1))
        for _ in range(200):
            b = (r * p).sum(0) ** -0.5
            r = 1 / (p * b).sum(1, keepdims=True)
        q = r * p * b
        stationary = p / q.mean(0)
        np.testing.assert_allclose(q, stationary / stationary.sum(1, keepdims=True), rtol=1e-10)
        assert objective(q, p) < objective(np.asarray(targets(Z), np.float64), p) < objective(p, p)

    def test_equal_column_sums_change_nothing(self):
        p = np.stack([np.roll([0.6, 0.3, 0.08, 0.02], shift) for shift in range(K)])
        np.testing.assert_allclose(targets(np.log(p).astype(np.float32)), p, rtol=1e-5)

    def test_without_prior_it_is_the_assignments(self):
        np.testing.assert_allclose(targets(Z, prior_weight=0.0), softmax(LOGITS), rtol=1e-5)

    def test_strong_prior_divides_by_the_frequencies(self):
        result = targets(Z, prior_weight=1e8)
        np.testing.assert_allclose(result, update(softmax(LOGITS), 1.0), rtol=1e-5)

    @given(st.integers(0, 10_000))
    def test_lowers_the_objective_and_evens_out_frequencies(self, seed):
        z = 3 * np.random.default_rng(seed).normal(size=(N, K)).astype(np.float32)
        p = softmax(z.astype(np.float64))
        q = np.asarray(targets(z), np.float64)
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
        assert objective(q, p) < objective(p, p)
        assert q.mean(0).min() > p.mean(0).min()


@pytest.mark.paper(3)
class TestFrequencies:
    def test_of_the_data_set_for_a_batch(self):
        """With m of all rows, up to a factor, a part of the rows gets what it gets among all."""
        p = softmax(LOGITS)
        log_frequency = np.log(7 * p.sum(0)).astype(np.float32)
        result = targets(Z[:2], log_frequency=log_frequency)
        np.testing.assert_allclose(result, update(p)[:2], rtol=1e-5)

    def test_weights_count_rows(self):
        """Weight 2 is a row twice, weight 0 a row that is not there, NaN or not."""
        weights = np.array([2, 1, 0, 1, 1, 1], np.float32)
        padded = Z.copy()
        padded[2] = np.nan
        result = targets(padded, weights=weights)
        expected = update(softmax(LOGITS[[0, 0, 1, 3, 4, 5]]))[1:]
        np.testing.assert_allclose(np.delete(result, 2, 0), expected, rtol=1e-5)
        assert np.all(np.isnan(targets(padded)))  # it counts, and is not hidden


@pytest.mark.paper(3)
class TestEmptyClusters:
    def test_underflowing_cluster_keeps_its_frequency(self):
        """p of e^-200 is no float32; its targets are those of float64."""
        z = LOGITS.copy()
        z[:, 1] -= 200
        log_q = jax.jit(lambda z: jnp.log(losses.depict_targets(z)))
        with jax.enable_x64(True):
            expected = np.asarray(log_q(z))
        np.testing.assert_allclose(np.exp(expected), update(softmax(z)), rtol=1e-10)
        result = log_q(z.astype(np.float32))
        np.testing.assert_allclose(result[:, [0, 2, 3]], expected[:, [0, 2, 3]], rtol=1e-4, atol=1e-5)
        # A frequency of e^-400 lifts it by e^200, back to where it was.
        lifted = targets(z.astype(np.float32), log_frequency=np.array([0, -400, 0, 0], np.float32))
        np.testing.assert_allclose(lifted, targets(Z, log_frequency=np.zeros(K, np.float32)), rtol=1e-3)

    @pytest.mark.parametrize("gap", [1e4, np.inf])
    def test_finite_with_finite_derivatives(self, gap):
        z = Z.copy()
        z[:, 1] -= gap

        @jax.jit
        def with_gradient(z):
            q, pull = jax.vjp(losses.depict_targets, z)
            return q, pull(jnp.cos(jnp.arange(N * K, dtype=q.dtype)).reshape(N, K))[0]

        q, gradient = with_gradient(z)
        kept = [0, 2, 3]
        np.testing.assert_array_equal(q[:, 1], 0)
        np.testing.assert_allclose(q[:, kept], update(softmax(LOGITS[:, kept])), rtol=1e-5)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[:, 1], 0)

    def test_nothing_known_of_the_frequencies(self):
        """All of frequency zero: as if all were equal."""
        result = targets(Z, log_frequency=np.full(K, -np.inf, np.float32))
        np.testing.assert_allclose(result, softmax(LOGITS), rtol=1e-5)


@pytest.mark.paper(3)
def test_prior_weight_may_be_traced():
    values = np.array([0.5, 2.0], np.float32)
    mapped = jax.jit(jax.vmap(lambda w: losses.depict_targets(Z, prior_weight=w)))(values)
    np.testing.assert_allclose(mapped, [targets(Z, prior_weight=w) for w in values], rtol=1e-5)
    with jax.enable_x64(True):
        column = jax.jit(lambda w: losses.depict_targets(LOGITS, prior_weight=w)[:, 0])
        slope = jax.jit(jax.jacfwd(column))(1.0)
        difference = (column(1 + 1e-6) - column(1 - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.paper(3)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_weight": -0.1}, "prior_weight must lie in"),
        ({"prior_weight": np.inf}, "prior_weight must lie in"),
        ({"weights": np.ones(N + 1, np.float32)}, "weights must hold one number per row"),
        ({"log_frequency": np.ones(K + 1, np.float32)}, "log_frequency must hold one number per cluster"),
        ({"log_frequency": np.ones(K, np.int32)}, "log_frequency must be floating"),
        (
            {"log_frequency": np.ones(K, np.float32), "weights": np.ones(N, np.float32)},
            "weights must be None where log_frequency is given",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        losses.depict_targets(Z, **options)
