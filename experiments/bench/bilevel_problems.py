"""The four standard problems of bilevel benchmarks, on data that need no download.

- quadratics: random quadratics over examples.
- logistic: binary logistic regression (breast cancer data), a ridge exp(x_j) for each feature.
- multiclass: softmax regression (digits), a ridge exp(x_c) for each class.
- cleaning: softmax regression (digits) on training labels of which a share is wrong; the outer variable weighs each
  training example by sigmoid(x_i).

The outer loss is that of clean validation data.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, section 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiv import bilevel
from jaxdiv.testing.data import digits

# Digits to train on and to validate on; minibatches divide both, as tables of variance reduction want it.
SIZES = (1024, 256)


class Case(NamedTuple):
    """A problem with what a benchmark of it needs.

    Attributes:
        name: For tables.
        problem: The problem.
        data: Its data.
        outer: First x.
        inner: First y.
        batch: Examples of each loss in a minibatch.
        curvature: About the largest eigenvalue of the inner Hessian at the first variables.
        outer_rate: A first guess of the outer learning rate, to be scaled.
        value: ``x -> Φ(x)``, the inner problem solved on all data.
        test_error: ``y -> share of wrong test labels``, or None.
    """

    name: str
    problem: bilevel.Problem
    data: bilevel.Data
    outer: Any
    inner: Any
    batch: int
    curvature: float
    outer_rate: float
    value: Callable[[Any], jax.Array]
    test_error: Callable[[Any], jax.Array] | None


def quadratics(seed: int, *, examples: int = 1024, inner: int = 100, outer: int = 10) -> Case:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(examples, inner, 1)).astype(np.float32)
    mixed = rng.normal(size=(inner, outer)).astype(np.float32) / np.sqrt(inner)
    data = bilevel.Data(
        inner={"root": root[..., 0], "linear": rng.normal(size=(examples, inner)).astype(np.float32)},
        outer={"target": (1 + rng.normal(size=(examples, inner))).astype(np.float32)},
    )

    def inner_loss(x, y, batch):
        curved = 0.5 * jnp.mean((batch["root"] @ y) ** 2) + 0.05 * y @ y
        return curved - y @ (mixed @ x) - jnp.mean(batch["linear"] @ y)

    def outer_loss(x, y, batch):
        return 0.5 * jnp.mean(jnp.sum((y - batch["target"]) ** 2, -1)) / inner + 0.005 * x @ x

    return _case("quadratics", inner_loss, outer_loss, data, jnp.zeros(outer), jnp.zeros(inner), 64, 30.0)


def logistic(seed: int) -> Case:
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs = ((features - features.mean(0)) / features.std(0)).astype(np.float32)[order]
    targets = (2 * labels - 1).astype(np.float32)[order]
    parts = (slice(0, 256), slice(256, 384))
    data = bilevel.Data(*({"inputs": inputs[part], "targets": targets[part]} for part in parts))

    def loss(y, batch):
        return jnp.mean(jax.nn.softplus(-batch["targets"] * (batch["inputs"] @ y)))

    def inner_loss(x, y, batch):
        return loss(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2)

    def outer_loss(x, y, batch):
        return loss(y, batch)

    def test_error(y):
        return jnp.mean(inputs[384:] @ y * targets[384:] <= 0)

    first = jnp.full(features.shape[1], -2.0)
    return _case("logistic", inner_loss, outer_loss, data, first, jnp.zeros_like(first), 64, 10.0, test_error)


def _softmax_loss(weights, batch):
    logits = batch["inputs"] @ weights
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def _splits(seed: int, wrong: float) -> tuple[Any, Any, Any]:
    n, m = SIZES
    split = digits(seed, train=n + m)
    train, validation = (
        {k: v[part] for k, v in split["train"].items()} for part in (slice(n), slice(n, n + m))
    )
    noisy = digits(seed, train=n + m, label_noise=wrong)["train"]["targets"][:n]
    return train | {"targets": noisy}, validation, split["test"]


def multiclass(seed: int) -> Case:
    train, validation, test = _splits(seed, 0.0)

    def inner_loss(x, y, batch):
        return jnp.mean(_softmax_loss(y, batch)) + 0.5 * jnp.sum(jnp.exp(x) * jnp.sum(y**2, 0))

    def outer_loss(x, y, batch):
        return jnp.mean(_softmax_loss(y, batch))

    data = bilevel.Data(train, validation)
    first, weights = jnp.full(10, -2.0), jnp.zeros((64, 10))
    return _case("multiclass", inner_loss, outer_loss, data, first, weights, 64, 10.0, partial(_wrong, test))


def cleaning(seed: int, wrong: float) -> Case:
    train, validation, test = _splits(seed, wrong)
    train = train | {"index": np.arange(SIZES[0], dtype=np.int32)}

    def inner_loss(x, y, batch):
        weights = jax.nn.sigmoid(x[batch["index"]])
        return jnp.mean(weights * _softmax_loss(y, batch)) + 0.5 * 0.01 * jnp.sum(y**2)

    def outer_loss(x, y, batch):
        return jnp.mean(_softmax_loss(y, batch))

    data = bilevel.Data(train, validation)
    first, weights = jnp.zeros(SIZES[0]), jnp.zeros((64, 10))
    name = f"cleaning {wrong:g}"
    return _case(name, inner_loss, outer_loss, data, first, weights, 64, 300.0, partial(_wrong, test))


CASES: dict[str, Callable[[int], Case]] = {
    "quadratics": quadratics,
    "logistic": logistic,
    "multiclass": multiclass,
    "cleaning-0.5": partial(cleaning, wrong=0.5),
    "cleaning-0.7": partial(cleaning, wrong=0.7),
    "cleaning-0.9": partial(cleaning, wrong=0.9),
}


def _wrong(test, weights):
    return jnp.mean(jnp.argmax(test["inputs"] @ weights, -1) != test["targets"])


def _case(name, inner_loss, outer_loss, data, outer, inner, batch, outer_rate, test_error=None) -> Case:
    data = jax.tree.map(jnp.asarray, data)

    @jax.jit
    def value(x):
        return outer_loss(x, solved(lambda y: inner_loss(x, y, data.inner), inner), data.outer)

    def product(v):
        return jax.jvp(jax.grad(lambda y: inner_loss(outer, y, data.inner)), (inner,), (v,))[1]

    @jax.jit
    def largest(v):
        def step(v, _):
            v = product(v)
            return v / jnp.linalg.norm(v), None

        v = jax.lax.scan(step, v, length=30)[0]
        return jnp.vdot(v, product(v))

    curvature = float(largest(jnp.asarray(np.random.default_rng(0).normal(size=inner.shape), jnp.float32)))
    problem = bilevel.problem(inner_loss, outer_loss)
    return Case(name, problem, data, outer, inner, batch, curvature, outer_rate, value, test_error)


def solved(loss, start, steps=200):
    """The minimizer of a smooth strongly convex loss by L-BFGS."""
    tx = optax.lbfgs()

    def step(carry, _):
        y, state = carry
        value, gradient = optax.value_and_grad_from_state(loss)(y, state=state)
        updates, state = tx.update(gradient, state, y, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(y, updates), state), None

    return jax.lax.scan(step, (start, tx.init(start)), length=steps)[0][0]
