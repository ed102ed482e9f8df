"""The Hessian of batches: spiked Wigner matrices, effective batches, measured noise, learning rates from Lanczos."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv.diagnostics.batch_hessian import batch_hessian_spike, effective_batch, max_learning_rate
from jaxdiv.diagnostics.hessian_noise import hessian_noise
from jaxdiv.diagnostics.lanczos_learner import lanczos_learner

KEY = jax.random.key(0)
MATRICES = np.random.default_rng(64).normal(size=(6, 5, 5)).astype(np.float32)
MATRICES = MATRICES + MATRICES.swapaxes(1, 2)


def quadratic(w, matrices):
    """The mean over examples of ½ wᵀ A_i w."""
    return jnp.mean(jnp.einsum("i,bij,j->b", w, matrices, w)) / 2


learner = jax.jit(lanczos_learner, static_argnames=("loss_fn", "num_steps"))


@pytest.mark.paper(64)
class TestSpike:
    @pytest.mark.parametrize(
        ("value", "variance", "batch"), [(5.0, 1.0, 64), (10.0, 0.5, 32), (-5.0, 1.0, 64)]
    )
    def test_against_a_drawn_matrix(self, value, variance, batch):
        """P = 400, GOE noise: within 6% of the extreme eigenvalue."""
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(400, 400)) * np.sqrt(variance / batch / 2)
        noise += noise.T
        noise[0, 0] += value
        eigenvalues = np.linalg.eigvalsh(noise)
        expected = eigenvalues[-1] if value > 0 else eigenvalues[0]
        np.testing.assert_allclose(batch_hessian_spike(value, 400, batch, variance), expected, rtol=0.06)

    def test_is_continuous_at_the_edge_and_never_smaller(self):
        """At λ = σ√(P/𝔟) both forms are 2σ√(P/𝔟); |λ'| ≥ |λ| everywhere, and without noise λ' = λ."""
        edge = np.float32(np.sqrt(1000 / 64))
        around = batch_hessian_spike(edge * np.float32([0.999, 1.0, 1.001]), 1000, 64, 1.0)
        np.testing.assert_allclose(around, 2 * edge, rtol=1e-5)
        values = jnp.linspace(-20.0, 20.0, 41)
        assert (jnp.abs(batch_hessian_spike(values, 1000, 64, 1.0)) >= jnp.abs(values)).all()
        np.testing.assert_allclose(batch_hessian_spike(values, 1000, 64, 0.0), values)
        np.testing.assert_allclose(batch_hessian_spike(values, 1000, np.inf, 1.0), values)

    def test_growth_of_the_learning_rates(self):
        """SGD: 2λ𝔟/(λ²𝔟 + Pσ²), from ∝ √𝔟 below the transition at 𝔟 = 4e4 to 2/λ at the end. Adam: ∝ √𝔟."""
        sgd = [float(max_learning_rate(5.0, 1e6, b, 1.0)) for b in (1e2, 1e4, 8e4, 1e12)]
        np.testing.assert_allclose(sgd, [1 / 100, 1 / 10, 10 * 8e4 / (25 * 8e4 + 1e6), 2 / 5], rtol=1e-4)
        adam = [float(max_learning_rate(5.0, 1e6, b, 1.0, kind="adam")) for b in (100.0, 400.0)]
        np.testing.assert_allclose(adam[1] / adam[0], 2, rtol=1e-5)

    def test_effective_batch(self):
        np.testing.assert_allclose(effective_batch(64, 128), 128)
        assert effective_batch(128, 128) == np.inf
        np.testing.assert_allclose(1 / effective_batch(32.0, 1000.0), 1 / 32 - 1 / 1000, rtol=1e-5)

    @pytest.mark.parametrize(
        ("function", "arguments", "message"),
        [
            (effective_batch, (0, 10), "batch_size must lie in"),
            (effective_batch, (11, 10), "batch_size must be at most the number of examples 10; got 11"),
            (batch_hessian_spike, (1.0, 10, 0.0, 1.0), "effective_batch must lie in"),
            (batch_hessian_spike, (1.0, 10, 1.0, -1.0), "noise_variance must lie in"),
            (max_learning_rate, (-1.0, 10, 1.0, 1.0), "eigenvalue must lie in"),
        ],
    )
    def test_errors(self, function, arguments, message):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


@pytest.mark.paper(64)
class TestNoise:
    def test_is_the_variance_of_the_entries(self):
        """All sign vectors as probes would be exact; 500 come within a few percent of P² entries' mean variance."""
        for size in (1, 2):
            halves = MATRICES.reshape(6 // size, size, 5, 5).mean(axis=1)
            deviation = np.mean(np.sum((halves - MATRICES.mean(axis=0)) ** 2, axis=(1, 2))) / 25
            expected = deviation / (1 / size - 1 / 6)
            got = hessian_noise(quadratic, jnp.ones(5), MATRICES, batch_size=size, num_probes=500, key=KEY)
            np.testing.assert_allclose(got, expected, rtol=0.05)

    def test_errors(self):
        with pytest.raises(ValueError, match="batch_size must leave at least two batches"):
            hessian_noise(quadratic, jnp.ones(5), MATRICES, batch_size=6, key=KEY)
        with pytest.raises(ValueError, match="m must divide the number of examples 6; got 4"):
            hessian_noise(quadratic, jnp.ones(5), MATRICES, batch_size=4, key=KEY)


def bowl(w, curvature):
    return jnp.sum(curvature * w**2) / 2


@pytest.mark.paper(64)
class TestLearner:
    def test_is_polyaks_on_a_quadratic(self):
        """Heavy ball converges at the rate √β, faster than with half or twice the learning rate."""
        curvature = jnp.array([1.0, 4.0, 25.0, 100.0])
        found = learner(bowl, jnp.ones(4), curvature, num_steps=4, key=KEY)
        np.testing.assert_allclose(found[:2], [(2 / 11) ** 2, (9 / 11) ** 2], rtol=1e-4)

        @jax.jit
        def end(rate):
            tx = optax.sgd(rate, found.momentum)

            def body(carry, _):
                w, state = carry
                update, state = tx.update(curvature * w, state)
                return (w + update, state), None

            w = jnp.ones(4)
            return jnp.linalg.norm(jax.lax.scan(body, (w, tx.init(w)), length=60)[0][0])

        ends = [end(share * found.learning_rate) for share in (0.5, 1.0, 2.5)]
        assert ends[1] < min(ends[0], ends[2])

    def test_negative_curvature_is_left_out(self):
        found = learner(bowl, jnp.ones(3), jnp.array([-5.0, 1.0, 9.0]), num_steps=3, key=KEY)
        np.testing.assert_allclose(found.smallest, 1.0, rtol=1e-4)
        assert np.isnan(learner(bowl, jnp.ones(2), -jnp.ones(2), num_steps=1, key=KEY).learning_rate)

    def test_exhausted_krylov_space(self):
        """Two eigenvalues and four steps: the padding is no Ritz value."""
        found = learner(bowl, jnp.ones(4), jnp.array([2.0, 2.0, 8.0, 8.0]), num_steps=4, key=KEY)
        np.testing.assert_allclose([found.largest, found.smallest], [8.0, 2.0], rtol=1e-4)


@pytest.mark.paper(64)
def test_largest_eigenvalues_of_batches_exceed_that_of_all():
    """λmax is convex and the Hessian of all is the mean of those of its batches: exact for means over a partition."""
    top = [
        np.mean(
            [
                np.linalg.eigvalsh(MATRICES[list(rows)].mean(axis=0))[-1]
                for rows in itertools.combinations(range(6), b)
            ]
        )
        for b in (1, 2, 3, 6)
    ]
    assert top[0] > top[1] > top[2] > top[3]
