"""Profiles of solutions: ranks against numpy, curvature of a quadratic, what pruning removes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.solution_profile import effective_rank, solution_profile, stable_rank

RNG = np.random.default_rng(39)
PARAMS = {
    "first": {
        "kernel": RNG.normal(size=(4, 3)).astype(np.float32),
        "bias": RNG.normal(size=3).astype(np.float32),
    },
    "second": {"kernel": RNG.normal(size=(2, 2, 3)).astype(np.float32)},
}
CURVATURE = jax.tree.map(lambda x: np.abs(RNG.normal(size=x.shape)).astype(np.float32), PARAMS)
KEY = jax.random.key(0)


def bowl(params, curvature):
    return sum(
        jnp.sum(c * w**2) / 2
        for c, w in zip(jax.tree.leaves(curvature), jax.tree.leaves(params), strict=True)
    )


def zeros(params):
    return sum(jnp.sum(leaf == 0) for leaf in jax.tree.leaves(params))


@pytest.mark.paper(39)
class TestProfile:
    def test_numbers(self):
        """A diagonal Hessian: its largest entry, and its trace exactly, as signs are exact for diagonals."""
        found = jax.jit(lambda p: solution_profile(bowl, p, CURVATURE, metric=zeros, key=KEY))(PARAMS)
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(CURVATURE)])
        weights = np.concatenate([x.ravel() for x in jax.tree.leaves(PARAMS)])
        np.testing.assert_allclose(found.largest_eigenvalue, flat.max(), rtol=1e-3)
        np.testing.assert_allclose(found.trace, flat.sum(), rtol=1e-5)
        np.testing.assert_allclose(
            [found.l1, found.squared_l2], [np.abs(weights).sum(), (weights**2).sum()], rtol=1e-5
        )
        np.testing.assert_allclose(found.loss, bowl(PARAMS, CURVATURE), rtol=1e-6)
        assert set(found.stable_ranks) == {"first/kernel", "second/kernel"}
        # 24 entries of kernels: 0, 12, 19.2, 21.6 and 22.8 of them rounded.
        np.testing.assert_array_equal(found.pruned, [0, 12, 19, 22, 23])

    def test_pruning_removes_the_smallest_of_all_kernels(self):
        found = jax.jit(
            lambda p: (
                solution_profile(
                    bowl, p, CURVATURE, metric=lambda p: p, sparsities=(0.5, 1.0), key=KEY
                ).pruned
            )
        )(PARAMS)
        kernels = [PARAMS["first"]["kernel"], PARAMS["second"]["kernel"]]
        median = np.median(np.abs(np.concatenate([x.ravel() for x in kernels])))
        for kernel, name in zip(kernels, ("first", "second"), strict=True):
            np.testing.assert_array_equal(
                found[name]["kernel"][0], np.where(np.abs(kernel) > median, kernel, 0)
            )
            np.testing.assert_array_equal(found[name]["kernel"][1], 0)
        np.testing.assert_array_equal(found["first"]["bias"], [PARAMS["first"]["bias"]] * 2)

    def test_ranks(self):
        for kernel in (PARAMS["first"]["kernel"], PARAMS["second"]["kernel"]):
            s = np.linalg.svd(kernel.reshape(-1, 3), compute_uv=False)
            p = s / s.sum()
            np.testing.assert_allclose(stable_rank(kernel), (s**2).sum() / s[0] ** 2, rtol=1e-5)
            np.testing.assert_allclose(effective_rank(kernel), np.exp(-(p * np.log(p)).sum()), rtol=1e-5)
        one = np.outer(np.arange(1.0, 5), [1.0, 2, 3]).astype(np.float32)
        np.testing.assert_allclose([stable_rank(one), effective_rank(one)], 1, rtol=1e-4)

    def test_ranks_do_not_see_the_scale_and_are_in_order(self):
        kernel = PARAMS["first"]["kernel"]
        for function in (stable_rank, effective_rank):
            np.testing.assert_allclose(function(1e3 * kernel), function(kernel), rtol=1e-5)
        assert 1 <= stable_rank(kernel) <= effective_rank(kernel) <= 3

    @pytest.mark.parametrize(
        ("params", "options", "message"),
        [
            ({"bias": np.ones(3, np.float32)}, {}, "params must hold a kernel"),
            (PARAMS, {"sparsities": (1.5,)}, "sparsities must lie in"),
        ],
    )
    def test_errors(self, params, options, message):
        with pytest.raises(ValueError, match=message):
            solution_profile(lambda p, b: jnp.sum(jax.tree.leaves(p)[0]), params, (), key=KEY, **options)
        with pytest.raises(ValueError, match="kernel must have at least two axes"):
            stable_rank(jnp.ones(3))
