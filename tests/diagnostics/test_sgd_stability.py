"""Stability of SGD: closed forms, the dense operator, order of the bounds, simulated second moments, rank."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.sgd_stability import linear_stability_operator, sgd_stability

RNG = np.random.default_rng(114)
JACOBIAN = RNG.normal(size=(6, 10)) * RNG.uniform(0.3, 2.0, size=(6, 1))
HESSIAN = JACOBIAN.T @ JACOBIAN / 6

stability = jax.jit(sgd_stability, static_argnames=("replace", "num_steps"))


def radius(jacobian, learning_rate, batch, replace=True):
    """λmax of T from its dense matrix on the span of the gradients."""
    basis = np.linalg.svd(jacobian, full_matrices=False)[2]
    rows = jacobian @ basis.T
    step = linear_stability_operator(rows, learning_rate, batch, replace=replace)
    units = np.eye(rows.shape[1] ** 2).reshape(-1, rows.shape[1], rows.shape[1])
    units = (units + units.swapaxes(1, 2)) / 2
    matrix = np.asarray(jax.jit(jax.vmap(step))(units)).reshape(len(units), -1)
    return np.linalg.eigvals(matrix).real.max()


@pytest.mark.paper(114)
class TestExact:
    @pytest.mark.parametrize(("batch", "replace"), [(1, True), (4, True), (4, False), (6, False)])
    def test_critical_rate_makes_the_dense_operator_critical(self, batch, replace):
        """λmax(T) = 1 at η*, less below and more above."""
        with jax.enable_x64(True):
            critical = float(stability(JACOBIAN, batch, replace=replace).critical)
            values = [radius(JACOBIAN, share * critical, batch, replace) for share in (0.98, 1.0, 1.02)]
        np.testing.assert_allclose(values[1], 1.0, atol=1e-8)
        assert values[0] < 1 < values[2]

    def test_orthogonal_gradients_attain_the_trace_bound(self):
        """‖a_i‖² = c: η* = 2/c = 2/tr G for B = 1, where gradient descent allows 2n/c."""
        jacobian = np.linalg.qr(RNG.normal(size=(7, 4)))[0].T * np.sqrt(3.0)
        result = stability(jacobian.astype(np.float32), 1)
        np.testing.assert_allclose(result[:4], [2 / 3, 2 / 3, 2 / 3, 8 / 3], rtol=1e-5)

    def test_large_batches_are_gradient_descent(self):
        with jax.enable_x64(True):
            for result in (stability(JACOBIAN, np.inf), stability(JACOBIAN, 6, replace=False)):
                np.testing.assert_allclose(result.critical, result.gradient_descent, rtol=1e-9)
                np.testing.assert_allclose(
                    result.gradient_descent, 2 / np.linalg.eigvalsh(HESSIAN)[-1], rtol=1e-9
                )
                np.testing.assert_allclose(
                    result.trace_bound, 2 * np.trace(HESSIAN) / np.sum(HESSIAN**2), rtol=1e-9
                )

    def test_operator_is_the_mean_over_all_batches(self):
        """E[(I − η G_B) V (I − η G_B)] over all pairs of examples, for a V that is not symmetric."""
        v = RNG.normal(size=(10, 10))
        pairs = {True: [(i, j) for i in range(6) for j in range(6)]}
        pairs[False] = [(i, j) for i, j in pairs[True] if i != j]
        for replace, batches in pairs.items():
            expected = np.zeros_like(v)
            for rows in batches:
                part = JACOBIAN[list(rows)]
                step = np.eye(10) - 0.1 * part.T @ part / 2
                expected += step @ v @ step / len(batches)
            with jax.enable_x64(True):
                got = linear_stability_operator(JACOBIAN, 0.1, 2, replace=replace)(jnp.asarray(v))
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.paper(114)
class TestProperty:
    def test_bounds_are_in_order(self):
        """η*(1) < η*(4) < η*(∞), each below its bounds, in four draws."""
        for seed in range(4):
            rng = np.random.default_rng(seed)
            jacobian = (rng.normal(size=(6, 10)) * rng.uniform(0.3, 2.0, size=(6, 1))).astype(np.float32)
            results = [stability(jacobian, batch) for batch in (1.0, 4.0, np.inf)]
            assert results[0].critical < results[1].critical < results[2].critical * (1 + 1e-5)
            for result in results:
                assert result.critical <= result.gradient_descent * (1 + 1e-5)
                assert result.critical <= result.identity_bound * (1 + 1e-5)
                assert result.identity_bound <= result.trace_bound * (1 + 1e-5)
            trace = np.sum(jacobian**2) / 6
            np.testing.assert_allclose(results[0].trace_bound, 2 / trace, rtol=1e-5)

    def test_gradients_that_do_not_span(self):
        """A repeated example and one of zero: the span has fewer dimensions than examples."""
        jacobian = np.concatenate([JACOBIAN[:3], JACOBIAN[:1], np.zeros((1, 10))]).astype(np.float32)
        result = stability(jacobian, 1)
        with jax.enable_x64(True):
            rows = jacobian.astype(float) @ np.linalg.svd(jacobian.astype(float))[2][:3].T
            np.testing.assert_allclose(radius(rows, float(result.critical), 1), 1.0, atol=1e-5)
        assert result.residual < 1e-4


class TestUse:
    def test_batch_size_may_be_traced_and_mapped(self):
        chex.clear_trace_counter()
        traced = chex.assert_max_traces(
            lambda batch: sgd_stability(jnp.asarray(JACOBIAN, jnp.float32), batch), n=1
        )
        mapped = jax.jit(jax.vmap(traced))
        critical = mapped(jnp.array([1.0, 2.0, 4.0])).critical
        assert (np.diff(critical) > 0).all()
        mapped(jnp.array([3.0, 5.0, 7.0]))

    @pytest.mark.parametrize(
        ("jacobian", "batch", "options", "message"),
        [
            (jnp.ones(3), 1, {}, "jacobian must have rank 2"),
            (jnp.ones((2, 3), int), 1, {}, "jacobian must be floating point"),
            (jnp.ones((0, 3)), 1, {}, "jacobian must not be empty"),
            (jnp.ones((2, 3)), 0, {}, "batch_size must lie in"),
            (jnp.ones((2, 3)), 3, {"replace": False}, "batch_size must lie in"),
        ],
    )
    def test_errors(self, jacobian, batch, options, message):
        with pytest.raises(ValueError, match=message):
            sgd_stability(jacobian, batch, **options)
        with pytest.raises(ValueError, match=message):
            linear_stability_operator(jacobian, 0.1, batch, **options)
