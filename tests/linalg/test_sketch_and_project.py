"""sketch_and_project: exact sketches, least norms, Kaczmarz' rate, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import linalg
from jaxdiv.core import Status

RNG = np.random.default_rng(0)
A = RNG.normal(size=(6, 6)) + 3 * np.eye(6)
X = RNG.normal(size=6)
KEY = jax.random.key(0)


@pytest.mark.paper(94)
def test_a_full_sketch_solves_in_one_step():
    with jax.enable_x64(True):
        x, info = linalg.sketch_and_project(jnp.asarray(A), jnp.asarray(A @ X), size=6, rtol=1e-9, key=KEY)
    assert info.status == Status.CONVERGED
    assert info.steps == 1
    np.testing.assert_allclose(x, X, rtol=1e-9)


@pytest.mark.paper(94)
@pytest.mark.parametrize(("sketch", "size"), [("gaussian", 2), ("count", 3), ("kaczmarz", 1)])
def test_sketches_reach_the_least_norm_solution(sketch, size):
    """Of four equations in six unknowns, in float32."""
    a, b = jnp.asarray(A[:4], jnp.float32), jnp.asarray(A[:4] @ X, jnp.float32)
    x, info = linalg.sketch_and_project(a, b, sketch=sketch, size=size, rtol=3e-6, key=KEY)
    assert info.status == Status.CONVERGED
    assert info.residual <= 3e-6 * np.linalg.norm(b)
    np.testing.assert_allclose(x, np.linalg.pinv(A[:4]) @ (A[:4] @ X), atol=1e-4)


@pytest.mark.paper(94)
def test_kaczmarz_contracts_at_least_at_its_rate():
    """E‖x_k - x‖² <= (1 - σ_min² / ‖A‖_F²)^k ‖x‖², over 200 runs."""
    steps = 30
    with jax.enable_x64(True):
        a, b = jnp.asarray(A), jnp.asarray(A @ X)
        run = jax.vmap(
            lambda key: linalg.sketch_and_project(a, b, sketch="kaczmarz", rtol=0.0, max_steps=steps, key=key)
        )
        x, info = jax.jit(run)(jax.random.split(KEY, 200))
    assert np.all(info.status == Status.MAX_STEPS)
    assert np.all(info.steps == steps)
    rate = 1 - np.linalg.svd(A, compute_uv=False)[-1] ** 2 / np.sum(A**2)
    errors = np.sum((np.asarray(x) - X) ** 2, 1)
    assert errors.mean() <= rate**steps * np.sum(X**2)
    assert errors.mean() < 0.5 * np.sum(X**2)


def test_bad_input_and_values():
    a, b = jnp.eye(3), jnp.ones(3)
    for call in (
        lambda: linalg.sketch_and_project(a[0], b, key=KEY),
        lambda: linalg.sketch_and_project(a, b[:2], key=KEY),
        lambda: linalg.sketch_and_project(a, b, init=jnp.ones(2), key=KEY),
        lambda: linalg.sketch_and_project(a, b, sketch="srht", key=KEY),
        lambda: linalg.sketch_and_project(a, b, size=0, key=KEY),
        lambda: linalg.sketch_and_project(a, b, rtol=-1.0, key=KEY),
        lambda: linalg.sketch_and_project(a.astype(int), b, key=KEY),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
    assert linalg.sketch_and_project(a, b * jnp.nan, key=KEY)[1].status == Status.NONFINITE
