"""Monge gap: exact gaps by assignment, ott-jax's values, which maps have none under which cost, as a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ott.geometry import costs, pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

from jaxdiv import core, objectives, ot

PSD = np.array([[1.5, 0.3], [0.3, 0.6]])
ROTATION = np.array([[0.0, -1.0], [1.0, 0.0]])
RNG = np.random.default_rng(2)
X, TX, W = RNG.normal(size=(8, 2)), RNG.normal(size=(8, 2)), RNG.dirichlet(np.ones(8))


def half_square(x, y):
    return 0.5 * jnp.sum((x - y) ** 2)


@jax.jit
def half(x, tx):
    return ot.monge_gap(x, tx, cost=half_square, epsilon=0.1, solver=ot.Sinkhorn())


@jax.jit
def weighted(x, tx, weights):
    return ot.monge_gap(x, tx, weights, epsilon=0.3, solver=ot.Sinkhorn(tol=1e-11))


@jax.jit
def entropic(x, tx, weights):
    solver = ot.Sinkhorn(tol=1e-11)
    return ot.monge_gap(x, tx, weights, epsilon=0.3, normalization="entropy", solver=solver)


def exact_gap(x, tx):
    cost = 0.5 * np.sum((x[:, None] - tx) ** 2, -1)
    return (np.trace(cost) - cost[scipy.optimize.linear_sum_assignment(cost)].sum()) / len(x)


@pytest.mark.paper(9)
class TestExact:
    @pytest.mark.parametrize("seed", range(3))
    def test_lies_within_epsilon_log_n_below_the_assignment(self, seed):
        """A rotation by 90 degrees has the gap 2 in the limit, an affine map with a PSD matrix none."""
        x = np.random.default_rng(seed).normal(size=(128, 2))
        for tx, lowest, highest in (
            (x @ ROTATION.T, 1.4, 2.4),
            (x @ PSD + 1.0, 0.0, 1e-9),
            (x + 3.0, 0.0, 1e-9),
        ):
            gap = exact_gap(x, tx)
            assert lowest <= gap + 1e-12
            assert gap <= highest
            value = float(half(np.float32(x), np.float32(tx)).value)
            assert gap - 0.1 * np.log(128) - 1e-4 <= value <= gap + 1e-4

    def test_equals_ott(self):
        with jax.enable_x64(True):
            cloud = pointcloud.PointCloud(X, TX, cost_fn=costs.SqEuclidean(), epsilon=0.3)
            problem = linear_problem.LinearProblem(cloud, a=W, b=W)
            out = jax.jit(sinkhorn.Sinkhorn(threshold=1e-11))(problem)
            mean = W @ np.sum((X - TX) ** 2, -1)
            np.testing.assert_allclose(weighted(X, TX, W).value, mean - out.kl_reg_cost, rtol=1e-9)
            np.testing.assert_allclose(entropic(X, TX, W).value, mean - out.ent_reg_cost, rtol=1e-9)

    def test_the_entropies_differ_by_a_constant(self):
        with jax.enable_x64(True):
            gap = float(entropic(X, TX, W).value - weighted(X, TX, W).value)
            np.testing.assert_allclose(gap, -2 * 0.3 * np.sum(W * np.log(W)), rtol=1e-12)
            grads = [jax.grad(lambda t, fn=fn: fn(X, t, W).value)(TX) for fn in (weighted, entropic)]
        np.testing.assert_allclose(*grads, rtol=1e-12)

    def test_finite_differences(self):
        h, u, v = 1e-5, *RNG.normal(size=(2, 8, 2))
        with jax.enable_x64(True):
            grads = jax.grad(lambda x, t: weighted(x, t, W).value, (0, 1))(X, TX)
            slope = np.vdot(grads[0], u) + np.vdot(grads[1], v)
            there, back = (float(weighted(X + r * u, TX + r * v, W).value) for r in (h, -h))
        np.testing.assert_allclose(slope, (there - back) / (2 * h), rtol=1e-6)

    def test_crossing_on_the_line_is_optimal_for_distances_alone(self):
        """0 -> 3 and 1 -> 2: mean costs 2 and 2 by |x - y|, 5 and 4 by its square, uncrossed second."""
        x, tx = np.float32([[0.0], [1.0]]), np.float32([[3.0], [2.0]])

        @jax.jit
        def gaps(x, tx):
            costs = (ot.Euclidean(), ot.SqEuclidean())
            return [ot.monge_gap(x, tx, cost=c, epsilon=1e-3, solver=ot.Sinkhorn()).value for c in costs]

        np.testing.assert_allclose(gaps(x, tx), [0.0, 1.0], atol=1e-3)


@pytest.mark.paper(9)
class TestProperties:
    def test_grows_with_the_angle_of_a_rotation(self):
        x = np.float32(np.random.default_rng(0).normal(size=(128, 2)))

        def of_angle(angle):
            c, s = jnp.cos(angle), jnp.sin(angle)
            return half(x, x @ jnp.stack([jnp.stack([c, s]), jnp.stack([-s, c])])).value

        slopes = jax.jit(jax.vmap(jax.grad(of_angle)))(np.float32([0.5, 1.0, 1.5]))
        assert np.all(slopes > 0.5)

    def test_the_reference_may_be_another_measure(self):
        """x -> |x| is optimal on the positive half-line, not on the whole."""
        x = X * [4.0, 0.0]
        with jax.enable_x64(True):
            none, some = (float(weighted(x, abs(x), w).value) for w in (W * (x[:, 0] > 0), W))
        assert none <= 0 < 0.1 < some

    def test_weights_are_normalized_and_0_is_absent(self):
        x, tx = (np.concatenate([z, np.full((3, 2), 9.0)]) for z in (X, TX))
        with jax.enable_x64(True):
            value = weighted(x, tx, 5 * np.append(W, np.zeros(3))).value
            np.testing.assert_allclose(value, weighted(X, TX, W).value, rtol=1e-9)

    def test_is_a_loss_in_a_chain_with_the_divergence(self):
        """Fit and gap are two batch losses; rows of weight 0 do not count."""

        def fit(tx, y, weights):
            w = weights / jnp.sum(weights)
            return ot.sinkhorn_divergence(tx, y, w, w, epsilon=0.1, solver=ot.Sinkhorn()).value

        def gap(tx, x, weights):
            return ot.monge_gap(x, tx, weights, epsilon=0.1, solver=ot.Sinkhorn()).value

        objective = objectives.chain(
            objectives.forward(lambda params, state, x, key: (x @ params, state)),
            objectives.batch_loss(fit),
            objectives.batch_loss(gap, target="inputs", weight=2.0),
        )
        x, y = np.float32(X), np.float32(TX)
        weights = np.float32([1, 1, 1, 1, 1, 1, 0, 0])
        batch = {"inputs": x, "targets": y, "weights": weights}
        garbage = batch | {"inputs": np.where(weights[:, None] > 0, x, 30.0).astype(np.float32)}
        params, key = np.float32(PSD), jax.random.key(0)
        state = objective.init(params, batch, key)
        apply = jax.jit(jax.value_and_grad(objective.apply, has_aux=True))
        (value, (_, aux)), gradient = apply(params, state, batch, key)
        (again, _), same = apply(params, state, garbage, key)
        assert set(aux["terms"]) == {"fit", "gap"}
        np.testing.assert_allclose(value, sum(aux["terms"].values()), rtol=1e-6)
        np.testing.assert_allclose(again, value, rtol=1e-4)
        np.testing.assert_allclose(same, gradient, rtol=1e-2, atol=1e-4)


class TestBorders:
    def test_status(self):
        out = ot.monge_gap(np.float32(X), np.float32(TX), epsilon=1e-3, solver=ot.Sinkhorn(max_steps=2))
        assert out.status == core.Status.MAX_STEPS
        assert out.error == out.transport.error > 1e-4
        with pytest.raises(RuntimeError, match="MAX_STEPS"):
            out.raise_if_failed()

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="tx must hold the image of each x"):
            ot.monge_gap(X, TX[:5])
        with pytest.raises(ValueError, match="normalization must be one of 'kl', 'entropy'"):
            ot.monge_gap(X, TX, normalization="none")
        with pytest.raises(ValueError, match="weights must lie in"):
            ot.monge_gap(X, TX, -W)
        with pytest.raises(ValueError, match="shape"):
            ot.monge_gap(X, TX, W[:3])
