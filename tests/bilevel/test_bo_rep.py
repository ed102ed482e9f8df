"""BO-REP: its step lengths, its direction, its start and its counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract

DATA = bilevel.Data()


class BoRepContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.bo_rep(
            case.problem,
            optax.sgd(case.inner_step),
            optax.sgd(lambda k: 0.1 * (1 - k / 2000)),
            adjoint_tx=optax.sgd(case.inner_step),
            radius=10.0,
            refinement_epochs=2,
            refinement_steps=2,
            sampler=sampler,
        )
    )
    steps, reached = 2000, 5e-3


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.paper(61)
class TestStep(chex.TestCase):
    def test_length(self):
        """Each step of x has length η, whatever the noise and the scale of F."""
        case = contract.quadratic(noise=0.3, dtype=np.float32)
        sampler = bilevel.minibatches(inner=2, outer=2)

        @jax.jit
        @jax.vmap
        def lengths(eta, scale):
            outer = lambda x, y, batch: scale * case.problem.outer.apply((x, y), (), batch, None)[0]  # noqa: E731
            inner = lambda x, y, batch: case.problem.inner.apply((x, y), (), batch, None)[0]  # noqa: E731
            init, step = bilevel.bo_rep(
                bilevel.problem(inner, outer), optax.sgd(0.1), optax.sgd(eta), radius=1.0, sampler=sampler
            )
            state = init(case.outer, case.inner, case.data, jax.random.key(0))
            _, xs = jax.lax.scan(lambda s, _: (step(s, case.data)[0], s.outer), state, length=12)
            steps = jax.tree.map(lambda leaf: jnp.diff(leaf, axis=0), xs)
            return jax.vmap(optax.tree.norm)(steps)

        eta = jnp.asarray([0.3, 1e-2])
        # The first step has no adjoint yet, but ∂F/∂x.
        np.testing.assert_allclose(
            lengths(eta, jnp.asarray([1e-6, 1e6])), jnp.tile(eta[:, None], 11), rtol=1e-3
        )

    def test_direction(self):
        """Without noise, with one step in each period and a tiny η: that of the exact hypergradient, on F = Σ cosh."""
        with jax.enable_x64(True):
            case = contract.quadratic()
            problem = case.problem._replace(
                outer=bilevel.problem(
                    case.problem.inner, lambda x, y, batch: jnp.sum(jnp.cosh(2 * flat(y)))
                ).outer
            )
            init, step = bilevel.bo_rep(
                problem,
                optax.sgd(case.inner_step),
                optax.sgd(1e-9),
                adjoint_tx=optax.sgd(case.inner_step),
                period=1,
                inner_steps=1,
                momentum=0.5,
            )

            @jax.jit
            def run(state):
                state = jax.lax.fori_loop(0, 300, lambda _, s: step(s, case.data)[0], state)
                new, info = step(state, case.data)
                exact = jax.grad(lambda x: jnp.sum(jnp.cosh(2 * flat(case.solution(x)))))(state.outer)
                return flat(state.outer) - flat(new.outer), flat(exact), info

            moved, exact, info = run(init(case.outer, case.inner, case.data, jax.random.key(0)))
            cosine = moved @ exact / jnp.linalg.norm(moved) / jnp.linalg.norm(exact)
            assert cosine > 1 - 1e-6
            np.testing.assert_allclose(info.metrics["hypergradient"], jnp.linalg.norm(exact), rtol=1e-6)

    def test_momentum_and_adjoint(self):
        """Three steps by hand, z and m kept from one to the next; y moves in the first and the third."""
        problem = bilevel.problem(
            lambda x, y, batch: 0.5 * y**2 - x * y, lambda x, y, batch: 0.5 * y**2 + 0.25 * x**2
        )
        init, step = bilevel.bo_rep(
            problem, optax.sgd(0.5), optax.sgd(0.1), adjoint_tx=optax.sgd(0.2), inner_steps=1
        )
        with jax.enable_x64(True):
            state = init(1.0, 0.0, DATA, jax.random.key(0))
            step = jax.jit(step)
            x, y, z, m = 1.0, 0.0, 0.0, 0.0
            for k in range(3):
                state, _ = step(state, DATA)
                y = y - 0.5 * (y - x) if k != 1 else y
                z = z - 0.2 * (z - y)
                m = 0.9 * m + 0.1 * (0.5 * x + z)
                x = x - 0.1 * np.sign(m)
                got = state.outer, state.inner, state.extra.adjoint, state.extra.momentum
                np.testing.assert_allclose(got, (x, y, z, m), rtol=1e-12)

    def test_counts(self):
        """Inner gradients at a refresh only; those of the refinement, (2^E − 1) first epochs, in the first step."""
        case = contract.quadratic(dtype=np.float32)
        init, step = bilevel.bo_rep(
            case.problem, optax.sgd(0.1), optax.sgd(0.1), period=3, inner_steps=4, refinement_epochs=3,
            refinement_steps=5,
        )  # fmt: skip
        state = init(case.outer, case.inner, case.data, jax.random.key(0))
        _, (ys, infos) = jax.jit(
            lambda s: jax.lax.scan(
                lambda s, _: (lambda n: (n[0], (n[0].inner, n[1])))(step(s, case.data)), s, length=7
            )
        )(state)
        np.testing.assert_array_equal(infos.metrics["gradients"], [3 + 35 + 4, 3, 3, 7, 3, 3, 7])
        np.testing.assert_array_equal(infos.metrics["products"], 2)
        changed = np.any(np.diff(jax.vmap(flat)(ys), axis=0) != 0, axis=1)
        np.testing.assert_array_equal(changed, [False, False, True, False, False, True])


@pytest.mark.paper(61)
class TestInnerSteps(chex.TestCase):
    def test_refinement_halves_steps_and_balls(self):
        """Against a gradient of 1 everywhere: y moves by what steps and balls allow."""
        # An inner step that only the step size limits, then one that the ball limits.
        for radius, expected in ((None, 2 * 0.5 + 4 * 0.25 + 8 * 0.125), (0.7, 0.7 + 0.35 + 0.175)):
            problem = bilevel.problem(lambda x, y, batch: y, lambda x, y, batch: y**2)
            init, step = bilevel.bo_rep(
                problem, optax.sgd(0.5), optax.sgd(0.1), radius=radius, inner_steps=1, refinement_epochs=3,
                refinement_steps=2,
            )  # fmt: skip
            state, _ = step(init(0.0, 0.0, DATA, jax.random.key(0)), DATA)
            # Beside them the first period's own step, 0.5.
            np.testing.assert_allclose(state.inner, -expected - 0.5, rtol=1e-6)

    def test_ball_is_around_where_a_period_begins(self):
        problem = bilevel.problem(
            lambda x, y, batch: jnp.sum(jnp.asarray([3.0, 4.0]) * y["a"]), lambda x, y, batch: jnp.sum(y["a"])
        )
        init, step = bilevel.bo_rep(
            problem, optax.sgd(1.0), optax.sgd(0.1), radius=2.0, period=1, inner_steps=5
        )
        state = init(0.0, {"a": jnp.zeros(2)}, DATA, jax.random.key(0))
        for k in (1, 2):
            state, _ = step(state, DATA)
            np.testing.assert_allclose(state.inner["a"], -2.0 * k * jnp.asarray([0.6, 0.8]), rtol=1e-6)

    def test_bad_options(self):
        txs = optax.sgd(0.1), optax.sgd(0.1)
        problem = contract.quadratic(dtype=np.float32).problem
        for name, value in (
            ("period", 0), ("inner_steps", 0), ("refinement_epochs", -1), ("refinement_steps", 0), ("momentum", 1.0),
            ("radius", 0.0),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=name):
                bilevel.bo_rep(problem, *txs, **{name: value})
