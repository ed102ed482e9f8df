"""Directional sharpness: eigenvectors, the parabola along a direction, what clipping and signs do, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.directional_sharpness import directional_sharpness

RNG = np.random.default_rng(192)
ROOT = RNG.normal(size=(4, 4)).astype(np.float32)
MATRIX = ROOT @ ROOT.T
POINT = {"a": np.float32([1.0, -2.0]), "b": np.float32([[0.5, 3.0]])}

measure = jax.jit(directional_sharpness, static_argnames="loss_fn")


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unflat(x):
    return {"a": x[:2], "b": x[2:].reshape(1, 2)}


def quadratic(params, matrix):
    return flat(params) @ matrix @ flat(params) / 2


@pytest.mark.paper(192)
class TestExact:
    def test_of_an_eigenvector_is_the_eigenvalue(self):
        values, vectors = np.linalg.eigh(MATRIX)
        found = [measure(quadratic, POINT, MATRIX, unflat(3 * v)).sharpness for v in vectors.T]
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)

    def test_step_and_decrease_are_those_of_the_parabola(self):
        """The exact minimum along the line of a quadratic."""
        direction = unflat(RNG.normal(size=4).astype(np.float32))
        result = measure(quadratic, POINT, MATRIX, direction)
        unit = flat(direction) / np.linalg.norm(flat(direction))
        lowest = quadratic(unflat(flat(POINT) + result.step * unit), MATRIX)
        np.testing.assert_allclose(quadratic(POINT, MATRIX) - lowest, result.decrease, rtol=1e-3)
        for step in (0.9, 1.1):
            assert quadratic(unflat(flat(POINT) + step * result.step * unit), MATRIX) > lowest

    def test_length_does_not_matter(self):
        direction = unflat(RNG.normal(size=4).astype(np.float32))
        results = [
            measure(quadratic, POINT, MATRIX, jax.tree.map(lambda u, s=s: s * u, direction))
            for s in (1.0, 1e-30, 1e30)
        ]
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], rtol=1e-5)

    def test_against_the_dense_hessian(self):
        def loss(w, x):
            return jnp.sum(jnp.sin(w * x) ** 3)

        w, x, u = (RNG.normal(size=4).astype(np.float32) for _ in range(3))
        v = u / np.linalg.norm(u)
        result = measure(loss, w, x, u)
        np.testing.assert_allclose(
            result.sharpness, v @ jax.jit(jax.hessian(loss))(w, x) @ v, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(result.slope, jax.grad(loss)(w, x) @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.paper(192)
class TestProperty:
    def test_few_sharp_coordinates_make_the_gradient_sharp_and_not_its_signs(self):
        """20 of 1000 coordinates with curvature 1000: S(g) > 900, S(clipped 10%) < 120, S(sign) < 30."""
        curvature = np.where(np.arange(1000) < 20, 1000.0, 1.0).astype(np.float32)

        def loss(w, curvature):
            return jnp.sum(curvature * w**2) / 2

        w = RNG.normal(size=1000).astype(np.float32)
        g = curvature * w
        threshold = np.quantile(np.abs(g), 0.9)
        sharpness = [
            measure(loss, w, curvature, u).sharpness
            for u in (g, np.clip(g, -threshold, threshold), np.sign(g))
        ]
        assert sharpness[0] > 900
        assert sharpness[1] < 120
        np.testing.assert_allclose(sharpness[2], curvature.mean(), rtol=1e-4)


class TestLimits:
    def test_without_positive_curvature_the_step_is_infinite(self):
        result = measure(quadratic, POINT, -MATRIX, POINT)
        assert result.sharpness < 0
        assert result.decrease == np.inf
        assert result.step == np.inf
        still = measure(quadratic, jax.tree.map(jnp.zeros_like, POINT), -MATRIX, POINT)
        assert (still.step, still.decrease) == (0, 0)

    def test_no_direction_has_no_sharpness(self):
        assert np.isnan(measure(quadratic, POINT, MATRIX, jax.tree.map(jnp.zeros_like, POINT))).all()

    def test_half_precision_is_widened(self):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), POINT)
        result = measure(quadratic, half, MATRIX, half)
        assert result.sharpness.dtype == jnp.float32
        np.testing.assert_allclose(
            result.sharpness, measure(quadratic, POINT, MATRIX, POINT).sharpness, rtol=1e-5
        )

    @pytest.mark.parametrize(
        ("loss", "direction", "message"),
        [
            (quadratic, {"a": jnp.ones(2)}, "direction must have the structure and shapes of params"),
            (lambda w, x: flat(w), POINT, "must be a scalar"),
        ],
    )
    def test_errors(self, loss, direction, message):
        with pytest.raises(ValueError, match=message):
            directional_sharpness(loss, POINT, MATRIX, direction)
