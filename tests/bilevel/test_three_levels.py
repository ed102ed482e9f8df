"""Three levels: an implicit or unrolled two-level solve inside a third, against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel, implicit, solvers

RNG = np.random.default_rng(3)
N = 3


def positive(n):
    root = RNG.normal(size=(n, n))
    return root @ root.T / n + np.eye(n)


A, D = positive(N), positive(N)
B, C, E = (RNG.normal(size=(N, N)) for _ in range(3))
T, R, S = (RNG.normal(size=N) for _ in range(3))


def lowest(y, u, x):
    """y*(u, x) = A^-1 (B x + C u)."""
    return 0.5 * y @ A @ y - y @ (B @ x + C @ u)


def middle(u, x, y):
    """x*(u) minimizes it at y = y*(u, x)."""
    return 0.5 * jnp.sum((y - T) ** 2) + 0.5 * x @ D @ x - x @ (E @ u)


def highest(u, x, y):
    return 0.5 * jnp.sum((x - S) ** 2) + 0.5 * jnp.sum((y - R) ** 2) + 0.1 * u @ u


def exact(u):
    """The value of the highest level; all responses are linear."""
    y_x, y_u = np.linalg.solve(A, B), np.linalg.solve(A, C)
    x = jnp.linalg.solve(y_x.T @ y_x + D, y_x.T @ (T - y_u @ u) + E @ u)
    return highest(u, x, y_x @ x + y_u @ u)


def by_implicit_derivatives(u, x):
    solver = solvers.Gradient(lowest, optax.sgd(0.2), tol=1e-12)
    return implicit.run(solver, jnp.zeros(N), u, x, max_steps=200, solve="cg").value


def by_unrolling(u, x):
    step = lambda y, _: (y - 0.2 * jax.grad(lowest)(y, u, x), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(N), length=150)[0]


@pytest.mark.parametrize("respond", [by_implicit_derivatives, by_unrolling])
def test_hypergradient_through_two_responses(respond):
    """Conjugate gradients on the Hessian of the middle level, which holds the lowest one's response."""
    problem = bilevel.problem(
        lambda u, x, batch: middle(u, x, respond(u, x)), lambda u, x, batch: highest(u, x, respond(u, x))
    )
    with jax.enable_x64(True):
        u = jnp.ones(N)
        init, step = bilevel.make_step(
            problem, bilevel.implicit_gradient(rtol=1e-10), optax.sgd(0.1), optax.sgd(1.0), inner_steps=200
        )

        @jax.jit
        def moved(u):
            state, info = step(init(u, jnp.zeros(N), bilevel.Data(), jax.random.key(0)), bilevel.Data())
            return u - state.outer, info

        hypergradient, info = moved(u)
        np.testing.assert_allclose(hypergradient, jax.grad(exact)(u), rtol=1e-6)
        assert info.status == 0
