"""Root: contract, rates, methods, singular Jacobians, dtypes."""

import chex
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiv import core, solvers
from jaxdiv.core import Status
from jaxdiv.testing import solvers as contract
from jaxdiv.testing.solvers import SolverMember


def system(y, a, b):
    """With the root arcsinh(A⁻¹ b)."""
    return contract.split(a @ jnp.sinh(contract.join(y)) - b)


def root_of_system(a, b):
    return contract.split(jnp.arcsinh(jnp.linalg.solve(a, b)))


# Functions that are none, or that leave the space of y.
BAD = (
    lambda: solvers.Root(3.0),
    lambda: solvers.Root(lambda y: y[:1]).init(jnp.zeros(2)),
    lambda: solvers.Root(lambda y: (y, y)).init(jnp.zeros(2)),
    lambda: solvers.Root(system, method="secant"),
)
MEMBER = SolverMember(
    "newton",
    lambda tol, _: solvers.Root(system, tol),
    contract.linear_system,
    contract.zeros,
    root_of_system,
    bad=BAD,
)


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([MEMBER]))
    def test_solver(self, check, member):
        check(member, self.variant)


def test_newton_converges_quadratically():
    """For y² = 2 the error of y obeys e⁺ = e² / (2 y)."""
    with jax.enable_x64(True):
        solver = solvers.Root(lambda y: y**2 - jnp.asarray(2.0, y.dtype), tol=0.0)
        y0 = jnp.linspace(2.0, 3.0, 3)
        first, second = (np.asarray(core.run(solver, y0, max_steps=k).value) for k in (2, 3))
    np.testing.assert_allclose(second - np.sqrt(2), (first - np.sqrt(2)) ** 2 / (2 * first), atol=1e-15)


def test_chord_and_a_matrix_free_linear_solver_find_the_same_root():
    y0, arguments = contract.cast((contract.zeros(), contract.linear_system(0)), jnp.float32)
    options = ({"method": "chord"}, {"linear_solver": lineax.GMRES(1e-5, 1e-5)})
    for option in options:
        found = core.run(solvers.Root(system, **option), y0, *arguments, max_steps=100).raise_if_failed()
        chex.assert_trees_all_close(found.value, root_of_system(*arguments), atol=1e-4)


@pytest.mark.parametrize("y0", [0.0, [0.0, 0.0]], ids=["scalar", "vector"])
def test_singular_jacobian_is_reported(y0):
    """There lineax divides by 0, or takes the pseudoinverse 0 of a scalar 0."""
    found = core.run(solvers.Root(lambda y: y**2 + 1.0), jnp.array(y0), max_steps=100)
    assert found.status == (Status.NONFINITE if found.value.ndim else Status.STALLED)
    np.testing.assert_array_equal(found.value, 0.0)


def test_float32_under_x64():
    """Scalars of optimistix's states follow the dtype of y."""
    with jax.enable_x64(True):
        y0 = jnp.array([2.0, 1.0], jnp.float32)
        found = core.run(solvers.Root(lambda y: y**2 - 2.0), y0, max_steps=50).raise_if_failed()
    assert found.value.dtype == found.error.dtype == jnp.float32
    np.testing.assert_allclose(found.value, np.sqrt(2), rtol=1e-5)
