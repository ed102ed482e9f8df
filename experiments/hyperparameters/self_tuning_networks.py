"""Self-tuning networks find ridge's best penalty, and schedules that beat the best fixed dropout and decay.

Ridge: 60 training and 60 validation rows in 30 dimensions, noise as strong as the signal. The response is
w = φ0 + λ φ1 with λ the logarithm of the penalty, tuned from −4 at the perturbation scale 0.5. Claimed, for every
seed: the final λ lies within 0.15 of the best of a fine grid of exact solutions, and the exact solution at the final
λ has a validation loss within 0.5 % of the grid's least.

Digits: 300 training and 300 validation examples, 20 % of the labels of both replaced, and the clean rest for the
test. A network 64-32-32-10 of best-response layers tunes the dropout of each layer's inputs and the weight decay of
each layer's kernel, six hyperparameters, while it trains once. Fixed hyperparameters, the same in all layers, train
the same network without a response for as many updates: seven dropouts at the first decay and seven decays at the
first dropout, of which the one with the least validation loss is taken. Claimed: the mean validation loss is below
the mean best fixed one, and the cost no more than 3 trainings (gradients, counted twice for the two kernels of a
layer). The test is reported, and what the final hyperparameters give when they are fixed from the start.

Control: the response is switched off, so that no gradient reaches λ. The settings were chosen on seeds 10 to 13.

References:
    MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks: bilevel optimization of hyperparameters
    using structured best-response functions.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import bilevel, nn
from jaxdiv.testing.data import digits

PARTS = 10
DROPOUTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DECAYS = (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 4e-2)


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    rows: int = 60
    """Training rows of ridge, and validation rows."""
    dimension: int = 30
    """Features of ridge."""
    ridge_steps: int = 3000
    """Steps on ridge."""
    examples: int = 300
    """Training digits, and validation digits."""
    label_noise: float = 0.2
    """Share of the training and validation labels that are replaced."""
    width: int = 32
    """Units in each hidden layer."""
    steps: int = 1000
    """Steps on digits; one is two updates of the weights and one of the hyperparameters."""
    batch: int = 100
    """Examples of an update."""
    learning_rate: float = 1e-3
    """Of the weights, by Adam."""
    outer_learning_rate: float = 1e-2
    """Of the hyperparameters, by Adam."""
    tau: float = 1e-3
    """Weight of the entropy on digits."""
    dropout: float = 0.05
    """First dropout."""
    decay: float = 1e-3
    """First weight decay."""


SMOKE = Config(seeds=2, rows=6, dimension=3, ridge_steps=3, examples=20, width=4, steps=10, batch=10)


def tune_ridge(config):
    """Final and best log-penalty; validation losses at the final and the first one, relative to the best."""
    answer = 0.0 if config.control else 1.0

    def losses(lam, phi, batch):
        x, t = batch
        w = phi["constant"] + answer * lam[:, None] * phi["slope"]
        return jnp.mean((jnp.sum(x * w, -1) - t) ** 2), jnp.mean(jnp.exp(lam) * jnp.sum(w**2, -1))

    problem = bilevel.problem(
        lambda lam, phi, batch: sum(losses(lam, phi, batch)),
        lambda lam, phi, batch: losses(lam, phi, batch)[0],
    )
    init, step = bilevel.stn(problem, optax.adam(1e-2), optax.adam(3e-3), tune_scales=False)

    def make(seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2, config.rows, config.dimension))
        t = x @ rng.normal(size=config.dimension) / np.sqrt(config.dimension)
        return x, t + rng.normal(size=t.shape)

    def of_seed(key, x, t):
        data = bilevel.Data(inner=(x[0], t[0]), outer=(x[1], t[1]))
        zeros = jnp.zeros(config.dimension)
        state = init(jnp.asarray(-4.0), {"constant": zeros, "slope": zeros}, data, key)
        return jax.lax.scan(lambda s, _: (step(s, data)[0], None), state, length=config.ridge_steps)[0].outer

    x, t = full_batch.stack(make, config.seeds)
    final = np.asarray(full_batch.each_seed(of_seed, config.seeds)(np.float32(x), np.float32(t)), float)

    def exact(seed, lam):
        a, b = x[seed, 0], t[seed, 0]
        w = np.linalg.solve(a.T @ a + config.rows * np.exp(lam) * np.eye(config.dimension), a.T @ b)
        return np.mean((x[seed, 1] @ w - t[seed, 1]) ** 2)

    grid = np.linspace(-6, 4, 1001)
    rows = []
    for seed, lam in enumerate(final):
        values = [exact(seed, at) for at in grid]
        best = min(values)
        rows.append((lam, grid[np.argmin(values)], exact(seed, lam) / best, exact(seed, -4.0) / best))
    return np.transpose(rows)


class Network(nnx.Module):
    """Best-response layers with a dropout rate for each example and layer."""

    def __init__(self, widths, n_hyper, rngs):
        self.layers = nnx.List(
            [nn.HyperDense(*sizes, n_hyper, rngs=rngs) for sizes in itertools.pairwise(widths)]
        )
        self.rngs = rngs.fork()

    def __call__(self, inputs):
        """Logits [B, 10] and squared norms of the kernels [B, layers]; rates [B, layers], or None for none."""
        x, hyperparameters, rates = inputs
        sizes = np.array([layer.response.kernel.shape[0] for layer in self.layers])
        masks = [1.0] * len(sizes)
        if rates is not None:
            kept = jnp.repeat(1 - rates, sizes, axis=1, total_repeat_length=sizes.sum())
            kept = jax.random.bernoulli(self.rngs.dropout(), kept) / kept
            masks = jnp.split(kept, np.cumsum(sizes)[:-1], axis=1)
        for layer, mask in zip(self.layers, masks, strict=True):
            x = layer(mask * jax.nn.relu(x), hyperparameters)  # Pixels are not negative.
        return x, jnp.stack([layer.squared_norm(hyperparameters) for layer in self.layers], -1)


def tune_digits(config):
    """The network tuned online, the best fixed one, and the one with the former's final hyperparameters fixed."""
    widths = (64, config.width, config.width, 10)
    layers = range(len(widths) - 1)
    ranges = {f"dropout {i + 1}": bilevel.Range(0, 0.9) for i in layers}
    space = bilevel.hparam_space(ranges | {f"decay {i + 1}": bilevel.Range(0) for i in layers})
    model = full_batch.models(lambda rngs: Network(widths, len(space.names), rngs), config.seeds)

    def vector(dropout, decay):
        return space.unconstrain({name: dropout if "dropout" in name else decay for name in space.names})

    first = vector(config.dropout, config.decay)

    def problem(answer):
        def outputs(lam, phi, batch, rates, key):
            return model.apply(phi, (), (batch["inputs"], answer * (lam - first), rates), key)[0]

        def train_loss(lam, phi, batch, key):
            values = list(space.constrain(lam).values())
            rates, decays = (jnp.stack(part, -1) for part in (values[: len(layers)], values[len(layers) :]))
            logits, norms = outputs(lam, phi, batch, rates, key)
            return jnp.mean(cross_entropy(logits, batch["targets"]) + 0.5 * jnp.sum(decays * norms, -1))

        def loss(lam, phi, batch):
            return jnp.mean(cross_entropy(outputs(lam, phi, batch, None, None)[0], batch["targets"]))

        def accuracy(lam, phi, batch):
            return jnp.mean(jnp.argmax(outputs(lam, phi, batch, None, None)[0], -1) == batch["targets"])

        return bilevel.problem(train_loss, loss), loss, accuracy

    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    sampler = bilevel.minibatches(inner=config.batch, outer=config.batch)
    inner_tx = optax.adam(config.learning_rate)

    def train(algorithm, loss, accuracy, lam, phi, data, test, key):
        def watched(state, _):
            state, info = algorithm.step(state, data)
            return state, (state.outer, info.metrics["gradients"])

        def part(state, _):
            state, seen = jax.lax.scan(watched, state, length=config.steps // PARTS)
            return state, (loss(state.outer, state.inner, data.outer), seen)

        state = algorithm.init(lam, phi, data, key)
        state, (curve, (schedule, gradients)) = jax.lax.scan(part, state, length=PARTS)
        return {
            "validation": curve[-1],
            "test": loss(state.outer, state.inner, test),
            "accuracy": accuracy(state.outer, state.inner, test),
            "curve": curve,
            "schedule": schedule.reshape(-1, *lam.shape),
            "gradients": jnp.sum(gradients),
        }

    def of_seed(key, phi, training, validation, test):
        data = bilevel.Data(training, validation)
        # Without a response the entropy would widen the scales without end.
        tuned, *scores = problem(0.0 if config.control else 1.0)
        algorithm = bilevel.stn(
            tuned,
            inner_tx,
            optax.adam(config.outer_learning_rate),
            tau=config.tau,
            tune_scales=not config.control,
            warmup=config.steps // 20,
            sampler=sampler,
        )
        online = train(algorithm, *scores, first, phi, data, test, key)
        untuned, *scores = problem(0.0)
        # Its outer gradients go nowhere, so they may be cheap.
        rows = bilevel.minibatches(inner=config.batch, outer=1)
        still = bilevel.stn(
            untuned, inner_tx, optax.set_to_zero(), sigma=0.0, tune_scales=False, sampler=rows
        )
        grid = [vector(p, config.decay) for p in DROPOUTS] + [vector(config.dropout, d) for d in DECAYS]
        candidates = jnp.stack([*grid, online["schedule"][-1]])
        fixed = jax.vmap(lambda lam: train(still, *scores, lam, phi, data, test, key))(candidates)
        best = jnp.argmin(fixed["validation"][:-1])
        return online, *(jax.tree.map(lambda leaf, i=i: leaf[i], fixed) for i in (best, -1))

    def make(seed):
        parts = digits(seed, train=2 * config.examples, label_noise=config.label_noise)
        order = np.random.default_rng(seed).permutation(2 * config.examples)
        halves = np.split(order, 2)
        both = [{name: value[half] for name, value in parts["train"].items()} for half in halves]
        return *both, parts["test"]

    seeds = full_batch.each_seed(of_seed, config.seeds)
    results = seeds(model.params, *full_batch.stack(make, config.seeds))
    return jax.tree.map(np.asarray, results), space


def run(config: Config) -> Claim:
    final, optimal, loss, first_loss = tune_ridge(config)
    (online, fixed, ended), space = tune_digits(config)
    arms = {"": online, ", best fixed": fixed, ", final ones fixed": ended}
    # An update of the fixed network is one gradient of layers with one kernel.
    cost = 2 * online["gradients"].mean() / (2 * (config.steps // PARTS) * PARTS)
    measured = {
        "ridge: final minus best log-penalty": (final - optimal).tolist(),
        "ridge: validation loss / least": loss.tolist(),
        "ridge: validation loss / least, at the start": first_loss.tolist(),
        "digits: cost in trainings": cost,
    }
    for quantity, name in (
        ("validation", "validation loss"),
        ("test", "test loss"),
        ("accuracy", "test accuracy"),
    ):
        measured |= {f"digits: {name}{arm}": result[quantity].mean() for arm, result in arms.items()}
    for arm, result in arms.items():
        measured[f"digits: validation loss by seed{arm}"] = result["validation"].tolist()
    holds = (
        np.all(np.abs(final - optimal) <= 0.15)
        and np.all(loss <= 1.005)
        and online["validation"].mean() < fixed["validation"].mean()
        and cost <= 3
    )
    return Claim(measured, bool(holds), draw(online, fixed, space, config))


def draw(online, fixed, space, config):
    """The schedules found on the first seed, and the validation losses of all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    dropouts, decays, losses = figure.subplots(1, 3)
    for name, values in space.constrain(online["schedule"][0]).items():
        axes = dropouts if "dropout" in name else decays
        axes.plot(np.asarray(values), label=f"layer {name[-1]}")
    dropouts.set(xlabel="step", ylabel="dropout of the inputs")
    decays.set(xlabel="step", ylabel="weight decay", yscale="log")
    steps = (1 + np.arange(PARTS)) * (config.steps // PARTS)
    for result, label, color in ((online, "tuned online", "C0"), (fixed, "best fixed", "C3")):
        for seed, curve in enumerate(result["curve"]):
            losses.plot(steps, curve, color=color, label=None if seed else label)
    losses.set(xlabel="step", ylabel="validation loss")
    for axes in (dropouts, decays, losses):
        axes.legend()
    return figure


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
