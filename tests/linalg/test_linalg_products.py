import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.flatten_util import ravel_pytree

from jaxdiv import linalg

B, D, K = 5, 3, 4


def _problem():
    rng = np.random.default_rng(0)
    params = {"b": rng.normal(size=K), "w": rng.normal(size=(D, K))}
    inputs, labels = rng.normal(size=(B, D)), rng.integers(K, size=B)
    params, inputs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, inputs))

    def model(p):
        return jnp.tanh(inputs @ p["w"] + p["b"]) * 2

    def losses(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return params, model, losses


@functools.cache
def _dense():
    """Every matrix from its definition, on raveled parameters."""
    params, model, losses = _problem()
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def derivatives(flat):
        return (
            jax.nn.softmax(model(unravel(flat))),
            jax.jacobian(lambda f: model(unravel(f)))(flat),
            jax.jacobian(lambda f: losses(model(unravel(f))))(flat),
            jax.hessian(lambda f: losses(model(unravel(f))).mean())(flat),
        )

    probs, jacobian, grads, hessian = map(np.asarray, derivatives(flat))
    inner = np.stack([np.diag(p) - np.outer(p, p) for p in probs]) / B
    fisher = np.einsum("bki,bkl,blj->ij", jacobian, inner, jacobian)
    return {"hessian": hessian, "gauss_newton": fisher, "fisher": fisher,
            "empirical_fisher": grads.T @ grads / B}  # fmt: skip


def _operator(name, params, model, losses):
    mean = lambda logits: losses(logits).mean()  # noqa: E731
    return {
        "hessian": lambda: linalg.hessian_operator(lambda p: mean(model(p)), params),
        "gauss_newton": lambda: linalg.gauss_newton_operator(model, mean, params),
        "fisher": lambda: linalg.fisher_operator(model, params),
        "empirical_fisher": lambda: linalg.empirical_fisher_operator(lambda p: losses(model(p)), params),
    }[name]()


NAMES = ("hessian", "gauss_newton", "fisher", "empirical_fisher")


class ProductsTest(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.parameters(*NAMES)
    def test_matrix_is_the_definition(self, name):
        problem = _problem()
        expected = _dense()[name]

        def matrix(params):
            return linalg.materialize(_operator(name, params, *problem[1:]), params)

        actual = self.variant(matrix)(problem[0])
        np.testing.assert_allclose(actual, expected, atol=1e-6)
        if name != "hessian":
            assert np.linalg.eigvalsh(actual).min() > -1e-6

    def test_one_shot_products_equal_the_operators(self):
        params, model, losses = _problem()
        mean = lambda logits: losses(logits).mean()  # noqa: E731
        v = jax.tree.map(jnp.cos, params)
        total = lambda p: mean(model(p))  # noqa: E731

        @jax.jit
        def products(v):
            once = linalg.hvp(total, params, v), linalg.gnvp(model, mean, params, v)
            return once, (
                linalg.hessian_operator(total, params)(v),
                linalg.gauss_newton_operator(model, mean, params)(v),
            )

        chex.assert_trees_all_close(*products(v), atol=1e-6)

    def test_gauss_newton_is_the_hessian_of_a_linear_model(self):
        params, _, losses = _problem()
        inputs = jnp.linspace(-1, 1, B * D).reshape(B, D)
        model = lambda p: inputs @ p["w"] + p["b"]  # noqa: E731
        mean = lambda logits: losses(logits).mean()  # noqa: E731
        v = jax.tree.map(jnp.sin, params)
        total = lambda p: mean(model(p))  # noqa: E731
        pair = jax.jit(lambda v: (linalg.gnvp(model, mean, params, v), linalg.hvp(total, params, v)))
        chex.assert_trees_all_close(*pair(v), atol=1e-6)

    def test_operator_is_differentiable_in_the_parameters(self):
        # d/dx of vᵀ H v for f = Σ x⁴ is 24 x v².
        x, v = jnp.array([1.0, -2.0]), jnp.array([1.0, 3.0])
        form = lambda x: v @ linalg.hessian_operator(lambda y: jnp.sum(y**4), x)(v)  # noqa: E731
        np.testing.assert_allclose(jax.grad(form)(x), 24 * x * v**2, rtol=1e-6)

    def test_newton_step_through_solve(self):
        params, model, losses = _problem()
        matvec = linalg.gauss_newton_operator(model, lambda z: losses(z).mean(), params)
        v = jax.tree.map(jnp.cos, params)
        x, info = jax.jit(lambda v: linalg.solve(matvec, v, ridge=0.1, rtol=1e-6))(v)
        assert info.status == 0
        chex.assert_trees_all_close(jax.tree.map(lambda a, b: a + 0.1 * b, matvec(x), x), v, atol=1e-5)

    def test_half_precision(self):
        params = {"x": jnp.array([1.0, 2.0], jnp.bfloat16)}
        fun = lambda p: jnp.sum(p["x"] ** 3)  # noqa: E731
        for v_dtype in (jnp.bfloat16, jnp.float32):
            out = linalg.hvp(fun, params, {"x": jnp.ones(2, v_dtype)})["x"]
            assert out.dtype == v_dtype
            np.testing.assert_allclose(out.astype(jnp.float32), [6, 12])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="fun must return a scalar"):
            linalg.hvp(lambda x: x, jnp.ones(2), jnp.ones(2))
        with pytest.raises(ValueError, match="v must have the structure and shapes of params"):
            linalg.hvp(jnp.sum, jnp.ones(2), jnp.ones(3))
        with pytest.raises(ValueError, match="params must be floating"):
            linalg.hessian_operator(jnp.sum, jnp.ones(2, int))
        with pytest.raises(ValueError, match=r"losses_fn\(params\) must have rank 1"):
            linalg.empirical_fisher_operator(jnp.sum, jnp.ones(2))
        with pytest.raises(ValueError, match="class axis"):
            linalg.fisher_operator(jnp.sum, jnp.ones(2))
