"""LV-HBA on coupled problems in closed form, and its limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract

DATA = bilevel.Data()


class LvHbaContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.lv_hba(
            case.problem,
            optax.sgd(0.5 / (1 / case.inner_step + 0.1)),
            optax.sgd(0.1),
            penalty=lambda step: (step + 1) ** 0.45,
            inner_steps=2,
            extragradient=True,
            sampler=sampler,
        )
    )
    steps, reached = 20000, 3e-3


def solver(case, eta, alpha, beta, gamma, exponent, **options):
    """A jitted ``(x, y, steps) -> state``."""
    init, step = bilevel.lv_hba(
        case.problem,
        optax.sgd(eta),
        optax.sgd(alpha),
        center_tx=optax.sgd(beta),
        penalty=lambda step: (step + 1) ** exponent,
        gamma1=gamma,
        gamma2=gamma,
        equality=case.equality,
        **options,
    )

    @jax.jit
    def run(x, y, steps):
        state = init(x, y, DATA, jax.random.key(0))
        return jax.lax.fori_loop(0, steps, lambda _, state: step(state, DATA)[0], state)

    return run


@pytest.mark.paper(69)
class TestCoupled(chex.TestCase):
    def test_inequality(self):
        """x, y and λ = 1.75; who ignores the coupling ends at (2/3, 4/3)."""
        with jax.enable_x64(True):
            case = contract.coupled()
            run = solver(case, 0.05, 0.01, 0.1, 1.0, 0.3)
            first, later = (run(case.outer, case.inner, steps) for steps in (5000, 20000))
            errors = [abs(state.outer - case.solution[0]) for state in (first, later)]
            assert errors[1] < 5e-3
            assert errors[1] < errors[0]
            np.testing.assert_allclose(later.extra.saddle[1], case.multipliers, atol=1e-2)
            np.testing.assert_allclose(later.outer + later.inner, 2.0, rtol=1e-6)

            unaware = case.problem._replace(constraint=None)
            init, step = bilevel.make_step(
                unaware, bilevel.implicit_gradient(), optax.sgd(0.05), optax.sgd(0.01), inner_steps=1
            )
            ignoring = jax.jit(
                lambda state: jax.lax.fori_loop(0, 5000, lambda _, state: step(state, DATA)[0], state)
            )(init(case.outer, case.inner, DATA, jax.random.key(0)))
            assert abs(ignoring.outer - case.solution[0]) > 100 * errors[1]

    def test_inequality_float32_lanes(self):
        """From several starts at once."""
        case = contract.coupled(np.float32)
        run = solver(case, 0.05, 0.01, 0.1, 1.0, 0.3)
        starts = jnp.asarray([-3.0, 0.0, 2.0])
        states = jax.vmap(run, (0, 0, None))(starts, -starts, 20000)
        np.testing.assert_allclose(states.outer, case.solution[0], atol=5e-3)
        np.testing.assert_allclose(states.inner, case.solution[1], atol=5e-3)

    def test_equation(self):
        """An inner loss that is linear in half its variable; λ = −1."""
        with jax.enable_x64(True):
            case = contract.coupled_equation(20)
            state = solver(case, 0.01, 0.008, 0.02, 10.0, 0.45)(case.outer, case.inner, 20000)
            gap = optax.tree.sub((state.outer, state.inner), case.solution)
            assert optax.tree.norm(gap) < 0.01 * optax.tree.norm(case.solution)
            np.testing.assert_allclose(state.extra.saddle[1], case.multipliers, atol=0.02)


@pytest.mark.paper(69)
class TestExact(chex.TestCase):
    @parameterized.parameters((0.5, 2.0), (0.5, 50.0))
    def test_step_is_the_gradient_of_the_value_function(self, gamma1, gamma2):
        """Of F / c + G − v with v in closed form, at a solved saddle point."""
        with jax.enable_x64(True):
            case = contract.coupled()
            x, y, c = 1.2, 0.7, 4.0
            init, step = bilevel.lv_hba(
                case.problem,
                optax.sgd(0.1),
                optax.sgd(1e-2),
                penalty=c,
                gamma1=gamma1,
                gamma2=gamma2,
                inner_steps=4000,
            )
            # At z = 0.2, where it is not yet, d_z has a part.
            state = init(x, y, DATA, jax.random.key(0))
            z = jnp.asarray([0.2])
            state = state._replace(extra=state.extra._replace(z=z))
            new, info = jax.jit(step)(state, DATA)

            def total(x, y, z):
                matrix = jnp.array([[1 + 1 / gamma1, 1.0], [1.0, -1 / gamma2]])
                theta, lam = jnp.linalg.solve(matrix, jnp.stack([2 * x + y / gamma1, 2 - x - z[0] / gamma2]))
                v = (
                    0.5 * (theta - 2 * x) ** 2
                    + lam * (x + theta - 2)
                    + (theta - y) ** 2 / (2 * gamma1)
                    - (lam - z[0]) ** 2 / (2 * gamma2)
                )
                f = 0.5 * (x - 2) ** 2 + 0.5 * (y - 1.5) ** 2
                return f / c + 0.5 * (y - 2 * x) ** 2 - v, (theta, lam)

            d, (theta, lam) = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(x, y, z)
            assert lam > 0
            np.testing.assert_allclose(new.extra.saddle[0], theta, rtol=1e-8)
            np.testing.assert_allclose(new.extra.saddle[1], [lam], rtol=1e-8)
            np.testing.assert_allclose((new.outer, new.inner), (x - 1e-2 * d[0], y - 1e-2 * d[1]), rtol=1e-8)
            np.testing.assert_allclose(new.extra.z, z - 0.1 * d[2], rtol=1e-8)
            np.testing.assert_allclose(info.metrics["hypergradient"], abs(d[0]), rtol=1e-8)

    def test_limit_is_the_penalty_gradient(self):
        """Without constraint and with γ₁ = ∞, c d_x is F2SA's direction at σ = 1/c."""
        with jax.enable_x64(True):
            case = contract.quadratic()
            txs = optax.sgd(case.inner_step), optax.sgd(1.0)
            init, step = bilevel.lv_hba(case.problem, *txs, penalty=20.0, gamma1=np.inf, inner_steps=1000)
            state = init(case.outer, case.inner, case.data, jax.random.key(0))
            new, _ = jax.jit(step)(state, case.data)
            moved = optax.tree.scale(20.0, optax.tree.sub(case.outer, new.outer))
            losses = bilevel.Losses(case.problem, ((), ()), case.data, jax.random.key(0))
            at = case.outer, case.inner, case.solution(case.outer), 1 / 20.0
            chex.assert_trees_all_close(moved, bilevel.penalty_hypergradient(losses, *at), rtol=1e-8)
            chex.assert_trees_all_close(new.extra.saddle[0], case.solution(case.outer), rtol=1e-8)


class TestOptions(chex.TestCase):
    def test_extragradient_turns_inward(self):
        """On λ θ alone, where forward steps spiral outward."""
        problem = bilevel.problem(
            lambda x, y, batch: 0 * y,
            lambda x, y, batch: 0 * y,
            constraint=lambda x, y: y[None],
            project=lambda x, y: (x, y),
        )
        reached = {}
        for extragradient in (True, False):
            init, step = bilevel.lv_hba(
                problem,
                optax.sgd(0.5),
                optax.sgd(0.0),
                equality=True,
                gamma1=np.inf,
                gamma2=np.inf,
                inner_steps=60,
                extragradient=extragradient,
            )
            state, _ = jax.jit(step)(init(0.0, 1.0, DATA, jax.random.key(0)), DATA)
            reached[extragradient] = optax.tree.norm(state.extra.saddle)
        assert reached[True] < 0.01 < 100 < reached[False]

    def test_bounds_of_multipliers_and_center(self):
        """λ ≥ 0 and z in [0, r] for inequalities, z in [−r, r] for equations, by entry."""
        problem = bilevel.problem(
            lambda x, y, batch: 0.5 * jnp.sum(y**2),
            lambda x, y, batch: 0.5 * jnp.sum(y**2),
            constraint=lambda x, y: y - jnp.asarray([5.0, 5.0, -5.0]),
            project=lambda x, y: (x, y),
        )
        init, step = bilevel.lv_hba(
            problem,
            optax.sgd(0.1),
            optax.sgd(0.0),
            equality=jnp.asarray([False, True, False]),
            bound=0.25,
            inner_steps=50,
        )
        state = init(0.0, jnp.zeros(3), DATA, jax.random.key(0))
        state = jax.jit(lambda s: jax.lax.fori_loop(0, 20, lambda _, s: step(s, DATA)[0], s))(state)
        lam = state.extra.saddle[1]
        assert lam[0] == 0
        assert lam[1] < -1
        assert lam[2] > 1
        np.testing.assert_allclose(state.extra.z, [0.0, -0.25, 0.25])

    def test_projection_of_theta(self):
        """With a constraint it is `project_inner` alone: the pair's projection is not Y's."""
        problem = bilevel.problem(
            lambda x, y, batch: (y - 3) ** 2,
            lambda x, y, batch: y**2,
            constraint=lambda x, y: y[None] - 9,
            project=lambda x, y: (x, jnp.clip(y, -1, 1)),
        )
        for options, end in (({}, 2.4), ({"project_inner": lambda y: jnp.clip(y, -1, 0.5)}, 0.5)):
            init, step = bilevel.lv_hba(problem, optax.sgd(0.4), optax.sgd(0.0), **options)
            state, _ = step(init(0.0, 0.0, DATA, jax.random.key(0)), DATA)
            np.testing.assert_allclose(state.extra.saddle[0], end, rtol=1e-6)

    def test_bad_options(self):
        problem, txs = contract.coupled(np.float32).problem, (optax.sgd(0.1), optax.sgd(0.1))
        for name in ("gamma1", "gamma2", "bound", "penalty"):
            with pytest.raises(ValueError, match=name):
                bilevel.lv_hba(problem, *txs, **{name: 0.0})
        with pytest.raises(ValueError, match="projection"):
            bilevel.lv_hba(problem._replace(project=None), *txs)
        init, _ = bilevel.lv_hba(problem._replace(constraint=lambda x, y: x + y - 2), *txs)
        with pytest.raises(ValueError, match="constraint must return a floating vector"):
            init(0.0, 0.0, DATA, jax.random.key(0))
        init, _ = bilevel.lv_hba(problem, *txs, equality=jnp.asarray([True, False]))
        with pytest.raises(ValueError, match="mask of shape"):
            init(0.0, 0.0, DATA, jax.random.key(0))
