"""The gap of gradient variances: by numpy, 0 for equal sets, Fishr's penalty where each set has its own center."""

import functools

import jax
import numpy as np
import pytest

from jaxdiv.losses.gradient_variance_gap import gradient_variance_gap
from jaxdiv.testing import losses as contract

RNG = np.random.default_rng(3)
A, B = RNG.normal(size=(2, 6, 4)).astype(np.float32)
OWN = jax.jit(functools.partial(gradient_variance_gap, center="own"))


@pytest.mark.paper(194)
class SourceContract(contract.Batch):
    loss = staticmethod(gradient_variance_gap)
    outputs, targets = "values", ("values",)


@pytest.mark.paper(194)
class TestExact:
    def test_by_numpy(self):
        mean = A.mean(0)
        expected = np.mean((((A - mean) ** 2).mean(0) - ((B - mean) ** 2).mean(0)) ** 2) / 4
        np.testing.assert_allclose(gradient_variance_gap(A, B), expected, rtol=1e-5)

    def test_equal_sets_have_no_gap(self):
        assert float(gradient_variance_gap(A, A)) == float(OWN(A, A)) == 0.0

    def test_own_centers_are_fishr_for_two_domains(self):
        """The mean over the domains of |v_e - mean v|²/d; around the source's mean it is another number."""
        variances = np.stack([A.var(0), B.var(0)])
        fishr = np.mean((variances - variances.mean(0)) ** 2)
        np.testing.assert_allclose(OWN(A, B), fishr, rtol=1e-5)
        assert abs(float(gradient_variance_gap(A, B)) - fishr) > 0.01 * fishr

    def test_own_center_does_not_see_a_shift(self):
        """A shift of the other set changes no variance, but its spread around the source's mean."""
        np.testing.assert_allclose(OWN(A, A + 2.0), 0.0, atol=1e-8)
        np.testing.assert_allclose(gradient_variance_gap(A, A + 2.0), 4.0, rtol=1e-4)


@pytest.mark.paper(194)
class TestErrors:
    def test_unknown_center(self):
        with pytest.raises(ValueError, match="center must be one of 'source', 'own'"):
            gradient_variance_gap(A, B, center="target")

    def test_weights(self):
        with pytest.raises(ValueError, match="weights must hold one weight per row"):
            gradient_variance_gap(A, B, weights=np.ones(3, np.float32))
