"""Adaptive sharpness and the Hessian behind it: closed forms, invariance, chunks, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.diagnostics.hessian import hessian_eigenvalues, hessian_trace
from jaxdiv.diagnostics.sharpness_average import sharpness_average
from jaxdiv.diagnostics.sharpness_worst import checkpoints, sharpness_worst

RNG = np.random.default_rng(188)
KEY = jax.random.key(0)
ROOT = RNG.normal(size=(6, 6))
MATRIX = ROOT @ ROOT.T + np.diag([8.0, 0, 0, 0, 0, 0])
CENTER = {"a": np.array([1.0, -2.0]), "b": np.array([[0.5, 3.0], [-1.0, 0.2]])}
SIZES = np.array([1.0, 2.0, 0.5, 3.0, 1.0, 0.2])


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def quadratic(params, matrix):
    """½ (w − w*)ᵀ H (w − w*), minimal at CENTER."""
    gap = flat(params) - flat(CENTER)
    return gap @ matrix @ gap / 2


def linear(params, slope):
    return jnp.dot(flat(params), slope)


def relu_net(params, batch):
    hidden = jax.nn.relu(batch["inputs"] @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch["targets"]) ** 2)


NET = {
    "in": RNG.normal(size=(3, 5)).astype(np.float32),
    "bias": RNG.normal(size=5).astype(np.float32),
    "out": RNG.normal(size=5).astype(np.float32),
}
BATCH = {
    "inputs": RNG.normal(size=(8, 3)).astype(np.float32),
    "targets": RNG.normal(size=8).astype(np.float32),
}
RESCALED = {"in": NET["in"] * 0.125, "bias": NET["bias"] * 0.125, "out": NET["out"] * 8}

worst = jax.jit(sharpness_worst, static_argnames=("loss_fn", "geometry", "m", "steps"))
average = jax.jit(sharpness_average, static_argnames=("loss_fn", "adaptive", "m", "samples"))
eigenvalues = jax.jit(hessian_eigenvalues, static_argnames=("loss_fn", "k", "adaptive"))
trace_of = jax.jit(hessian_trace, static_argnames=("loss_fn", "adaptive", "num_probes"))


@pytest.mark.paper(188)
class TestExact:
    @pytest.mark.parametrize(("geometry", "scale"), [("l2", np.ones(6)), ("adaptive", SIZES)])
    def test_worst_of_a_quadratic_is_half_the_largest_eigenvalue(self, geometry, scale):
        """At the minimum the maximum over ‖δ ⊘ c‖ ≤ ρ is (ρ²/2) λmax(diag(c) H diag(c))."""
        with jax.enable_x64(True):
            value = float(worst(quadratic, CENTER, MATRIX, 0.3, geometry=geometry, steps=60, key=KEY))
        expected = 0.3**2 / 2 * np.linalg.eigvalsh(scale[:, None] * MATRIX * scale)[-1]
        np.testing.assert_allclose(value, expected, rtol=1e-3)
        assert value <= expected * (1 + 1e-12)

    @pytest.mark.parametrize(
        ("geometry", "scale", "order"),
        [("linf", np.ones(6), 1), ("adaptive_linf", SIZES, 1), ("adaptive", SIZES, 2)],
    )
    def test_worst_of_a_linear_loss_is_the_dual_norm(self, geometry, scale, order):
        slope = RNG.normal(size=6)
        with jax.enable_x64(True):
            value = worst(linear, CENTER, slope, 0.1, geometry=geometry, key=KEY)
        np.testing.assert_allclose(value, 0.1 * np.linalg.norm(scale * slope, order), rtol=1e-9)

    @pytest.mark.parametrize(("adaptive", "scale"), [(False, np.ones(6)), (True, SIZES)])
    def test_average_of_a_quadratic_is_half_the_trace(self, adaptive, scale):
        with jax.enable_x64(True):
            value, error = map(
                float, average(quadratic, CENTER, MATRIX, 0.3, adaptive=adaptive, samples=4000, key=KEY)
            )
        expected = 0.3**2 / 2 * np.trace(scale[:, None] * MATRIX * scale)
        assert abs(value - expected) < 4 * error < 0.2 * expected

    @pytest.mark.parametrize(("adaptive", "scale"), [(False, np.ones(6)), (True, SIZES)])
    def test_hessian_of_a_quadratic(self, adaptive, scale):
        matrix = scale[:, None] * MATRIX * scale
        with jax.enable_x64(True):
            pairs = eigenvalues(quadratic, CENTER, MATRIX, k=2, adaptive=adaptive, key=KEY)
            trace, error = map(
                float, trace_of(quadratic, CENTER, MATRIX, adaptive=adaptive, num_probes=400, key=KEY)
            )
        np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(matrix)[:-3:-1], rtol=1e-9)
        assert abs(trace - np.trace(matrix)) < 4 * error < np.trace(matrix)

    def test_checkpoints_are_those_of_auto_pgd(self):
        """100 steps: the list of Croce and Hein's schedule, 0.22 first and then 0.03 shorter down to 0.06."""
        assert (np.flatnonzero(checkpoints(100)) + 1).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
        assert checkpoints(1).tolist() == [True]


@pytest.mark.paper(188)
class TestInvariance:
    @pytest.mark.parametrize("geometry", ["adaptive", "adaptive_linf"])
    def test_adaptive_worst_does_not_see_a_rescaling(self, geometry):
        """A power of two scales without rounding, so that the whole ascent repeats."""
        values = [worst(relu_net, net, BATCH, 0.05, geometry=geometry, key=KEY) for net in (NET, RESCALED)]
        np.testing.assert_allclose(*values, rtol=1e-5)
        assert values[0] > 0

    def test_adaptive_average_and_hessian_do_not_either(self):
        values = [average(relu_net, net, BATCH, 0.05, samples=20, key=KEY)[0] for net in (NET, RESCALED)]
        np.testing.assert_allclose(*values, rtol=1e-5)
        tops = [eigenvalues(relu_net, net, BATCH, adaptive=True, key=KEY).values for net in (NET, RESCALED)]
        np.testing.assert_allclose(*tops, rtol=1e-4)

    def test_standard_ones_do(self):
        values = [worst(relu_net, net, BATCH, 0.05, geometry="linf", key=KEY) for net in (NET, RESCALED)]
        assert values[1] > 2 * values[0]
        values = [
            average(relu_net, net, BATCH, 0.05, adaptive=False, samples=20, key=KEY)[0]
            for net in (NET, RESCALED)
        ]
        assert values[1] > 2 * values[0]


@pytest.mark.paper(188)
class TestWorst:
    def test_finds_more_than_random_corners(self):
        """Auto-PGD beats the best of 2000 random corners of the cube, and stays inside the cube."""
        found = worst(relu_net, NET, BATCH, 0.2, geometry="adaptive_linf", key=KEY)

        def corner(key):
            signs = jax.tree.map(lambda w: 0.2 * w * jax.random.rademacher(key, w.shape), NET)
            return relu_net(jax.tree.map(jnp.add, NET, signs), BATCH) - relu_net(NET, BATCH)

        assert found > jnp.max(jax.vmap(corner)(jax.random.split(KEY, 2000)))

    def test_chunks_are_maximized_apart(self):
        """m-sharpness is the mean over the chunks, and at least that of the batch: a mean of maxima."""
        whole = worst(relu_net, NET, BATCH, 0.1, key=KEY)
        chunked = worst(relu_net, NET, BATCH, 0.1, m=4, key=KEY)
        halves = [
            worst(
                relu_net,
                NET,
                jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], BATCH),
                0.1,
                steps=60,
                key=KEY,
            )
            for i in range(2)
        ]
        np.testing.assert_allclose(chunked, np.mean(halves), rtol=1e-3)
        assert chunked >= whole
        np.testing.assert_allclose(worst(relu_net, NET, BATCH, 0.1, m=8, key=KEY), whole, rtol=1e-6)

    def test_where_holds_a_part_still(self):
        with jax.enable_x64(True):
            value = worst(linear, CENTER, np.ones(6), 0.1, where={"a": 0.0, "b": 1.0}, key=KEY)
        np.testing.assert_allclose(value, 0.1 * SIZES[2:].sum(), rtol=1e-9)

    def test_radius_may_be_traced_and_mapped(self):
        chex.clear_trace_counter()
        traced = chex.assert_max_traces(lambda rho: sharpness_worst(relu_net, NET, BATCH, rho, key=KEY), n=1)
        mapped = jax.jit(jax.vmap(traced))
        values = mapped(jnp.array([0.0, 0.01, 0.1]))
        assert values[0] == 0
        assert values[0] < values[1] < values[2]
        mapped(jnp.array([0.2, 0.3, 0.4]))

    def test_zero_weights_and_half_precision(self):
        net = jax.tree.map(lambda w: jnp.asarray(w).at[..., 0].set(0).astype(jnp.bfloat16), NET)
        value = worst(relu_net, net, BATCH, 0.1, geometry="adaptive", key=KEY)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)

    def test_nan_is_not_hidden(self):
        """The loss is NaN only outside a small ball, where the ascent leads."""

        def cliff(w, limit):
            return jnp.where(jnp.abs(w[0]) < limit, w[0], jnp.nan)

        for steps in (1, 20):
            assert np.isnan(worst(cliff, np.ones(1, np.float32), 1.05, 0.2, steps=steps, key=KEY))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"geometry": "leafwise"}, "geometry must be one of 'l2', 'linf', 'adaptive', 'adaptive_linf'"),
            ({"rho": -1.0}, "rho must lie in"),
            ({"steps": 0}, "steps must be at least 1; got 0"),
            ({"m": 3}, "m must divide the number of examples 8; got 3"),
            ({"loss_fn": lambda p, b: b["targets"]}, "loss_fn\\(params, batch\\) must be a scalar"),
            ({"params": {"w": jnp.arange(3)}}, "params\\['w'\\] must be floating point"),
        ],
    )
    def test_errors(self, options, message):
        arguments = {"loss_fn": relu_net, "params": NET, "batch": BATCH, "rho": 0.1, "key": KEY, **options}
        with pytest.raises(ValueError, match=message):
            sharpness_worst(**arguments)


@pytest.mark.paper(188)
class TestAverage:
    def test_chunks_do_not_enter_the_error(self):
        """Without noise every chunk gives 0; a single draw has no error."""
        value, error = average(relu_net, NET, BATCH, 0.0, m=2, samples=2, key=KEY)
        np.testing.assert_array_equal([value, error], 0)
        assert np.isnan(average(relu_net, NET, BATCH, 0.1, samples=1, key=KEY)[1])

    def test_shared_entries_are_not_chunked(self):
        def loss(w, batch):
            return jnp.mean(batch["inputs"] @ w) * jnp.sum(batch["shared"])

        batch = {"inputs": np.ones((4, 2), np.float32), "shared": np.ones(3, np.float32)}
        value, _ = average(loss, np.ones(2, np.float32), batch, 0.1, m=2, samples=2, key=KEY)
        assert np.isfinite(value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"rho": -1.0}, "rho must lie in"), ({"samples": 0}, "samples must be at least 1; got 0")],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            sharpness_average(relu_net, NET, BATCH, **{"rho": 0.1, "key": KEY, **options})
