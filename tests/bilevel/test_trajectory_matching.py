"""Trajectory matching: the paper's loss by numpy, its gradient, the exact cases, and each option."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel, losses, oracles, train

K, D, C, M, N = 3, 4, 2, 2, 5
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(K, D)), np.array([0, 1, 0])
Y = np.eye(C)[LABELS]
TRAJECTORY = {"w": RNG.normal(size=(M + 1, D, C)), "b": RNG.normal(size=(M + 1, C))}
ETA = 0.3
KEY = jax.random.key(3)


def model(params, inputs):
    return inputs @ params["w"] + params["b"]


def squares(params, inputs, targets):
    return jnp.mean(jnp.sum((model(params, inputs) - targets) ** 2, -1)) / 2


def cross_entropy(params, inputs, targets):
    return losses.cross_entropy(model(params, inputs), targets).mean()


def cast(tree, dtype):
    return jax.tree.map(lambda x: np.asarray(x, dtype), tree)


def arguments(dtype=np.float32, inputs=X, eta=ETA, **shared):
    params = {"inputs": np.asarray(inputs, dtype), "learning_rate": np.asarray(eta, dtype)}
    return params, {"shared": {"trajectory": cast(TRAJECTORY, dtype), **shared}}


def evaluate(objective, params, batch, key=None):
    value, (_, aux) = objective.apply(params, objective.init(params, batch, KEY), batch, key)
    return value, aux["metrics"]["ratios"]


def gradients(theta, x):
    """Of `squares` by the network's parameters."""
    error = (x @ theta["w"] + theta["b"] - Y) / K
    return {"w": x.T @ error, "b": error.sum(0)}


def distance(a, b):
    return sum(np.sum((a[name] - b[name]) ** 2) for name in a)


def epoch(j):
    return {name: leaf[j] for name, leaf in TRAJECTORY.items()}


def by_hand(x=X, eta=ETA, momentum=0.9, factor=1.0, frozen=None):
    """Ratios after ⌊N/M⌋ and N steps, and the gradients; `frozen` gives those of the first steps."""
    theta, moments, visited, used = epoch(0), {"w": 0.0, "b": 0.0}, {}, []
    for n in range(1, N + 1):
        g = frozen[n - 1] if frozen and n <= len(frozen) else gradients(theta, x)
        used.append(g)
        moments = {k: momentum * moments[k] + factor * g[k] for k in g}
        theta = {k: theta[k] - eta * moments[k] for k in theta}
        visited[n] = theta
    pairs = ((N // M, 1), (N, 2))
    return [distance(visited[n], epoch(j)) / distance(epoch(0), epoch(j)) for n, j in pairs], used


def difference(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.paper(171)
class TestExact:
    def test_is_the_papers_loss(self):
        """Momentum, matching on the way after ⌊5/2⌋ steps, and the two relative distances, in float64."""
        expected, _ = by_hand()
        with jax.enable_x64(True):
            objective = bilevel.trajectory_matching(squares, Y, steps=N, intermediate=0.7)
            value, ratios = evaluate(objective, *arguments(np.float64))
            np.testing.assert_allclose(ratios, expected, rtol=1e-12)
            np.testing.assert_allclose(value, expected[1] + 0.7 * expected[0], rtol=1e-12)

    @pytest.mark.parametrize("checkpoint", [True, False])
    def test_gradient_is_the_finite_difference(self, checkpoint):
        """By the synthetic examples and by the learning rate."""
        with jax.enable_x64(True):
            objective = bilevel.trajectory_matching(squares, Y, steps=N, checkpoint=checkpoint)
            params, batch = arguments(np.float64)
            value = jax.jit(jax.grad(lambda params: evaluate(objective, params, batch)[0]))
            gradient = value(params)
            direction = RNG.normal(size=X.shape)
            slope = difference(lambda x: sum(by_hand(x=x)[0]), X, direction)
            np.testing.assert_allclose(np.vdot(gradient["inputs"], direction), slope, rtol=1e-6)
            slope = difference(lambda eta: sum(by_hand(eta=eta)[0]), ETA, 1.0)
            np.testing.assert_allclose(gradient["learning_rate"], slope, rtol=1e-6)

    def test_examples_of_the_expert_itself_leave_no_loss(self):
        """x̃ = the real data and the expert one plain gradient step: L = 0, and it is a minimum."""
        with jax.enable_x64(True):
            params, _ = arguments(np.float64)
            start = epoch(0)
            g = jax.jit(jax.grad(cross_entropy))(start, X, LABELS)
            moved = {name: start[name] - ETA * g[name] for name in start}
            trajectory = {name: np.stack([start[name], moved[name]]) for name in start}
            objective = bilevel.trajectory_matching(cross_entropy, LABELS, steps=1, perturbation=0.0)
            state = objective.init(params, {"shared": {"trajectory": trajectory}}, KEY)
            batch = {"shared": {"trajectory": trajectory}}
            (value, _), gradient = jax.value_and_grad(objective.apply, has_aux=True)(
                params, state, batch, KEY
            )
            assert value < 1e-28
            assert optax.tree.norm(gradient) < 1e-13

    def test_learning_rate_zero_changes_nothing(self):
        """Without a step of their own the examples stay, while η learns."""
        tx = optax.partition(
            {"inputs": optax.sgd(0.0), "learning_rate": optax.sgd(1e-3)},
            {"inputs": "inputs", "learning_rate": "learning_rate"},
        )
        objective = bilevel.trajectory_matching(cross_entropy, LABELS, steps=N)
        params, batch = arguments()
        init, step = train.make_step(objective, oracles.plain(), tx)
        state, metrics = jax.jit(lambda: step(init(params, batch, KEY), batch))()
        np.testing.assert_array_equal(state.params["inputs"], params["inputs"])
        assert state.params["learning_rate"] != params["learning_rate"]
        assert set(metrics["terms"]) == {"final", "intermediate"}


@pytest.mark.paper(171)
class TestOptions:
    @pytest.mark.parametrize(("t", "factor"), [(0, 0.5568), (9, 0.7325), (10, 1.2920), (19, 1.7604)])
    def test_factor_balances_early_and_late_epochs(self, t, factor):
        """1 / log_5(18), 1 / log_5(9), log_5(8), log_5(17) for T = 20."""
        objective = bilevel.trajectory_matching(squares, Y, steps=N, start_epochs=20)
        _, ratios = evaluate(objective, *arguments(epoch=np.int32(t)))
        np.testing.assert_allclose(ratios, by_hand(factor=factor)[0], rtol=1e-3)

    def test_truncation_freezes_the_gradients_of_the_first_steps(self):
        """The value is the same; by η it is that of steps whose first gradients are constants."""
        _, used = by_hand()
        with jax.enable_x64(True):
            params, batch = arguments(np.float64)

            def by(truncation):
                objective = bilevel.trajectory_matching(squares, Y, steps=N, truncation=truncation)
                return jax.jit(jax.value_and_grad(lambda params: evaluate(objective, params, batch)[0]))(
                    params
                )

            value, gradient = by(3)
            np.testing.assert_allclose(value, sum(by_hand()[0]), rtol=1e-12)
            slope = difference(lambda eta: sum(by_hand(eta=eta, frozen=used[:2])[0]), ETA, 1.0)
            np.testing.assert_allclose(gradient["learning_rate"], slope, rtol=1e-6)
            direction = RNG.normal(size=X.shape)
            slope = difference(lambda x: sum(by_hand(x=x, frozen=used[:2])[0]), X, direction)
            np.testing.assert_allclose(np.vdot(gradient["inputs"], direction), slope, rtol=1e-6)
            chex.assert_trees_all_close(by(N), by(None), rtol=1e-12)

    def test_perturbation_is_relative_to_kernels_and_of_the_given_norm(self):
        """From ones, w moves by a d / ‖d‖: the mean of L over a step by +c and one by -c is 1 + ‖c‖² / a²."""
        start = {"w": jnp.ones((D, C)), "b": jnp.ones(C)}
        trajectory = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
        params, batch = (
            {"inputs": X, "learning_rate": jnp.float32(1.0)},
            {"shared": {"trajectory": trajectory}},
        )
        c = np.linspace(-1, 1, D * C).reshape(D, C).astype(np.float32)

        def of(sign, a):
            objective = bilevel.trajectory_matching(
                lambda theta, x, y: sign * jnp.vdot(theta["w"], c), (), steps=1, perturbation=a
            )
            return objective.apply(params, (), batch, KEY)[0]

        for a in (0.5, 2.0):
            np.testing.assert_allclose((of(1, a) + of(-1, a)) / 2, 1 + np.sum(c**2) / a**2, rtol=1e-4)

    def test_evaluation_is_not_perturbed(self):
        params, batch = arguments()
        perturbed, plain = (
            bilevel.trajectory_matching(squares, Y, steps=N, perturbation=a) for a in (1.0, 0.0)
        )
        np.testing.assert_array_equal(
            evaluate(perturbed, params, batch)[0], evaluate(plain, params, batch, KEY)[0]
        )
        assert evaluate(perturbed, params, batch, KEY)[0] != evaluate(perturbed, params, batch)[0]

    def test_options_may_be_traced_and_equal_shapes_trace_once(self):
        params, batch = arguments(epoch=np.int32(1))

        @jax.jit
        @functools.partial(chex.assert_max_traces, n=1)
        def value(params, batch, key, momentum, intermediate, start_epochs, perturbation):
            objective = bilevel.trajectory_matching(
                squares,
                Y,
                steps=N,
                momentum=momentum,
                intermediate=intermediate,
                start_epochs=start_epochs,
                perturbation=perturbation,
            )
            return evaluate(objective, params, batch, key)[0]

        options = (0.5, 1.0, 4.0, 0.1)
        first = value(params, batch, KEY, *options)
        other = {"shared": {**batch["shared"], "epoch": np.int32(3)}}
        assert value(params, other, KEY, 0.6, 0.5, 8.0, 0.2) != first
        fixed = bilevel.trajectory_matching(
            squares, Y, steps=N, momentum=0.5, start_epochs=4.0, perturbation=0.1
        )
        np.testing.assert_allclose(first, evaluate(fixed, params, batch, KEY)[0], rtol=1e-5)

    def test_maps_over_experts(self):
        params, batch = arguments()
        objective = bilevel.trajectory_matching(squares, Y, steps=N)
        experts = {
            "shared": jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf]), batch["shared"]),
        }
        mapped = jax.vmap(lambda batch: evaluate(objective, params, batch)[0])(experts)
        for i in range(2):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], experts)
            np.testing.assert_allclose(mapped[i], evaluate(objective, params, own)[0], rtol=1e-5)

    def test_half_precision_is_computed_in_float32(self):
        params, batch = arguments(jnp.bfloat16)
        objective = bilevel.trajectory_matching(squares, np.float32(Y), steps=N)
        value, ratios = evaluate(objective, params, batch)
        assert value.dtype == ratios.dtype == jnp.float32
        raised = cast((params, batch), np.float32)
        np.testing.assert_allclose(value, evaluate(objective, *raised)[0], rtol=1e-5)


@pytest.mark.paper(171)
class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps must be at least 1"),
            ({"steps": 3, "truncation": 4}, "truncation must lie between 1 and steps=3; got 4"),
            ({"truncation": 0}, "truncation must lie between 1"),
            ({"momentum": 1.0}, "momentum must lie in"),
            ({"perturbation": -1.0}, "perturbation must lie in"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            bilevel.trajectory_matching(squares, Y, **options)

    def test_trajectory_of_too_few_or_too_many_epochs(self):
        params, batch = arguments()
        for steps, size in ((N, 1), (1, 3)):
            cut = {"shared": jax.tree.map(lambda leaf, n=size: leaf[:n], batch["shared"])}
            with pytest.raises(ValueError, match=f"between 2 and steps \\+ 1 = {steps + 1} epochs"):
                bilevel.trajectory_matching(squares, Y, steps=steps).init(params, cut, KEY)

    def test_missing_entries(self):
        params, batch = arguments()
        objective = bilevel.trajectory_matching(squares, Y, start_epochs=4)
        with pytest.raises(ValueError, match=r"batch\['shared'\] must hold 'epoch'; got \['trajectory'\]"):
            objective.init(params, batch, KEY)
        with pytest.raises(ValueError, match="must hold 'trajectory' and 'epoch'"):
            objective.init(params, {"inputs": X}, KEY)
        with pytest.raises(ValueError, match="dict of 'inputs' and 'learning_rate'; got ndarray"):
            objective.init(params["inputs"], batch, KEY)
