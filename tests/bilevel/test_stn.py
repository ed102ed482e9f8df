"""Self-tuning networks: exact hypergradients where the response is exact, and what the noise is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiv import bilevel

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
N, D = 20, 5
X, XV = RNG.normal(size=(2, N, D))
T, TV = RNG.normal(size=(2, N))
STILL = optax.set_to_zero()
MOVE = optax.sgd(1.0)


def _ridge(answer=1.0):
    """Ridge with penalty e^λ and the response w = φ0 + λ φ1."""

    def parts(lam, phi, batch):
        x, t = batch
        w = phi[0] + answer * lam[:, None] * phi[1]
        return jnp.mean((jnp.sum(x * w, -1) - t) ** 2), jnp.mean(jnp.exp(lam) * jnp.sum(w**2, -1))

    return bilevel.problem(
        lambda lam, phi, b: sum(parts(lam, phi, b)), lambda lam, phi, b: parts(lam, phi, b)[0]
    )


def _gated(lam):
    """The theorem's gate: V diag(sigmoid(log(s² / n) − λ) / s) Uᵀ t."""
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    return jnp.asarray(vt.T) @ (jax.nn.sigmoid(jnp.log(s**2 / N) - lam) / s * (u.T @ T))


def _solution(lam):
    return jnp.linalg.solve(X.T @ X / N + jnp.exp(lam) * jnp.eye(D), X.T @ T / N)


def _data():
    return bilevel.Data((jnp.asarray(X), jnp.asarray(T)), (jnp.asarray(XV), jnp.asarray(TV)))


@pytest.mark.paper(144)
def test_gated_best_response_gives_the_exact_hypergradient():
    """The gate is ridge's solution, and the tangent of it turns STN's step into gradient descent on Φ."""
    with jax.enable_x64(True):
        lam = jnp.asarray(-0.7)
        w, slope = jax.jvp(_gated, (lam,), (jnp.ones_like(lam),))
        chex.assert_trees_all_close(w, _solution(lam), atol=1e-10, rtol=0)
        hypergradient = jax.grad(lambda lam: jnp.mean((XV @ _solution(lam) - TV) ** 2))(lam)
        init, step = bilevel.stn(_ridge(), STILL, MOVE, tune_scales=False)
        state, info = jax.jit(step)(init(lam, (w - lam * slope, slope), _data(), KEY), _data())
        chex.assert_trees_all_close(lam - state.outer, hypergradient, atol=1e-10, rtol=0)
        chex.assert_trees_all_close(info.value, jnp.mean((XV @ w - TV) ** 2), rtol=1e-12)
        chex.assert_trees_all_close(info.metrics["hypergradient"], jnp.abs(hypergradient), rtol=1e-9)


@pytest.mark.paper(144)
def test_response_that_can_be_exact_finds_the_exact_optimum():
    """Quadratic G has an affine y*(x): despite the noise, y = A x + b reaches it, and x the least Φ."""
    with jax.enable_x64(True):
        h = jnp.asarray([[2.0, 0.5], [0.5, 1.0]])
        b = jnp.asarray([[1.0, 0.3, 0.0], [-0.5, 1.0, 0.2]])

        def respond(x, phi):
            return x @ phi["slope"].T + phi["constant"]

        def inner(x, phi, batch):
            y = respond(x, phi)
            return jnp.mean(0.5 * jnp.sum(y * (y @ h), -1) - jnp.sum(y * (x @ b.T + 1), -1))

        def outer(x, phi, batch):
            return jnp.mean(0.5 * jnp.sum((respond(x, phi) - 0.5) ** 2, -1) + 0.05 * jnp.sum(x**2, -1))

        def exact(x):
            y = jnp.linalg.solve(h, b @ x + 1)
            return 0.5 * jnp.sum((y - 0.5) ** 2) + 0.05 * jnp.sum(x**2)

        data = bilevel.Data(jnp.zeros((8, 1)), jnp.zeros((8, 1)))
        init, step = bilevel.stn(
            bilevel.problem(inner, outer), optax.sgd(0.1), optax.sgd(0.05), tune_scales=False
        )
        phi = {"slope": jnp.zeros((2, 3)), "constant": jnp.zeros(2)}
        state = init(jnp.ones(3), phi, data, KEY)
        state, info = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, data), s, length=3000))(state)
        assert np.linalg.norm(jax.grad(exact)(state.outer)) < 1e-6
        chex.assert_trees_all_close(
            respond(state.outer, state.inner), jnp.linalg.solve(h, b @ state.outer + 1)
        )
        assert int(info.metrics["gradients"][-1]) == 3


@pytest.mark.paper(144)
def test_without_a_response_nothing_moves_the_hyperparameters():
    """V = 0 gives a gradient of exactly zero, with the noise, with the scales tuned, and without either."""
    for options in ({"sigma": 0.0, "tune_scales": False}, {"tune_scales": False}, {"tau": 0.0}):
        init, step = bilevel.stn(_ridge(answer=0.0), optax.sgd(0.01), MOVE, **options)
        state = init(-4.0, (jnp.ones(D), jnp.ones(D)), _data(), KEY)
        after, info = jax.jit(step)(state, _data())
        assert float(after.outer) == -4.0
        assert float(info.metrics["hypergradient"]) == 0.0
        chex.assert_trees_all_equal(after.extra.rho, state.extra.rho)
        assert np.any(after.inner[0] != state.inner[0])


def _moments(rows, phi, batch):
    """Its gradient step of length 1 sets φ to the first two moments of the rows."""
    return 0.5 * jnp.sum((phi - jnp.stack([jnp.mean(rows, 0), jnp.mean(rows**2, 0)])) ** 2)


def _moments_after(**options):
    problem = bilevel.problem(_moments, lambda rows, phi, batch: 0.0 * jnp.sum(rows))
    data = bilevel.Data(jnp.zeros(20000), jnp.zeros(2))
    init, step = bilevel.stn(problem, MOVE, STILL, tune_scales=False, **options)
    return init, jax.jit(step), data


@pytest.mark.paper(144)
def test_perturbations_are_normal_and_new_at_every_update():
    sigma = jnp.array([0.5, 2.0])
    init, step, data = _moments_after(sigma=sigma, inner_steps=1)
    first, _ = step(init(jnp.zeros(2), jnp.zeros((2, 2)), data, KEY), data)
    second, _ = step(first, data)
    for state in (first, second):
        chex.assert_trees_all_close(state.inner[0] / sigma, jnp.zeros(2), atol=0.03)
        chex.assert_trees_all_close(state.inner[1] / sigma**2, jnp.ones(2), rtol=0.05)
    assert np.all(first.inner != second.inner)
    # The second of two updates of one step differs from the first, too.
    init, step, data = _moments_after(sigma=sigma, inner_steps=2)
    both, _ = step(init(jnp.zeros(2), jnp.zeros((2, 2)), data, KEY), data)
    assert np.all(both.inner != first.inner)


@pytest.mark.paper(144)
def test_one_perturbation_for_the_batch():
    init, step, data = _moments_after(per_example=np.array([True, False]))
    mean, square = step(init(jnp.zeros(2), jnp.zeros((2, 2)), data, KEY), data)[0].inner
    chex.assert_trees_all_close(square[1], mean[1] ** 2, rtol=1e-4)
    assert abs(float(mean[0])) < 0.02
    assert abs(float(square[0]) - 0.25) < 0.02


@pytest.mark.paper(144)
def test_entropy_alone_widens_the_scales():
    """ρ ascends τ ∂H/∂ρ = τ sigmoid(ρ) / softplus(ρ), which is τ where the scale has underflowed."""
    problem = bilevel.problem(_moments, lambda rows, phi, batch: 0.0 * jnp.sum(rows))
    data = bilevel.Data(jnp.zeros(2), jnp.zeros(2))
    init, step = bilevel.stn(problem, STILL, MOVE, tau=0.25)
    state = init(jnp.zeros(3), jnp.zeros((2, 3)), data, KEY)
    rho = jnp.array([0.0, 1.0, -300.0])
    after, _ = jax.jit(step)(state._replace(extra=state.extra._replace(rho=rho)), data)
    expected = [0.25 * 0.5 / np.log(2), 0.25 * 0.7310586 / 1.3132617, 0.25]
    chex.assert_trees_all_close(after.extra.rho - rho, jnp.array(expected), rtol=1e-4)
    chex.assert_trees_all_close(jax.nn.softplus(state.extra.rho), jnp.full(3, 0.5), rtol=1e-6)


@pytest.mark.paper(144)
def test_discrete_hyperparameter_is_tuned():
    """The training loss sees floor(λ), whose derivative is 0; the response smooths it."""

    def inner(lam, phi, batch):
        return jnp.mean((phi[0] + phi[1] * lam - jnp.floor(lam)) ** 2)

    def outer(lam, phi, batch):
        return jnp.mean((phi[0] + phi[1] * lam - 3.0) ** 2)

    data = bilevel.Data(jnp.zeros(50), jnp.zeros(50))
    init, step = bilevel.stn(
        bilevel.problem(inner, outer), optax.adam(0.05), optax.adam(0.02), sigma=1.0, tune_scales=False
    )
    state = init(0.5, (jnp.asarray(0.0), jnp.asarray(0.0)), data, KEY)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, data), s, length=600))(state)
    assert int(jnp.floor(state.outer)) == 3


@pytest.mark.paper(144)
def test_warmup_trains_the_weights_alone():
    init, step = bilevel.stn(_ridge(), optax.sgd(0.01), optax.adam(0.1), warmup=2)
    step = jax.jit(chex.assert_max_traces(step, n=1))
    states = [init(-1.0, (jnp.zeros(D), jnp.ones(D)), _data(), KEY)]
    for _ in range(3):
        states.append(step(states[-1], _data())[0])
    first, _, waited, moved = states
    chex.assert_trees_all_equal(waited.outer, first.outer)
    chex.assert_trees_all_equal(waited.extra._replace(inner_tx=()), first.extra._replace(inner_tx=()))
    assert np.any(waited.inner[0] != first.inner[0])
    assert moved.outer != first.outer
    assert moved.extra.rho != first.extra.rho


@pytest.mark.paper(144)
def test_numeric_options_may_be_mapped():
    def moved(sigma, tau):
        init, step = bilevel.stn(_ridge(), optax.sgd(0.01), MOVE, sigma=sigma, tau=tau)
        state = init(-1.0, (jnp.ones(D), jnp.ones(D)), _data(), KEY)
        return step(state, _data())[0].extra.rho - state.extra.rho

    sigmas, taus = jnp.array([0.1, 0.5]), jnp.array([1e-3, 1.0])
    many = jax.jit(jax.vmap(moved))(sigmas, taus)
    one = jax.jit(moved)(sigmas[1], taus[1])
    chex.assert_trees_all_close(many[1], one, rtol=1e-3)
    assert many[0] != many[1]


@pytest.mark.paper(144)
def test_minibatches_and_pytrees():
    def loss(lam, phi, batch):
        x, t = batch["inputs"], batch["targets"]
        return jnp.mean((jnp.sum(x * (phi + lam["a"][:, None] + lam["b"]), -1) - t) ** 2)

    data = bilevel.Data(
        *({"inputs": jnp.asarray(x), "targets": jnp.asarray(t)} for x, t in ((X, T), (XV, TV)))
    )
    sampler = bilevel.minibatches(inner=4, outer=3)
    init, step = bilevel.stn(bilevel.problem(loss, loss), MOVE, MOVE, sampler=sampler, outer_steps=2)
    state = init({"a": jnp.zeros(()), "b": jnp.zeros(D)}, jnp.zeros(D), data, KEY)
    after, info = jax.jit(step)(state, data)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert int(info.metrics["gradients"]) == 4


@pytest.mark.paper(144)
def test_bad_arguments():
    with pytest.raises(ValueError, match=r"sigma must lie in \(0, inf\)"):
        bilevel.stn(_ridge(), MOVE, MOVE, sigma=0.0)
    with pytest.raises(ValueError, match="inner_steps must lie in"):
        bilevel.stn(_ridge(), MOVE, MOVE, inner_steps=0)
    init, step = bilevel.stn(_ridge(), MOVE, MOVE)
    state = init(0.0, (jnp.ones(D), jnp.ones(D)), bilevel.Data(), KEY)
    with pytest.raises(ValueError, match="rows"):
        step(state, bilevel.Data())
