"""Sign-gradient attacks: closed forms on linear losses, the box, the bounds, and what PGD adds to FGSM."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from jaxdiv import adversarial

KEY = jax.random.key(0)
SLOPE = np.array([2.0, -0.5, 0.0, 1.0], np.float32)
X = np.array([0.1, 0.9, 0.5, 0.4], np.float32)


def linear(x):
    return jnp.vdot(SLOPE, x)


class TestLinear(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_fgsm(self):
        """x + epsilon sign(a) maximizes <a, x> in the box; a zero slope moves nothing."""
        attack = adversarial.sign_gradient(0.3)
        result = self.variant(lambda x, key: attack(linear, x, key))(X, KEY)
        np.testing.assert_allclose(result, X + 0.3 * np.sign(SLOPE), rtol=1e-6)

    @parameterized.parameters(True, False)
    def test_pgd_ends_in_the_corner(self, random_start):
        """Its default step is long enough to cross the box from any start."""
        attack = adversarial.sign_gradient(0.3, steps=5, random_start=random_start)
        result = jax.jit(lambda x: attack(linear, x, KEY))(X)
        moved = SLOPE != 0
        np.testing.assert_allclose(result[moved], (X + 0.3 * np.sign(SLOPE))[moved], rtol=1e-6)

    def test_short_steps_add_up(self):
        attack = adversarial.sign_gradient(0.3, steps=4, step_size=0.05)
        np.testing.assert_allclose(attack(linear, X, KEY), X + 0.2 * np.sign(SLOPE), rtol=1e-5)

    def test_default_step_of_pgd(self):
        """Madry et al.: 2.5 epsilon / steps; after 1 of 5 steps from the center that is epsilon / 2."""
        seen = []

        def loss(x):
            jax.debug.callback(seen.append, x)
            return linear(x)

        adversarial.sign_gradient(0.4, steps=5)(loss, jnp.asarray(X), KEY)
        jax.effects_barrier()
        np.testing.assert_allclose(seen[1], X + 0.2 * np.sign(SLOPE), rtol=1e-5)
        assert len(seen) == 5

    def test_bounds_clip_after_the_box(self):
        attack = adversarial.sign_gradient(0.3, bounds=(0.0, 1.0))
        expected = np.clip(X + 0.3 * np.sign(SLOPE), 0.0, 1.0)
        np.testing.assert_allclose(attack(linear, X, KEY), expected, rtol=1e-6)

    def test_epsilon_may_be_traced(self):
        """The worst case rises by |a|_1 per unit of epsilon; one trace serves all values."""

        def worst(epsilon):
            return linear(adversarial.sign_gradient(epsilon)(linear, X, KEY))

        epsilons = jnp.array([0.0, 0.1, 0.4])
        traced = jax.jit(chex.assert_max_traces(worst, n=1))
        each = [traced(e) for e in epsilons]
        expected = SLOPE @ X + np.abs(SLOPE).sum() * np.array(epsilons)
        np.testing.assert_allclose(each, expected, rtol=1e-5)
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(worst)))(epsilons)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        # At 0 the box is a point, and clipping has a kink.
        np.testing.assert_allclose(slopes[1:], np.abs(SLOPE).sum(), rtol=1e-5)


def wavy(x):
    return jnp.sum(jnp.sin(20 * x["a"])) + jnp.sum(x["b"] ** 2)


@jax.jit
def run(x, epsilon, step_size, key):
    attack = adversarial.sign_gradient(
        epsilon, steps=3, step_size=step_size, random_start=True, bounds=(0.0, 1.0)
    )
    return attack(wavy, x, key)


@hypothesis.given(st.floats(0, 2), st.floats(0, 5), st.integers(0, 1000))
def test_stays_in_box_and_bounds(epsilon, step_size, seed):
    rng = np.random.default_rng(seed)
    x = {"a": rng.uniform(size=(2, 3)).astype(np.float32), "b": rng.uniform(size=2).astype(np.float32)}
    result = run(x, epsilon, step_size, jax.random.key(seed))
    chex.assert_trees_all_equal_shapes_and_dtypes(result, x)
    for name, leaf in result.items():
        assert np.all(np.abs(leaf - x[name]) <= np.float32(epsilon) + 1e-6)
        assert np.all((leaf >= 0) & (leaf <= 1))


def test_random_start_is_uniform_in_the_box():
    """With steps of length 0 the start itself comes out: mean 0, variance epsilon^2 / 3, another each key."""
    attack = adversarial.sign_gradient(0.5, step_size=0.0, random_start=True)
    start = lambda key: attack(jnp.sum, jnp.ones((2, 2000)), key)  # noqa: E731
    first, second = jax.jit(jax.vmap(start))(jax.random.split(KEY, 2)) - 1
    assert not np.allclose(first, second)
    np.testing.assert_allclose(first.mean(), 0.0, atol=4 * 0.5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose(first.var(), 0.25 / 3, rtol=0.1)
    assert -0.5 <= first.min() < -0.49
    assert 0.49 < first.max() <= 0.5


def test_leaves_start_apart():
    attack = adversarial.sign_gradient(0.5, step_size=0.0, random_start=True)
    result = attack(lambda x: x["a"].sum() + x["b"].sum(), {"a": jnp.zeros(3), "b": jnp.zeros(3)}, KEY)
    assert not np.allclose(result["a"], result["b"])


def test_pgd_finds_what_fgsm_overshoots():
    """For -(x - 0.3)^2 from 0 the full step to 1 lowers the loss; short steps end within one of the top."""
    loss = lambda x: -jnp.sum((x - 0.3) ** 2)  # noqa: E731
    fgsm = adversarial.sign_gradient(1.0)(loss, jnp.zeros(1), KEY)
    pgd = adversarial.sign_gradient(1.0, steps=20)(loss, jnp.zeros(1), KEY)
    np.testing.assert_allclose(fgsm, 1.0)
    assert abs(float(pgd[0]) - 0.3) <= 2.5 / 20
    assert loss(fgsm) < loss(jnp.zeros(1)) < loss(pgd)


def test_integer_leaves_are_untouched():
    inputs = {"tokens": jnp.array([3, 1]), "x": jnp.array([1.0, -1.0]), "mask": jnp.array([True, False])}
    result = adversarial.sign_gradient(0.5)(lambda b: (b["x"] ** 2 * b["tokens"]).sum(), inputs, KEY)
    assert result["tokens"] is inputs["tokens"]
    assert result["mask"] is inputs["mask"]
    np.testing.assert_array_equal(result["x"], [1.5, -1.5])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtype(dtype):
    attack = adversarial.sign_gradient(0.5, steps=2, bounds=(-1.0, 1.0))
    result = jax.jit(lambda x: attack(jnp.sum, x, KEY))(jnp.zeros(3, dtype))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.astype(jnp.float32), 0.5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        result = adversarial.sign_gradient(0.3)(linear, jnp.asarray(X, jnp.float64), KEY)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(
            result, X.astype(np.float64) + 0.3 * np.sign(SLOPE.astype(np.float64)), rtol=1e-14
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("epsilon", {"epsilon": -0.1}),
            ("epsilon", {"epsilon": float("nan")}),
            ("steps", {"epsilon": 0.1, "steps": 0}),
            ("step_size", {"epsilon": 0.1, "step_size": -1.0}),
            ("bounds", {"epsilon": 0.1, "bounds": (1.0, 0.0)}),
        ],
    )
    def test_bad_numbers(self, name, options):
        with pytest.raises(ValueError, match=f"^{name} must"):
            adversarial.sign_gradient(**options)

    def test_no_floating_input(self):
        with pytest.raises(ValueError, match="needs a floating input"):
            adversarial.sign_gradient(0.1)(lambda x: x.sum() * 1.0, jnp.array([1, 2]), KEY)
