import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from absl.testing import parameterized

from jaxdiv import core

GEOMETRIES = ("l2", "linf", "leafwise", "adaptive", "adaptive_linf")


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(3, 2)), dtype),
        "b": jnp.asarray(rng.normal(size=2), dtype),
    }


def flat(x):
    return np.concatenate([np.ravel(x["b"]), np.ravel(x["w"])])


class PerturbTest(chex.TestCase):
    def test_l2_is_the_ascent_of_sam(self):
        d = tree(1)
        normalize = optax.contrib.normalize()
        expected, _ = normalize.update(d, normalize.init(d))
        out = core.perturbation(tree(0), d, 0.05)
        chex.assert_trees_all_close(out, jax.tree.map(lambda x: 0.05 * x, expected), rtol=1e-6)

    @parameterized.parameters(*GEOMETRIES)
    def test_radius_is_attained_and_the_inner_product_is_the_largest(self, geometry):
        # For each geometry: the norm of eps is rho, and <d, eps> = rho * (dual norm of d).
        w, d, rho, eta = tree(0), tree(1), 0.3, 0.2
        out = core.perturbation(w, d, rho, geometry=geometry, eta=eta)
        e, g, t = flat(out), flat(d), np.abs(flat(w)) + eta
        leafwise = sum(np.linalg.norm(x) for x in d.values())
        norm, dual = {
            "l2": (np.linalg.norm(e), np.linalg.norm(g)),
            "linf": (np.abs(e).max(), np.abs(g).sum()),
            "leafwise": (max(np.linalg.norm(x) for x in out.values()), leafwise),
            "adaptive": (np.linalg.norm(e / t), np.linalg.norm(t * g)),
            "adaptive_linf": (np.abs(e / t).max(), np.abs(t * g).sum()),
        }[geometry]
        np.testing.assert_allclose(norm, rho, rtol=1e-6)
        np.testing.assert_allclose(e @ g, rho * dual, rtol=1e-6)

    def test_adaptive_by_hand(self):
        # w = (1, 2), d = (1, 1), eta = 0: T^2 d = (1, 4), |T d| = sqrt(5).
        w, d = jnp.array([1.0, -2.0]), jnp.ones(2)
        out = core.perturbation(w, d, 1.0, geometry="adaptive", eta=0.0)
        np.testing.assert_allclose(out, np.array([1.0, 4.0]) / np.sqrt(5), rtol=1e-6)

    @parameterized.parameters("adaptive", "adaptive_linf")
    def test_adaptive_follows_a_rescaling_of_the_weights(self, geometry):
        # w -> a w turns the gradient into d / a; eps must turn into a eps.
        w, d = tree(0), tree(1)
        scale = {"w": 10.0, "b": 0.1}
        scaled_w = jax.tree.map(jnp.multiply, w, scale)
        scaled_d = jax.tree.map(jnp.divide, d, scale)
        plain = core.perturbation(w, d, 0.1, geometry=geometry, eta=0.0)
        scaled = core.perturbation(scaled_w, scaled_d, 0.1, geometry=geometry, eta=0.0)
        chex.assert_trees_all_close(scaled, jax.tree.map(jnp.multiply, plain, scale), rtol=1e-5)

    @parameterized.product(geometry=GEOMETRIES, size=[0.0, 1e-30, 1e30])
    def test_tiny_huge_and_zero_directions_are_finite(self, geometry, size):
        w = tree(0)
        d = jax.tree.map(lambda x: size * x, tree(1))
        out = core.perturbation(w, d, 0.1, geometry=geometry)
        chex.assert_tree_all_finite(out)
        at_one = core.perturbation(w, tree(1), 0.1, geometry=geometry)
        expected = at_one if size else jax.tree.map(jnp.zeros_like, w)
        chex.assert_trees_all_close(out, expected, rtol=1e-5)
        f = lambda d: sum(map(jnp.sum, jax.tree.leaves(core.perturb(w, d, 0.1, geometry=geometry))))  # noqa: E731
        if size != 1e-30:  # there the derivative 1 / |d| is beyond float32
            chex.assert_tree_all_finite(jax.grad(f)(d))

    @parameterized.parameters(*GEOMETRIES)
    def test_jit_vmap_and_grad_over_the_radius(self, geometry):
        w, d = tree(0), tree(1)
        traced = chex.assert_max_traces(lambda w, d, r: core.perturb(w, d, r, geometry=geometry), n=1)
        f = jax.jit(traced)
        for r in (0.1, 0.2):
            expected = core.perturb(w, d, r, geometry=geometry)
            chex.assert_trees_all_close(f(w, d, r), expected, rtol=1e-6)
        radii = jnp.array([0.0, 0.5])
        many = jax.vmap(lambda r: core.perturb(w, d, r, geometry=geometry))(radii)
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], many), w)
        slope = jax.jvp(lambda r: core.perturb(w, d, r, geometry=geometry), (0.1,), (1.0,))[1]
        unit = core.perturbation(w, d, 1.0, geometry=geometry)
        chex.assert_trees_all_close(slope, unit, rtol=1e-6)

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_half_precision_keeps_its_dtype_and_takes_norms_in_float32(self, dtype):
        # 4096 ones: a float16 or bfloat16 accumulation of the squares would stop short of 4096.
        w, d = jnp.zeros(4096, dtype), jnp.ones(4096, dtype)
        out = core.perturb(w, d, 64.0)
        assert out.dtype == dtype
        np.testing.assert_array_equal(out.astype(jnp.float32), np.ones(4096))

    def test_mixed_dtypes_share_one_norm(self):
        w = {"half": jnp.zeros(1, jnp.bfloat16), "full": jnp.zeros(1)}
        out = core.perturbation(w, {"half": jnp.ones(1), "full": jnp.ones(1)}, np.sqrt(2.0))
        assert (out["half"].dtype, out["full"].dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_allclose([out["half"][0], out["full"][0]], [1.0, 1.0], rtol=1e-6)

    @parameterized.parameters(*GEOMETRIES)
    def test_leaves_that_are_not_inexact_are_left_alone(self, geometry):
        key = jax.random.key(0)
        w = {"w": jnp.ones(2), "n": jnp.arange(3), "none": None, "key": key, "flag": True}
        loss = lambda p: (p["w"] ** 2).sum()  # noqa: E731
        d = {**jax.tree.map(lambda x: None, w), "w": jax.grad(loss)({"w": w["w"]})["w"]}
        out = core.perturb(w, d, 0.5, geometry=geometry)
        assert out["n"] is w["n"]
        assert out["none"] is None
        assert out["key"] is key
        assert not np.allclose(out["w"], w["w"])
        alone = core.perturbation(w, {**d, "n": jnp.ones(3)}, 0.5, geometry=geometry)
        assert alone["n"] is None
        chex.assert_trees_all_close(optax.apply_updates({"w": w["w"]}, {"w": alone["w"]})["w"], out["w"])

    def test_nan_stays_visible(self):
        out = core.perturbation(jnp.ones(2), jnp.array([jnp.nan, 1.0]), 0.1)
        assert np.isnan(out).all()

    def test_bad_input_raises(self):
        with pytest.raises(ValueError, match="geometry must be one of 'l2', 'linf'"):
            core.perturb(tree(0), tree(1), 0.1, geometry="spectral")
        with pytest.raises(ValueError, match="direction must have the structure of params"):
            core.perturb(tree(0), {"w": 1.0}, 0.1)
        with pytest.raises(ValueError, match="must have the same shape"):
            core.perturb(jnp.ones(2), jnp.ones(3), 0.1)
