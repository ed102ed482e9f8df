"""A small search space on the digits: two mixed layers of five operations each, hence 25 architectures.

A tanh stem 64-32 is followed by two layers that sum zero, skip, linear-ReLU, linear-tanh and linear-sin of their
input, each with its weight, and by a linear head. An architecture is one operation in each layer: a one-hot weight.
Half of the training digits train the operations, the other half the architecture.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiv import bilevel, diagnostics, losses, objectives
from jaxdiv.testing.data import digits

LAYERS, CLASSES = 2, 10
ACTIVATIONS = (jax.nn.relu, jnp.tanh, jnp.sin)
OPERATIONS = ("zero", "skip", "relu", "tanh", "sin")
PATHS = np.stack([np.eye(len(OPERATIONS))[list(path)] for path in itertools.product(range(5), repeat=LAYERS)])


def data(seed: int, examples: int):
    """Training and validation digits, as many of each, and the rest for the test."""
    split = digits(seed, train=2 * examples)
    halves = [{name: rows[part::2] for name, rows in split["train"].items()} for part in (0, 1)]
    return {"search": bilevel.Data(*halves), "test": split["test"]}


def weights(key, width: int):
    """First weights of all operations."""
    shapes = {
        "stem": (64, width),
        "operations": (LAYERS, len(ACTIVATIONS), width, width),
        "head": (width, CLASSES),
    }
    initial = jax.nn.initializers.lecun_normal(batch_axis=(0, 1)), jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"kernel": initial[len(shape) < 4](k, shape), "bias": jnp.zeros((*shape[:-2], shape[-1]))}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def logits(mixture, weights, inputs):
    """The network whose layers sum their operations by `mixture` [2, 5]."""
    x = jnp.tanh(inputs @ weights["stem"]["kernel"] + weights["stem"]["bias"])
    for mix, kernel, bias in zip(
        mixture, *(weights["operations"][k] for k in ("kernel", "bias")), strict=True
    ):
        learned = jnp.einsum("bi,oij->obj", x, kernel) + bias[:, None]
        outputs = (jnp.zeros_like(x), x, *(f(y) for f, y in zip(ACTIVATIONS, learned, strict=True)))
        x = jnp.einsum("o,obj->bj", mix, jnp.stack(outputs))
    return x @ weights["head"]["kernel"] + weights["head"]["bias"]


def model(mix):
    """The supernet as a model of the pair of architecture parameters and weights."""
    return lambda pair, state, inputs, key: (logits(mix(pair[0]), pair[1], inputs), state)


def train(data, key, *, first, alpha, mix, weights_tx, alpha_tx, steps, batch, links=()):
    """First-order architecture search from given weights and architecture.

    Args:
        data: `bilevel.Data` of the training and the validation part.
        key: Draws the batches.
        first: First weights.
        alpha: First architecture parameters.
        mix: From these to weights of the operations.
        weights_tx: Moves the weights.
        alpha_tx: Moves the architecture parameters.
        steps: Number of steps, each with a batch of either part.
        batch: Size of both batches.
        links: What the training loss has beside the cross entropy.

    Returns:
        Architecture parameters and weights.
    """
    both = objectives.forward(model(mix)), objectives.loss(losses.cross_entropy, name="ce")
    problem = bilevel.problem(
        objectives.chain(*both, *links, objectives.mean()), objectives.chain(*both, objectives.mean())
    )
    init, step = bilevel.make_step(
        problem,
        bilevel.first_order(),
        weights_tx,
        alpha_tx,
        inner_steps=1,
        sampler=bilevel.minibatches(inner=batch, outer=batch),
    )
    state = init(alpha, first, data, key)
    state, _ = jax.lax.scan(lambda state, _: (step(state, data)[0], None), state, length=steps)
    return state.outer, state.inner


def train_alone(data, key, *, first, weights_tx, steps, batch):
    """Weights of each of the 25 architectures, trained by itself: leaves [25, ...]."""
    own = functools.partial(
        train,
        data,
        key,
        first=first,
        mix=lambda alpha: alpha,
        weights_tx=weights_tx,
        alpha_tx=optax.set_to_zero(),
        steps=steps,
        batch=batch,
    )
    return jax.vmap(lambda path: own(alpha=path)[1])(jnp.asarray(PATHS, jnp.float32))


def discrete(alpha):
    """The architecture that takes the best operation of each layer."""
    return jax.nn.one_hot(jnp.argmax(alpha, axis=-1), len(OPERATIONS))


def accuracy(mixture, weights, part):
    return diagnostics.accuracy(logits(mixture, weights, part["inputs"]), part["targets"])
