"""Norms: the contract, closed forms against numpy, and what each norm promises beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxdiv import convex
from jaxdiv.testing import convex as contract

X = np.random.default_rng(7).normal(size=(3, 4))
lmo, project = jax.jit(convex.Norm.lmo), jax.jit(convex.Norm.project)


class L1(contract.NormContract):
    norm = convex.l1


class L2(contract.NormContract):
    norm = convex.l2


class Linf(contract.NormContract):
    norm = convex.linf


class Spectral(contract.NormContract):
    norm = convex.spectral


class Nuclear(contract.NormContract):
    norm = convex.nuclear


def test_vector_norms_are_those_of_numpy():
    orders = {convex.l1: 1, convex.l2: None, convex.linf: np.inf}
    columns = jax.jit(lambda x: [(n.value(x), n.over(0).value(x), n.over(0).dual(x)) for n in orders])
    outputs = columns(X.astype(np.float32))
    for order, (whole, values, _) in zip(orders.values(), outputs, strict=True):
        np.testing.assert_allclose(whole, np.linalg.norm(X.ravel(), order), rtol=1e-6)
        np.testing.assert_allclose(values, np.linalg.norm(X, order, axis=0), rtol=1e-6)
    for i, (_, _, duals) in enumerate(outputs):
        np.testing.assert_allclose(duals, outputs[-1 - i][1], rtol=1e-6)


def test_a_number_is_a_vector_of_one_entry():
    number = np.float32(-2.0)
    norms = (convex.l1, convex.l2, convex.linf)
    every = jax.jit(lambda x: [(n.value(x), n.dual(x), n.lmo(x, 0.5), n.project(x, 0.5)) for n in norms])
    np.testing.assert_array_equal(every(number), [(2, 2, 0.5, -0.5)] * 3)


def test_matrix_norms_are_those_of_numpy():
    u, s, vt = np.linalg.svd(X, full_matrices=False)

    @jax.jit
    def outputs(x):
        norms = [(n.value(x), n.dual(x), n.lmo(x, 0.5), n.project(x, 1.5)) for n in matrix_norms]
        return norms, convex.spectral.over((1, 0)).project(x.T, 1.5)

    matrix_norms = (convex.spectral, convex.nuclear)
    (spectral, nuclear), turned = outputs(X.astype(np.float32))
    np.testing.assert_allclose((spectral[0], nuclear[1]), s[0], rtol=1e-6)
    np.testing.assert_allclose((spectral[1], nuclear[0]), s.sum(), rtol=1e-6)
    np.testing.assert_allclose(spectral[2], -0.5 * u @ vt, atol=1e-6)
    np.testing.assert_allclose(nuclear[2], -0.5 * np.outer(u[:, 0], vt[0]), atol=1e-6)
    clipped = u @ np.diag(np.minimum(s, 1.5)) @ vt
    np.testing.assert_allclose(spectral[3], clipped, atol=1e-6)
    np.testing.assert_allclose(turned, clipped.T, atol=1e-6)
    kept = np.maximum(s - optimize.brentq(lambda t: np.maximum(s - t, 0).sum() - 1.5, 0, s[0]), 0)
    np.testing.assert_allclose(nuclear[3], u @ np.diag(kept) @ vt, atol=1e-6)


def test_l1_oracle_is_one_signed_unit_vector_also_at_ties():
    g = np.array([[1.0, -3.0], [3.0, 0.0]], np.float32)
    np.testing.assert_array_equal(lmo(convex.l1, g, 2.0), [[0, 2], [0, 0]])
    np.testing.assert_array_equal(lmo(convex.l1.over(-1), g, 2.0), [[0, 2], [-2, 0]])


def test_nuclear_oracle_has_rank_one_also_at_ties():
    point = lmo(convex.nuclear, np.eye(3, 4, dtype=np.float32), 1.0)
    assert np.linalg.matrix_rank(point) == 1
    np.testing.assert_allclose(np.trace(point), -1, rtol=1e-6)


def test_spectral_oracle_leaves_out_directions_that_are_zero_to_rounding():
    """A rank-one matrix in float32: its other singular values are rounding, and so are their vectors."""
    u, v = X[:, 0] / np.linalg.norm(X[:, 0]), X[0] / np.linalg.norm(X[0])
    point = lmo(convex.spectral, (3 * np.outer(u, v)).astype(np.float32), 1.0)
    np.testing.assert_allclose(point, -np.outer(u, v), atol=1e-6)


@pytest.mark.parametrize("size", [1e-31, 1e37])
def test_lengths_that_under_or_overflow(size):
    """Squares of 1e37 overflow; so does their root where many are summed."""
    x = np.full(2500, 8 * size, np.float32)
    np.testing.assert_allclose(lmo(convex.l2, x, 5.0), np.full(2500, -0.1), rtol=1e-5)
    if size > 1:
        np.testing.assert_allclose(project(convex.l2, x, 5.0), np.full(2500, 0.1), rtol=1e-5)


def test_trees_are_mapped_leaf_by_leaf():
    gradient = {"w": X.astype(np.float32), "v": np.eye(2, dtype=np.float32)}
    steps = jax.jit(lambda norm, g: jax.tree.map(norm.lmo, g))(convex.spectral, gradient)
    np.testing.assert_allclose(steps["v"], -np.eye(2), atol=1e-6)
    assert steps["w"].shape == (3, 4)


def test_a_matrix_norm_needs_two_axes():
    with pytest.raises(ValueError, match="axis of a matrix norm must name two axes of x"):
        convex.spectral.over(0).value(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="axis must name distinct axes of x"):
        convex.nuclear.value(jnp.ones(3))


# Permutations make ties and zeros exact, rotations leave them to rounding.
BASES = {
    "exact": (np.eye(4)[:, [2, 0, 3]], np.eye(3)[[1, 2, 0]]),
    "rotated": (np.linalg.qr(X.T)[0], np.linalg.qr(X[:, :3])[0]),
}
SPECTRA = {"tied": (2.0, 1.0, 1.0), "all_tied": (1.0, 1.0, 1.0), "zeros": (2.0, 0.0, 0.0)}


@jax.jit
def _derivatives(x, direction):
    """By AD and by central differences: gradients of both norms, their projections."""

    def both(f):
        ahead, behind = jax.vmap(lambda t: f(x + t * direction))(1e-5 * jnp.array([1.0, -1.0]))
        return jax.jvp(f, (x,), (direction,))[1], (ahead - behind) / 2e-5

    return (
        both(jax.grad(convex.nuclear.value)),
        both(jax.grad(convex.spectral.value)),
        both(lambda x: convex.spectral.project(x, 0.5)),
        both(lambda x: convex.nuclear.project(x, 1.5)),
    )


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", SPECTRA)
def test_derivatives_at_repeated_and_zero_singular_values(name, basis):
    """Where decompositions differentiate to NaN: second derivatives of the norms, first ones of projections.

    Those that exist equal differences of the function: the nuclear norm is smooth at full rank, the spectral
    norm where its largest value is simple, the projections where no value sits on the threshold.
    """
    spectrum, (left, right) = SPECTRA[name], BASES[basis]
    with jax.enable_x64(True):
        matrix = left @ np.diag(spectrum) @ right
        direction = np.random.default_rng(9).normal(size=(4, 3))
        derivatives = jax.tree.map(np.asarray, _derivatives(matrix, direction))
    nuclear, spectral, *projections = derivatives
    for derivative, _ in derivatives:
        assert np.all(np.isfinite(derivative))
    if min(spectrum) > 0:
        np.testing.assert_allclose(*nuclear, rtol=1e-6, atol=1e-8)
    if spectrum[0] > spectrum[1]:
        np.testing.assert_allclose(*spectral, rtol=1e-6, atol=1e-8)
    for projection in projections:
        np.testing.assert_allclose(*projection, rtol=1e-6, atol=1e-8)
