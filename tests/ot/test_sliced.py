"""Sliced transport: POT on the same lines, closed forms, blocks, padding, and as a loss to train with."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ot as pot
import pytest

from jaxdiv import objectives, ot
from jaxdiv.ot.sliced import directions

RNG = np.random.default_rng(13)
X, Y = RNG.normal(size=(8, 3)), 0.5 + RNG.normal(size=(6, 3)) * [1.0, 2.0, 0.5]
A, B = RNG.dirichlet(np.ones(8)), RNG.dirichlet(np.ones(6))
KEY = jax.random.key(3)

sliced = jax.jit(functools.partial(ot.sliced, key=KEY))


@jax.jit
def value_and_gradients(x, y, a, b):
    return jax.value_and_grad(functools.partial(ot.sliced, key=KEY), (0, 1, 2, 3))(x, y, a, b)


@jax.jit
def max_value_and_gradients(x, y, a, b):
    return jax.value_and_grad(functools.partial(ot.max_sliced, key=KEY), (0, 1, 2, 3))(x, y, a, b)


class TestSliced:
    @pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
    def test_equals_pot_on_the_same_lines(self, p):
        with jax.enable_x64(True):
            lines = np.asarray(directions(KEY, 50, 3, jnp.float64)).T
            weighted, equal = sliced(X, Y, A, B, p=p), sliced(X, Y, p=p)
        np.testing.assert_allclose(np.linalg.norm(lines, axis=0), 1.0, rtol=1e-14)
        for value, weights in ((weighted, (A, B)), (equal, (None, None))):
            expected = pot.sliced_wasserstein_distance(X, Y, *weights, p=p, projections=lines) ** p
            np.testing.assert_allclose(value, expected, rtol=1e-12)

    def test_a_shift_costs_its_square_over_d(self):
        """E <theta, t>^2 = |t|^2/d, variance |t|^4 (2d - 2)/(d^2 (d + 2)): 1.2 of 70/3 is 4 sigma."""
        shift = np.array([3.0, -5.0, 6.0])
        fn = jax.jit(functools.partial(ot.sliced, num_projections=5000))
        value = fn(X, X + shift, key=jax.random.key(0))
        assert abs(value - 70 / 3) < 1.2
        assert value != fn(X, X + shift, key=jax.random.key(1))

    def test_on_the_line_is_the_univariate_cost(self):
        with jax.enable_x64(True):
            value = sliced(X[:, :1], Y[:, :1], A, B, p=1.5)
            line = jax.jit(ot.univariate)(X[:, 0], Y[:, 0], A, B, p=1.5)
        np.testing.assert_allclose(value, line, rtol=1e-13)

    def test_finite_differences(self):
        h = 1e-6
        u, v, s, t = (RNG.normal(size=z.shape) for z in (X, Y, A, B))
        s, t = (s - s.mean()) / 100, (t - t.mean()) / 100
        with jax.enable_x64(True):
            _, grads = value_and_gradients(X, Y, A, B)
            slope = sum(np.vdot(g, w) for g, w in zip(grads, (u, v, s, t), strict=True))
            there, back = (float(sliced(X + r * u, Y + r * v, A + r * s, B + r * t, p=2.0)) for r in (h, -h))
            np.testing.assert_allclose(slope, (there - back) / (2 * h), rtol=1e-6)

    def test_blocks_bound_memory_and_change_nothing(self, monkeypatch):
        """A block of 8 lines: same value and gradient, and 256 lines need no more memory than 64."""
        x, y = (jnp.asarray(RNG.normal(size=(256, 3)), jnp.float32) for _ in range(2))

        def lowered(num):
            fn = functools.partial(ot.sliced, key=KEY, num_projections=num)
            return jax.jit(lambda x, y: jax.value_and_grad(fn, (0, 1))(x, y)).lower(x, y).compile()

        whole = lowered(64)
        monkeypatch.setattr(sys.modules[directions.__module__], "_BLOCK", 8 * 512)
        few, many = lowered(60), lowered(256)
        assert few.memory_analysis().temp_size_in_bytes * 3 < whole.memory_analysis().temp_size_in_bytes
        assert many.memory_analysis().temp_size_in_bytes < 1.5 * few.memory_analysis().temp_size_in_bytes
        chex.assert_trees_all_close(lowered(64)(x, y), whole(x, y), rtol=1e-5, atol=1e-7)


class TestMaxSliced:
    def test_of_a_point_is_the_largest_eigenvalue(self):
        """From the origin W_2^2 along theta is theta' M theta, with gradient 2 a_i <x_i, v> v at the top."""
        origin = np.zeros((1, 3))
        with jax.enable_x64(True):
            value, (of_x, *_) = max_value_and_gradients(X, origin, A, np.ones(1))
        value, of_x = np.asarray(value), np.asarray(of_x)
        values, vectors = np.linalg.eigh((X * A[:, None]).T @ X)
        top = vectors[:, -1]
        assert value <= values[-1] * (1 + 1e-12)
        np.testing.assert_allclose(value, values[-1], rtol=1e-4)
        np.testing.assert_allclose(of_x, 2 * A[:, None] * (X @ top)[:, None] * top, atol=1e-2)

    def test_is_at_least_the_mean_and_better_than_the_lines_tried(self):
        with jax.enable_x64(True):
            value = float(max_value_and_gradients(X, Y, A, B)[0])
            lines = np.asarray(directions(KEY, 50, 3, jnp.float64))
            mean = float(sliced(X, Y, A, B, p=2.0))
        tried = [pot.wasserstein_1d(X @ line, Y @ line, A, B, p=2) for line in lines]
        dense = RNG.normal(size=(3000, 3))
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        best = max(pot.wasserstein_1d(X @ line, Y @ line, A, B, p=2) for line in dense)
        assert mean < max(tried) < value
        assert value > best * (1 - 1e-4)

    def test_options_may_be_traced(self):
        x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
        fn = functools.partial(ot.max_sliced, x, y, key=KEY, num_projections=4, steps=8)
        values = jax.jit(jax.vmap(lambda rate, p: fn(learning_rate=rate, p=p)))(
            jnp.array([0.1, 0.2]), jnp.array([2.0, 1.0])
        )
        assert values[0] > values[1] > 0


class TestNumerics:
    @pytest.mark.parametrize("fn", [value_and_gradients, max_value_and_gradients], ids=["mean", "max"])
    def test_weight_zero_is_absent(self, fn):
        """Padding may hold anything, NaN included, and has gradient 0."""
        a = np.append(A[:5] / A[:5].sum(), np.zeros(3))
        x = np.concatenate([X[:5], [[np.nan] * 3, [1e30] * 3, [0.0, np.inf, 1.0]]])
        x, y, a, b = (z.astype(np.float32) for z in (x, Y, a, B))
        value, grads = jax.tree.map(np.asarray, fn(x, y, a, b))
        short, expected = fn(x[:5], y, a[:5], b)
        np.testing.assert_allclose(value, short, rtol=1e-5)
        chex.assert_tree_all_finite(grads)
        np.testing.assert_array_equal(grads[0][5:], 0.0)
        np.testing.assert_allclose(grads[0][:5], expected[0], rtol=1e-3, atol=1e-5)

    def test_far_from_the_origin(self):
        x, y = (np.round(z * 8) / 8 for z in (X, Y))
        near = sliced(*(jnp.asarray(z, jnp.float32) for z in (x, y)), p=2.0)
        far = sliced(*(jnp.asarray(z + 2.0**18, jnp.float32) for z in (x, y)), p=2.0)
        np.testing.assert_allclose(far, near, rtol=1e-6)

    def test_vmap_is_a_loop_and_equal_shapes_do_not_retrace(self):
        x, y = RNG.normal(size=(3, 8, 3)).astype(np.float32), Y.astype(np.float32)
        a, b = RNG.dirichlet(np.ones(8), 3).astype(np.float32), B.astype(np.float32)
        keys, powers = jax.random.split(KEY, 3), jnp.array([1.0, 1.5, 2.0])

        def call(x, a, key, p):
            return ot.sliced(x, y, a, b, key=key, p=p, num_projections=5)

        one = jax.jit(chex.assert_max_traces(call, n=1))
        each = [one(x[i], a[i], keys[i], powers[i]) for i in range(3)]
        np.testing.assert_allclose(jax.jit(jax.vmap(call))(x, a, keys, powers), each, rtol=1e-5)


class TestTraining:
    def test_points_move_onto_a_ring(self):
        """Twenty points from one corner end where SW_2 to the ring is a twentieth of the start's."""
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ring = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
        points = jnp.asarray(2.0 + 0.1 * RNG.normal(size=(20, 2)), jnp.float32)
        tx = optax.adam(0.1)

        @jax.jit
        def fit(points, key):
            def step(carry, key):
                points, state = carry
                value, grads = jax.value_and_grad(ot.sliced)(points, ring, key=key, num_projections=20)
                updates, state = tx.update(grads, state)
                return (optax.apply_updates(points, updates), state), value

            return jax.lax.scan(step, (points, tx.init(points)), jax.random.split(key, 100))

        (points, _), values = fit(points, KEY)
        assert values[-10:].mean() < values[0] / 400
        radii = np.linalg.norm(points, axis=1)
        assert np.abs(radii - 1.0).mean() < 0.1

    def test_as_a_batch_loss_padding_is_absent(self):
        """Outputs against a sample of targets in a chain; a padded example changes nothing."""
        chain = objectives.chain(
            objectives.forward(lambda params, state, inputs, key: (inputs @ params, state)),
            objectives.batch_loss(
                lambda x, y, weights: ot.sliced(x, y, weights, weights, key=KEY) / jnp.sum(weights),
                name="sliced",
            ),
        )
        params = jnp.eye(3, dtype=jnp.float32)
        batch = {"inputs": jnp.asarray(X[:6], jnp.float32), "targets": jnp.asarray(Y, jnp.float32)}
        state = chain.init(params, batch, KEY)

        @jax.jit
        def value_and_grad(params, batch):
            return jax.value_and_grad(chain.apply, has_aux=True)(params, state, batch, KEY)

        (value, _), grads = value_and_grad(params, batch)
        np.testing.assert_allclose(value, sliced(batch["inputs"], batch["targets"], p=2.0), rtol=1e-5)
        padded = jax.tree.map(lambda z: jnp.concatenate([z, jnp.full((2, 3), 7.0)]), batch)
        padded["weights"] = jnp.array([1.0] * 6 + [0.0] * 2)
        (same, _), same_grads = value_and_grad(params, padded)
        np.testing.assert_allclose(same, value, rtol=1e-5)
        np.testing.assert_allclose(same_grads, grads, rtol=1e-4, atol=1e-5)


SIX = np.ones((6, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SIX[0], SIX[0]), {}, "x must have rank 2"),
        ((SIX, SIX[:, :2]), {}, "points of one dimension"),
        ((SIX, SIX.astype(int)), {}, "y must be floating"),
        ((SIX, SIX, np.ones(6)), {}, "one mass"),
        ((SIX, SIX, np.ones((6, 1))), {}, "a must have one weight"),
        ((SIX, SIX), {"p": 0.5}, "p must lie in"),
        ((SIX, SIX), {"num_projections": 0}, "num_projections must be at least 1"),
    ],
)
def test_bad_input(arguments, options, message):
    for fn in (ot.sliced, ot.max_sliced):
        with pytest.raises(ValueError, match=message):
            fn(*arguments, key=KEY, **options)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        ot.max_sliced(SIX, SIX, key=KEY, steps=0)
