"""Cosine power annealing stays low for longer than a cosine, and Max-W gives the best operation its whole output.

Over 30 epochs down to 0 the schedule of order 10 falls monotonically from its first value to its last and spends at
least 1.5 times as many epochs below a tenth of the first as the cosine; at order 1.001 it is the cosine, rescaled to
its range over the schedule, up to 1e-3. Max-W's weights are 1 for the best operation of a layer and in (0, 1] for the
others, after a search as before it. Control: order 1 in place of 10, and the softmax in place of Max-W.

Reported beside it, not claimed: which architecture a search finds. The space of `supernet` (700 digits for the
weights, 700 for the architecture) is searched by first-order DARTS with softmax and with both kinds of Max-W, its
maximum a constant to the gradient or not; all 25 architectures are trained by themselves from the same weights on the
same batches; and the rank of the one found among them by test accuracy is given (0 is the best, ties count half).
SGD of 0.1 and momentum 0.9 under cosine power annealing of order 2, 330 batches of 64, Adam of 0.01 (first decay 0.5)
on the architecture. The mean test accuracy of the 16 that no zero cuts off is given for orders 1, 2 and 10.

References:
    Hundt, Jain, Hager (2019), sharpDARTS: Faster and More Accurate Differentiable Architecture Search.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

from experiments import claims, full_batch
from experiments.architecture import supernet
from experiments.claims import Claim
from jaxdiv import bilevel, transforms

EPOCHS, TENTH, TIMES, NEAR = 30, 0.1, 1.5, 1e-3
MIXES = {
    "softmax": bilevel.mix_weights,
    "Max-W": partial(bilevel.mix_weights, kind="max_w"),
    "Max-W, not stopped": partial(bilevel.mix_weights, kind="max_w", stop_max=False),
}


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    examples: int = 700
    """Digits of the training and of the validation part."""
    width: int = 32
    """Units of each layer."""
    epochs: int = 30
    """Epochs of the search and of the training of each architecture."""
    batch: int = 64
    """Examples of a batch."""
    learning_rate: float = 0.1
    """Of the weights, at first."""
    alpha_learning_rate: float = 0.01
    """Of the architecture."""
    order: float = 10.0
    """Of the schedule that the claim is about."""
    search_order: float = 2.0
    """Of the schedule of the searches."""
    orders: tuple[float, ...] = (1.0, 2.0, 10.0)
    """Of the schedules under which the architectures are trained by themselves."""


SMOKE = Config(seeds=2, examples=40, width=4, epochs=1, batch=20, orders=(2.0,))


def annealed(order: float):
    return np.asarray(transforms.cosine_power_schedule(1.0, EPOCHS, order=order)(jnp.arange(EPOCHS)))


def run(config: Config) -> Claim:
    order = 1.0 if config.control else config.order
    curve, cosine = annealed(order), annealed(1.0)
    below, cosine_below = (int(np.sum(values < TENTH * values[0])) for values in (curve, cosine))
    limit = float(np.max(np.abs(annealed(1.001) - cosine)))

    data = full_batch.stack(lambda seed: supernet.data(seed, config.examples), config.seeds)
    steps = config.epochs * max(1, round(config.examples / config.batch))

    def descent(order):
        schedule = transforms.cosine_power_schedule(config.learning_rate, steps, order=order)
        return optax.sgd(schedule, momentum=0.9)

    def arguments(key, data):
        """The same first weights and batches for all that is trained of one seed."""
        keys = jax.random.split(key)
        first = supernet.weights(keys[1], config.width)
        return (data["search"], keys[0]), {"first": first, "steps": steps, "batch": config.batch}

    def search(key, data, mix):
        """Architecture parameters, with the mixing of that number."""
        arrays, sizes = arguments(key, data)
        alpha, _ = supernet.train(
            *arrays,
            **sizes,
            alpha=jnp.zeros((supernet.LAYERS, len(supernet.OPERATIONS))),
            mix=lambda alpha: jax.lax.switch(mix, list(MIXES.values()), alpha),
            weights_tx=descent(config.search_order),
            alpha_tx=optax.adam(config.alpha_learning_rate, b1=0.5),
        )
        return alpha

    def alone(key, data, order):
        """Test accuracies of the 25 architectures."""
        arrays, sizes = arguments(key, data)
        weights = supernet.train_alone(*arrays, **sizes, weights_tx=descent(order))
        return jax.vmap(partial(supernet.accuracy, part=data["test"]))(jnp.asarray(supernet.PATHS), weights)

    searches, trainings = (full_batch.each_seed(function, config.seeds) for function in (search, alone))
    alphas = {
        name: np.asarray(searches(data, np.full(config.seeds, number))) for number, name in enumerate(MIXES)
    }
    accuracies = {
        order: np.asarray(trainings(data, np.full(config.seeds, order, np.float32)))
        for order in config.orders
    }
    reference = accuracies[config.search_order]
    ranks = {name: rank(found, reference) for name, found in alphas.items()}

    mix = MIXES["softmax" if config.control else "Max-W"]
    mixed = np.asarray(mix(alphas["Max-W"]))
    measured = {
        "epochs below a tenth": below,
        "epochs below a tenth, cosine": cosine_below,
        "distance from the cosine at order 1.001": limit,
        "smallest weight of a best operation": mixed.max(-1).min(),
        "smallest weight": mixed.min(),
    }
    for name, values in ranks.items():
        measured[f"rank, {name}"] = values.mean()
        measured[f"rank by seed, {name}"] = values.tolist()
    alive = supernet.PATHS[:, :, supernet.OPERATIONS.index("zero")].sum(axis=1) == 0
    for own, values in accuracies.items():
        measured[f"accuracy of the 16 without zero, order {own:g}"] = values[:, alive].mean()
    return Claim(
        measured=measured,
        holds=bool(
            below >= TIMES * cosine_below
            and np.all(np.diff(curve) < 0)
            and np.isclose(curve[0], 1, rtol=1e-6)
            and curve[-1] == 0
            and limit < NEAR
            and np.all(mixed.max(-1) == 1)
            and mixed.min() > 0
        ),
        figure=draw(config, ranks),
    )


def rank(alphas, accuracies):
    """Rank of the architecture found among all, for each seed."""
    # PATHS counts in the base of the operations.
    places = np.argmax(alphas, axis=-1) @ (len(supernet.OPERATIONS) ** np.arange(supernet.LAYERS)[::-1])
    own = np.take_along_axis(accuracies, places[:, None], axis=1)
    return np.sum(accuracies > own, axis=1) + 0.5 * (np.sum(accuracies == own, axis=1) - 1)


def draw(config: Config, ranks) -> Figure:
    """The schedules, and where the architectures that were found stand."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    schedules, places = figure.subplots(1, 2)
    for order in sorted({1.0, 2.0, config.order}):
        schedules.plot(np.arange(1, EPOCHS + 1), annealed(order), label=f"order {order:g}")
    schedules.axhline(TENTH, color="gray", linewidth=0.5)
    schedules.set(xlabel="epoch", ylabel="share of the first value")
    schedules.legend(frameon=False)
    for position, values in enumerate(ranks.values()):
        places.plot(np.full(len(values), position), values, "o", alpha=0.6)
        places.plot(position, values.mean(), "_", color="black", markersize=20)
    places.set(ylabel="rank of 25, 0 is the best", xticks=range(len(ranks)), xticklabels=list(ranks))
    return figure


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
