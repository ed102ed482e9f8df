"""SAM: contract, parity with optax, closed forms on quadratics, m-sharpness, compositions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from absl.testing import parameterized

from jaxdiv import adversarial, core, losses, objectives, oracles, train
from jaxdiv.testing import oracles as contract

A = np.array([[2.0, 1.0], [1.0, 3.0]])
W = np.array([1.0, -2.0])
KEY = jax.random.key(0)


class SAMContract(contract.Wrapper, contract.NumericOption):
    wrap = staticmethod(oracles.sam)
    neutral = (("rho", 0.0),)
    cost = (2, 2)
    option = ("rho", 0.2)


def quadratic(w, state, batch, key):
    value = w @ jnp.asarray(A, w.dtype) @ w / 2
    return value, (state, {"terms": {"q": value}, "losses": {}, "metrics": {}})


def gradient_of(oracle, loss_fn, params, batch=None, state=()):
    return oracle.value_and_grad(loss_fn, params, oracle.init(params), state, batch or {}, KEY)[1]


def rows_loss(w, state, batch, key):
    """The weighted mean of (1 - x·w)^4 over the batch; the state remembers what it has seen."""
    losses = (1 - batch["inputs"] @ w) ** 4
    weights = batch.get("weights", jnp.ones(losses.shape))
    value = objectives.mean().update(None, (), _record(losses, weights), None)[0].terms["quartic"]
    state = {"chunks": state["chunks"] + 1, "last": batch["inputs"][-1, 0]}
    return value, (state, {"terms": {"quartic": value}, "losses": {"quartic": losses}, "metrics": {}})


def _record(losses, weights):
    record = objectives.from_batch({"inputs": losses, "weights": weights})
    return record._replace(losses={"quartic": losses})


def sam_of_rows(w, x, weights, rho):
    """SAM's gradient of the weighted mean in float64 numpy."""

    def gradient(w):
        return -4 * ((1 - x @ w) ** 3 * weights) @ x / weights.sum()

    return gradient(w + rho * gradient(w) / np.linalg.norm(gradient(w)))


class TestExact(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_quadratic(self):
        """For L = w'Aw/2: A(w + rho Aw / |Aw|)."""
        g = A @ W
        run = self.variant(lambda w, rho: gradient_of(oracles.sam(oracles.plain(), rho=rho), quadratic, w))
        result = run(jnp.asarray(W, jnp.float32), 0.3)
        np.testing.assert_allclose(result, A @ (W + 0.3 * g / np.linalg.norm(g)), rtol=1e-6)

    def test_adaptive_is_asam_and_other_geometries_go_by_name(self):
        """Kwon et al., eq. (8): eps = rho T^2 g / |T g| with T = |w| + 0.01; p = infinity: rho T sign(g)."""
        g, t = A @ W, np.abs(W) + 0.01
        epsilons = {
            "adaptive": 0.5 * t**2 * g / np.linalg.norm(t * g),
            "adaptive_linf": 0.5 * t * np.sign(g),
            "linf": 0.5 * np.sign(g),
            "leafwise": 0.5 * g / np.linalg.norm(g),
        }
        with jax.enable_x64(True):
            w = jnp.asarray(W)

            @jax.jit
            def gradients(w):
                named = {name: oracles.sam(oracles.plain(), rho=0.5, geometry=name) for name in epsilons}
                return {name: gradient_of(oracle, quadratic, w) for name, oracle in named.items()}

            result = gradients(w)
        for name, epsilon in epsilons.items():
            np.testing.assert_allclose(result[name], A @ (W + epsilon), rtol=1e-12)

    def test_gradient_at_a_minimum_is_zero(self):
        """Where no direction ascends the parameters stay, and nothing is divided by 0."""
        result = gradient_of(oracles.sam(oracles.plain()), quadratic, jnp.zeros(2))
        np.testing.assert_array_equal(result, 0.0)

    def test_equals_optax(self):
        """optax.contrib.sam in its opaque mode: one normalized ascent step, then the outer step."""
        rho, steps, tx = 0.1, 6, optax.adam(0.05)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(8, 3)), rng.integers(0, 2, 8).astype(np.int32)
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
        peer = optax.contrib.sam(tx, ascent, sync_period=2, opaque_mode=True)
        objective = objectives.chain(
            objectives.forward(lambda p, state, x, key: (jnp.tanh(x @ p["w"]) @ p["v"], state)),
            objectives.loss(losses.cross_entropy, name="ce"),
            objectives.mean(),
        )
        init, step = train.make_step(objective, oracles.sam(oracles.plain(), rho=rho), tx)
        with jax.enable_x64(True):
            params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(4, 2)))}
            batch = {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}

            @jax.jit
            def ours(params):
                state = init(params, batch, KEY)
                return jax.lax.scan(lambda s, _: (t := step(s, batch)[0], t.params), state, length=steps)[1]

            @jax.jit
            def theirs(params):
                def loss(p):
                    logits = jnp.tanh(batch["inputs"] @ p["w"]) @ p["v"]
                    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

                def body(carry, _):
                    params, state = carry
                    grad_fn = lambda p, i: jax.grad(loss)(p)  # noqa: E731
                    updates, state = peer.update(jax.grad(loss)(params), state, params, grad_fn=grad_fn)
                    params = optax.apply_updates(params, updates)
                    return (params, state), params

                return jax.lax.scan(body, (params, peer.init(params)), length=steps)[1]

            chex.assert_trees_all_close(ours(params), theirs(params), rtol=1e-10, atol=1e-10)

    def test_first_order_is_the_gradient_of_the_norm(self):
        """Foret et al., eq. (2): to first order SAM minimizes L + rho |grad L|: d/d rho is H g/|g|."""
        x = np.random.default_rng(1).normal(size=(6, 2))
        gap = 1 - x @ W
        g, hessian = -4 * gap**3 @ x, 12 * (x.T * gap**2) @ x
        with jax.enable_x64(True):
            state = {"chunks": jnp.int32(0), "last": jnp.zeros(())}
            sam = lambda rho: oracles.sam(oracles.plain(), rho=rho)  # noqa: E731
            by_radius = jax.jit(
                jax.jacfwd(
                    lambda rho: gradient_of(
                        sam(rho), rows_loss, jnp.asarray(W), {"inputs": jnp.asarray(x)}, state
                    )
                )
            )
            np.testing.assert_allclose(by_radius(0.0), hessian @ g / np.linalg.norm(g) / 6, rtol=1e-10)


class TestMSharpness(chex.TestCase):
    def arguments(self, dtype=jnp.float32):
        rng = np.random.default_rng(1)
        x, weights = rng.normal(size=(6, 2)), np.array([1.0, 2.0, 0.5, 0.0, 0.3, 0.7])
        state = {"chunks": jnp.int32(0), "last": jnp.zeros((), dtype)}
        return x, weights, state

    @chex.variants(with_jit=True, without_jit=True)
    def test_is_the_weighted_mean_of_the_chunks(self):
        """Each chunk has its own perturbation and weighs as much as its examples; the state visits all."""
        x, weights, _ = self.arguments()
        with jax.enable_x64(True):
            state = self.arguments(jnp.float64)[2]
            batch = {"inputs": jnp.asarray(x), "weights": jnp.asarray(weights, jnp.float32)}
            oracle = oracles.sam(oracles.plain(), rho=0.2, m=2)
            run = self.variant(
                lambda w, batch, state: oracle.value_and_grad(rows_loss, w, (), state, batch, KEY)
            )
            (value, aux), gradient, _, state = run(jnp.asarray(W), batch, state)
        weights = weights.astype(np.float32).astype(np.float64)
        chunks = [(x[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)]
        parts = [w.sum() / weights.sum() * sam_of_rows(W, rows, w, 0.2) for rows, w in chunks]
        quartic = (1 - x @ W) ** 4
        np.testing.assert_allclose(gradient, sum(parts), rtol=1e-10)
        np.testing.assert_allclose(value, (weights * quartic).sum() / weights.sum(), rtol=1e-10)
        np.testing.assert_allclose(aux["terms"]["quartic"], value, rtol=1e-12)
        np.testing.assert_allclose(aux["losses"]["quartic"], quartic, rtol=1e-10)
        assert int(state["chunks"]) == 3
        np.testing.assert_allclose(state["last"], x[-1, 0])

    def test_one_chunk_is_the_whole_batch(self):
        x, _, state = self.arguments()
        batch = {"inputs": jnp.asarray(x, jnp.float32)}
        whole, chunked = (oracles.sam(oracles.plain(), rho=0.2, m=m) for m in (None, 6))
        w = jnp.asarray(W, jnp.float32)
        run = jax.jit(
            lambda w: [o.value_and_grad(rows_loss, w, (), state, batch, KEY) for o in (whole, chunked)]
        )
        chex.assert_trees_all_close(*run(w), rtol=1e-5)

    def test_padding_fills_a_chunk(self):
        """A chunk of weight 0 may hold NaN and counts for nothing."""
        x, _, state = self.arguments()
        padded = np.concatenate([x[:4], np.full((2, 2), np.nan)]).astype(np.float32)
        batch = {"inputs": jnp.asarray(padded), "weights": jnp.array([1.0, 1, 1, 1, 0, 0])}
        oracle = oracles.sam(oracles.plain(), rho=0.2, m=2)
        run = jax.jit(lambda batch: oracle.value_and_grad(rows_loss, jnp.float32(W), (), state, batch, KEY))
        (value, _), gradient, _, _ = run(batch)
        parts = [sam_of_rows(W, x[i : i + 2], np.ones(2), 0.2) / 2 for i in (0, 2)]
        np.testing.assert_allclose(gradient, sum(parts), rtol=1e-4)
        np.testing.assert_allclose(value, ((1 - x[:4] @ W) ** 4).mean(), rtol=1e-4)

    def test_cost_state_and_shared_entries(self):
        """The base's state advances with each chunk; what is shared is not chunked; dtypes are kept."""

        def loss(w, state, batch, key):
            chex.assert_shape((batch["shared"], batch["inputs"]), [(5,), (2, 2)])
            return rows_loss(w, state, batch, key)

        x, _, state = self.arguments()
        batch = {"inputs": jnp.asarray(x, jnp.float32), "shared": jnp.ones(5)}
        oracle = oracles.sam(contract.doubled(oracles.plain()), m=2)
        w = jnp.asarray(W, jnp.bfloat16)
        run = lambda w: oracle.value_and_grad(loss, w, oracle.init(w), state, batch, KEY)  # noqa: E731
        (value, aux), gradient, calls, _ = jax.jit(run)(w)
        assert int(calls) == 3
        assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
        chex.assert_shape(aux["losses"]["quartic"], (6,))

    def test_each_chunk_has_its_own_key(self):
        def loss(w, state, batch, key):
            noise = jax.random.uniform(key)
            return noise * w, (state, {"terms": {"n": noise * w}, "losses": {}, "metrics": {}})

        oracle = oracles.sam(oracles.plain(), m=2)
        run = lambda w: oracle.value_and_grad(loss, w, (), (), {"inputs": jnp.ones(4)}, KEY)  # noqa: E731
        draws = [jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(2)]
        np.testing.assert_allclose(jax.jit(run)(jnp.float32(1.0))[1], np.mean(draws), rtol=1e-6)

    @parameterized.parameters(4, 0, 12)
    def test_m_must_divide_the_batch(self, m):
        oracle = oracles.sam(oracles.plain(), m=m)
        with pytest.raises(ValueError, match=f"m must divide the batch size 6; got {m}"):
            gradient_of(oracle, rows_loss, jnp.ones(2), {"inputs": jnp.ones((6, 2))})


class TestErrors:
    @pytest.mark.parametrize("rho", [-0.1, np.nan])
    def test_rho_must_not_be_negative(self, rho):
        with pytest.raises(ValueError, match="rho must lie in"):
            oracles.sam(oracles.plain(), rho=rho)

    def test_unknown_geometry(self):
        with pytest.raises(ValueError, match="geometry must be one of"):
            gradient_of(oracles.sam(oracles.plain(), geometry="spectral"), quadratic, jnp.ones(2))


def noise(params, record, key):
    """An input link: one draw per call, from the key's own bits since a generator compiles slowly."""
    return record._replace(inputs=record.inputs + jax.random.key_data(key)[-1] % 16 / 64)


class TestOnAChain:
    """Compositions on an objective with noise and PS-KD: one draw, one visit, whatever the oracle asks."""

    @staticmethod
    @functools.cache
    def pieces():
        rng = np.random.default_rng(2)
        params = {"w": rng.normal(size=(3, 3)).astype(np.float32)}
        batch = {
            "inputs": rng.normal(size=(4, 3)).astype(np.float32),
            "targets": np.array([0, 2, 1, 1], np.int32),
            "index": np.array([4, 0, 3, 1], np.int32),
        }
        objective = objectives.chain(
            objectives.stateless(noise),
            objectives.forward(lambda p, state, x, key: (x @ p["w"], state)),
            objectives.ps_kd(5, alpha=0.5),
            objectives.loss(losses.cross_entropy, name="ce"),
            objectives.loss(losses.brier, name="contrary", weight=-0.5),
            objectives.mean(),
        )
        params, batch = jax.tree.map(jnp.asarray, (params, batch))
        state = objective.init(params, batch, KEY)
        # With a past, so that the targets depend on the memory.
        loss_fn = jax.jit(objective.apply)
        _, (state, _) = loss_fn(params, state, batch, jax.random.key(1))
        gradients = jax.jit(jax.jacrev(lambda p, b: objective.apply(p, state, b, KEY)[1][1]["terms"]))
        slope = jax.jit(jax.grad(lambda x, p: objective.apply(p, state, {**batch, "inputs": x}, KEY)[0]))
        return objective.apply, loss_fn, gradients, slope, params, state, batch

    def ask(self, oracle):
        apply, _, _, _, params, state, batch = self.pieces()
        return jax.jit(lambda p: oracle.value_and_grad(apply, p, oracle.init(p), state, batch, KEY))(params)

    def aligned(self, params, batch):
        terms = self.pieces()[2](params, batch)
        ce, contrary = (np.asarray(terms[name]["w"], np.float64) for name in ("ce", "contrary"))
        return ce + contrary - min(0.0, (ce * contrary).sum() / (ce * ce).sum()) * ce

    def total(self, params, batch):
        terms = self.pieces()[2](params, batch)
        return np.asarray(terms["ce"]["w"] + terms["contrary"]["w"], np.float64)

    def check(self, result, batch, gradient):
        _, loss_fn, _, _, params, state, _ = self.pieces()
        expected_value, (expected_state, expected_aux) = loss_fn(params, state, batch, KEY)
        (value, aux), actual, _, new_state = result
        chex.assert_trees_all_close((value, aux), (expected_value, expected_aux), rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(new_state, expected_state, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(new_state[2].memory.visits, np.array([2, 2, 0, 2, 2]))
        np.testing.assert_allclose(actual["w"], gradient, rtol=1e-4, atol=1e-5)

    @staticmethod
    def ascend(params, direction, rho):
        return {"w": params["w"] + jnp.asarray(rho * direction / np.linalg.norm(direction), jnp.float32)}

    @pytest.mark.paper(151)
    def test_sam_of_align(self):
        _, _, gradients, _, params, _, batch = self.pieces()
        terms = gradients(params, batch)
        assert float(jnp.vdot(terms["ce"]["w"], terms["contrary"]["w"])) < 0, "the terms must conflict"
        moved = self.ascend(params, self.aligned(params, batch), 0.3)
        result = self.ask(oracles.sam(oracles.align("ce"), rho=0.3))
        self.check(result, batch, self.aligned(moved, batch))

    def test_sam_of_adversarial(self):
        """The attack is repeated at the perturbed parameters."""
        _, _, _, slope, params, _, batch = self.pieces()

        def attacked(p):
            return {**batch, "inputs": batch["inputs"] + 0.2 * jnp.sign(slope(batch["inputs"], p))}

        moved = self.ascend(params, self.total(params, attacked(params)), 0.3)
        base = oracles.adversarial(oracles.plain(), adversarial.sign_gradient(0.2))
        self.check(self.ask(oracles.sam(base, rho=0.3)), attacked(params), self.total(moved, attacked(moved)))

    def test_adversarial_of_sam(self):
        """The attack is made once, at the unperturbed parameters."""
        _, _, _, slope, params, _, batch = self.pieces()
        attacked = {**batch, "inputs": batch["inputs"] + 0.2 * jnp.sign(slope(batch["inputs"], params))}
        moved = self.ascend(params, self.total(params, attacked), 0.3)
        oracle = oracles.adversarial(oracles.sam(oracles.plain(), rho=0.3), adversarial.sign_gradient(0.2))
        self.check(self.ask(oracle), attacked, self.total(moved, attacked))


def test_sam_takes_a_perturbation_of_the_shared_kind():
    """`core.perturb` and SAM move the parameters alike, Python numbers included."""
    loss = lambda w, state, batch, key: (w**3, (state, {"terms": {}, "losses": {}, "metrics": {}}))  # noqa: E731
    result = gradient_of(oracles.sam(oracles.plain(), rho=0.5), loss, 2.0)
    np.testing.assert_allclose(result, 3 * core.perturb(2.0, 12.0, 0.5) ** 2, rtol=1e-6)
