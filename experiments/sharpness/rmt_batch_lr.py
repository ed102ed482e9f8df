"""The Hessian of a batch has a larger top eigenvalue than that of the data, as the spiked Wigner model says.

(i) For drawn 1000 x 1000 spiked matrices the predicted and the measured largest eigenvalue agree within 6%, at
(lambda, sigma^2, effective batch) = (5, 1, 64), (5, 1, 8000), (10, 0.5, 32), (1, 1, 1000), in every seed.
(ii) For a tanh network 64-16-10 on 1024 digits, after 100 full-batch Adam steps, the mean over 20 batches of the
largest eigenvalue of the Hessian falls from batches of 16 to 64 to 256, and lies above that of all the data, in
every seed. Control: the eigenvalue as it is in the place of the predicted one, and batches of all the data.

Reported beside it: the noise variance fitted on batches of 16 and what the model then predicts for the network, and
the learning rate and momentum that a Lanczos run suggests.

References:
    Granziol, Zohren, Roberts (2022), Learning rates as a function of batch size: a random matrix theory approach to
    neural network training.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, losses, nn, objectives
from jaxdiv.testing.data import digits

WITHIN = 0.06
SPIKES = ((5.0, 1.0, 64.0), (5.0, 1.0, 8000.0), (10.0, 0.5, 32.0), (1.0, 1.0, 1000.0))


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    dimension: int = 1000
    """Of the drawn matrices."""
    examples: int = 1024
    """Digits."""
    width: int = 16
    """Hidden units."""
    steps: int = 100
    """Of Adam."""
    learning_rate: float = 1e-2
    """Of Adam."""
    batch_sizes: tuple[int, ...] = (16, 64, 256)
    """Batches whose Hessians are compared."""
    batches: int = 20
    """Of each size."""


SMOKE = Config(seeds=2, dimension=60, examples=64, width=4, steps=2, batch_sizes=(16, 32), batches=2)


def drawn_top(dimension, value, variance, batch, seed):
    """Largest eigenvalue of a spike in GOE noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(dimension, dimension)) * np.sqrt(variance / batch / 2)
    noise = noise + noise.T
    noise[0, 0] += value
    return float(np.linalg.eigvalsh(noise)[-1])


def run(config: Config) -> Claim:
    measured: dict[str, float | list[float]] = {}
    holds = True
    for value, variance, batch in SPIKES:
        tops = [drawn_top(config.dimension, value, variance, batch, seed) for seed in range(config.seeds)]
        predicted = value
        if not config.control:
            predicted = float(diagnostics.batch_hessian_spike(value, config.dimension, batch, variance))
        measured[f"spike {value:g}, variance {variance:g}, batch {batch:g}"] = tops
        measured[f"predicted for {value:g}, {variance:g}, {batch:g}"] = predicted
        holds &= bool(np.all(np.abs(np.array(tops) / predicted - 1) <= WITHIN))

    data = full_batch.stack(lambda seed: digits(seed, train=config.examples)["train"], config.seeds)
    model = full_batch.models(
        lambda rngs: nn.MLP((64, config.width, 10), activation=jnp.tanh, rngs=rngs), config.seeds
    )
    objective = objectives.chain(
        objectives.forward(model.apply, model_state=model.model_state),
        objectives.loss(losses.cross_entropy),
        objectives.mean(),
    )

    def loss(params, batch):
        logits = model.apply(params, model.model_state, batch["inputs"], None)[0]
        return jnp.mean(losses.cross_entropy(logits, batch["targets"]))

    def top(params, batch):
        pairs = diagnostics.hessian_eigenvalues(loss, params, batch, num_steps=25, key=jax.random.key(1))
        return pairs.values[0]

    def of_seed(key, params, batch):
        tx = optax.adam(config.learning_rate)
        params = full_batch.fit(objective, params, batch, key, tx=tx, steps=config.steps)[0].params

        def of_batch(size, key):
            rows = jax.random.choice(key, config.examples, (size,), replace=False)
            return top(params, jax.tree.map(lambda x: x[rows], batch))

        sizes = [config.examples if config.control else size for size in config.batch_sizes]
        keys = jax.random.split(key, config.batches)
        tops = [jnp.mean(jax.lax.map(lambda key, b=size: of_batch(b, key), keys)) for size in sizes]
        noise = diagnostics.hessian_noise(loss, params, batch, batch_size=config.batch_sizes[0], key=key)
        learner = diagnostics.lanczos_learner(loss, params, batch, key=key)
        return jnp.stack(tops), top(params, batch), noise, learner

    tops, whole, noise, learner = jax.tree.map(
        np.asarray, full_batch.each_seed(of_seed, config.seeds)(model.params, data)
    )
    holds &= bool((np.diff(tops, axis=1) < 0).all() and (tops > whole[:, None]).all())
    num_params = sum(leaf[0].size for leaf in jax.tree.leaves(model.params))
    predicted = np.array(
        [
            diagnostics.batch_hessian_spike(
                jnp.asarray(whole),
                num_params,
                diagnostics.effective_batch(size, config.examples),
                jnp.asarray(noise),
            )
            for size in config.batch_sizes
        ]
    )
    for index, size in enumerate(config.batch_sizes):
        measured[f"network, batches of {size}"] = tops[:, index].tolist()
        measured[f"network, predicted for {size}"] = predicted[index].tolist()
    measured |= {
        "network, all data": whole.tolist(),
        "network, noise variance": noise.tolist(),
        "suggested learning rate": learner.learning_rate.tolist(),
        "suggested momentum": learner.momentum.tolist(),
    }
    figure = diagnostics.plots.batch_scaling(
        config.batch_sizes, tops.T, predicted.mean(axis=1), float(whole.mean())
    )
    return Claim(measured, holds, figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
