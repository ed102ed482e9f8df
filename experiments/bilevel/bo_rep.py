"""BO-REP's normalized steps reach a stationary point of an outer loss whose curvature grows like its gradient.

G = ½ yᵀ H y − xᵀ y with H = A Aᵀ / 5 + I, A 5×5 Gaussian, and F = Σ cosh(2 y_i), from x = 4, where |∇Φ| is above 1e3,
with Gaussian noise of deviation 0.1 on all gradients: 3000 steps of length 0.02, momentum 0.9, adjoint step 0.05, inner
step 0.1, three inner steps every second step, end with |∇Φ| ≤ 2, and with lengths 0.2 / √(k + 1) below 0.5. The same
loop without the normalization, for which AmIGO with momentum stands, diverges with the steps 0.02 and 2e-3. Every step
of x is as long as it should be, and without noise, with one inner step in each and a tiny length, the direction is that
of the exact hypergradient: cosine above 0.999. Control: AmIGO with momentum in place of BO-REP.

Reported beside it: data cleaning. A softmax regression on digits, 40 % of whose training labels are wrong, learns a
weight for each example from clean validation digits; its test accuracy beside that of equal weights, how often a wrong
label weighs less than a right one, and both for AmIGO with momentum, the best of four steps by validation loss.

References:
    Hao, Gong, Liu (2024), Bilevel optimization under unbounded smoothness: a new algorithm and convergence analysis.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import bilevel, losses
from jaxdiv.testing.data import digits

CONSTANT, DECAYING, COSINE, LENGTH_ERROR = 2.0, 0.5, 0.999, 1e-6
DIVERGED = 1e30
NO_DATA = bilevel.Data()


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    steps: int = 3000
    """Steps of each run."""
    length: float = 0.02
    """Length of a step of x."""
    decaying: float = 0.2
    """Length of the first one where it falls as the root of the step."""
    plain: tuple[float, ...] = (0.02, 2e-3)
    """Steps along the gradient that is not normalized."""
    noise: float = 0.1
    """Deviation of the gradients' noise."""
    examples: int = 400
    """Training digits."""
    validation: int = 100
    """Clean ones."""
    label_noise: float = 0.4
    """Share of the training labels that are wrong."""
    cleaning_steps: int = 1000
    """Steps of data cleaning; 0 leaves it out."""
    batch_size: int = 100
    """Digits in a batch."""
    cleaning_length: float = 0.05
    """Length of their steps, the authors' own."""
    cleaning_plain: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    """Steps along the gradient that is not normalized."""


SMOKE = Config(seeds=2, steps=30, cleaning_steps=0)


def cosh(noise):
    """The problem; its data are H."""

    def inner(x, y, hessian, key):
        return 0.5 * y @ hessian @ y - x @ y + noise * jax.random.normal(key, y.shape, y.dtype) @ y

    def outer(x, y, hessian, key):
        of_x, of_y = noise * jax.random.normal(key, (2, *y.shape), y.dtype)
        return jnp.sum(jnp.cosh(2 * y)) + of_x @ x + of_y @ y

    return bilevel.problem(inner, outer)


def hessians(seeds):
    roots = [np.random.default_rng(seed).normal(size=(5, 5)) for seed in range(seeds)]
    return jnp.stack([root @ root.T / 5 + np.eye(5) for root in roots])


def hypergradient(hessian, x):
    return jnp.linalg.solve(hessian, 2 * jnp.sinh(2 * jnp.linalg.solve(hessian, x)))


def bo_rep(problem, length, **options):
    options = {"momentum": 0.9, "period": 2, "inner_steps": 3} | options
    return bilevel.bo_rep(problem, optax.sgd(0.1), optax.sgd(length), adjoint_tx=optax.sgd(0.05), **options)


def with_momentum(step_size):
    """What BO-REP does to the gradient but for the normalization."""
    return optax.chain(optax.ema(0.9, debias=False), optax.sgd(step_size))


def amigo(problem, step_size):
    """The same loop without the normalization; y moves before every step."""
    return bilevel.amigo(
        problem,
        optax.sgd(0.1),
        with_momentum(step_size),
        inner_steps=3,
        adjoint_steps=1,
        adjoint_tx=optax.sgd(0.05),
    )


def end(config, make, first, decay, *, x=4.0):
    """By seed: the norm of ∇Φ, the last step's cosine with it, and the largest relative error of a step's length.

    Steps have the length ``first / (k + 1)^decay``.
    """

    def one(hessian, key):
        init, step = make(lambda k: first / (k + 1.0) ** decay)
        data = bilevel.Data(hessian, hessian)

        def body(state, _):
            new, _ = step(state, data)
            length = jnp.linalg.norm(new.outer - state.outer)
            return new, length * (state.step + 1.0) ** decay / first

        state, lengths = jax.lax.scan(
            body, init(jnp.full(5, x), jnp.zeros(5), data, key), length=config.steps
        )
        exact, moved = hypergradient(hessian, state.outer), state.outer - step(state, data)[0].outer
        norm = jnp.linalg.norm(exact)
        cosine = moved @ exact / norm / jnp.linalg.norm(moved)
        # What has diverged has no number.
        return jnp.where(norm < DIVERGED, norm, DIVERGED), cosine, jnp.max(jnp.abs(lengths - 1))

    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    return jax.vmap(one)(hessians(config.seeds), keys)


def cleaning_data(config, seed):
    """Digits with wrong labels, clean ones for validation, which labels are wrong, and test digits."""
    n = config.examples
    split = digits(seed, train=n + config.validation)
    images, labels = split["train"]["inputs"], split["train"]["targets"]
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < config.label_noise
    noisy = np.where(wrong, (labels[:n] + rng.integers(1, 10, n)) % 10, labels[:n])
    data = bilevel.Data(
        inner={"inputs": images[:n], "targets": noisy, "number": np.arange(n)},
        outer={"inputs": images[n:], "targets": labels[n:]},
    )
    return data, wrong, split["test"]


def cleaning():
    """The problem: x holds the logits of the examples' weights."""

    def inner(x, w, batch):
        risks = losses.cross_entropy(batch["inputs"] @ w, batch["targets"])
        return jnp.mean(jax.nn.sigmoid(x[batch["number"]]) * risks) + 1e-3 * jnp.sum(w**2)

    def outer(x, w, batch):
        return jnp.mean(losses.cross_entropy(batch["inputs"] @ w, batch["targets"]))

    return bilevel.problem(inner, outer)


def clean(config, make, step_sizes):
    """By step size and seed: validation loss, test accuracy, and how often a wrong label weighs less than a right one.

    The regression is trained anew with the weights that were learned.
    """
    problem = cleaning()
    sampler = bilevel.minibatches(inner=config.batch_size, outer=config.batch_size)

    def one(step_size, seed, data, wrong, test):
        init, step = make(problem, step_size, sampler)
        state = init(jnp.zeros(config.examples), jnp.zeros((64, 10)), data, jax.random.key(seed))
        state = jax.lax.fori_loop(0, config.cleaning_steps, lambda _, s: step(s, data)[0], state)
        all_digits = bilevel.Losses(problem, state.memory, data, state.key)

        def descend(_, w):
            return w - 0.5 * all_digits.inner_gradient(state.outer, w)

        w = jax.lax.fori_loop(0, 1000, descend, jnp.zeros((64, 10)))
        below = (state.outer[:, None] < state.outer) & wrong[:, None] & ~wrong
        accuracy = jnp.mean(jnp.argmax(test["inputs"] @ w, -1) == test["targets"])
        return (
            all_digits.outer(state.outer, w),
            accuracy,
            jnp.sum(below) / (jnp.sum(wrong) * jnp.sum(~wrong)),
        )

    of_seeds = full_batch.stack(lambda seed: (seed, *cleaning_data(config, seed)), config.seeds)
    lanes = jax.vmap(jax.vmap(one, (None, 0, 0, 0, 0)), (0, None, None, None, None))
    return map(np.asarray, jax.jit(lanes)(jnp.asarray(step_sizes), *of_seeds))


def normalized(problem, length, sampler):
    return bilevel.bo_rep(
        problem, optax.sgd(0.2), optax.sgd(length), adjoint_tx=optax.sgd(0.1), inner_steps=10, sampler=sampler
    )


def plain(problem, step_size, sampler):
    return bilevel.amigo(
        problem,
        optax.sgd(0.2),
        with_momentum(step_size),
        adjoint_tx=optax.sgd(0.1),
        inner_steps=5,
        adjoint_steps=1,
        sampler=sampler,
    )


def run(config: Config) -> Claim:
    with jax.enable_x64(True):
        return _run(config)


def _run(config: Config) -> Claim:
    measured = {}
    noisy, make = cosh(config.noise), amigo if config.control else bo_rep
    first = np.linalg.norm([hypergradient(own, jnp.full(5, 4.0)) for own in hessians(config.seeds)], axis=1)
    lanes = jax.jit(jax.vmap(lambda a, decay: end(config, lambda step: make(noisy, step), a, decay)))
    norms, _, errors = lanes(jnp.asarray([config.length, config.decaying]), jnp.asarray([0.0, 0.5]))
    measured["norm at the start"] = first
    measured["norm, constant length"], measured["norm, decaying length"] = norms
    holds = np.all(norms[0] <= CONSTANT) and np.all(norms[1] < DECAYING)
    if not config.control:
        measured["largest relative error of a length"] = errors.max(0)
        holds &= np.all(errors < LENGTH_ERROR)
        lanes = jax.jit(jax.vmap(lambda a: end(config, lambda step: amigo(noisy, step), a, 0.0)))
        for step_size, norm in zip(config.plain, lanes(jnp.asarray(config.plain))[0], strict=True):
            measured[f"norm, not normalized, step {step_size:g}"] = norm
            holds &= np.all(norm >= first)
        exact = jax.jit(
            lambda: end(
                config, lambda step: bo_rep(cosh(0.0), step, period=1, inner_steps=1), 1e-9, 0.0, x=0.5
            )
        )
        measured["cosine with the exact hypergradient"] = exact()[1]
        holds &= np.all(measured["cosine with the exact hypergradient"] > COSINE)

        own = {
            "equal weights": (normalized, (0.0,)),
            "BO-REP": (normalized, (config.cleaning_length,)),
            "AmIGO": (plain, config.cleaning_plain),
        }
        for name, (make, step_sizes) in own.items() if config.cleaning_steps else ():
            value, accuracy, below = clean(config, make, step_sizes)
            best = np.argmin(np.nan_to_num(value, nan=np.inf), 0), np.arange(config.seeds)
            measured[f"cleaning, {name}: test accuracy"] = accuracy[best]
            if name != "equal weights":
                measured[f"cleaning, {name}: wrong labels below right ones"] = below[best]
    return Claim({name: np.asarray(values).tolist() for name, values in measured.items()}, bool(holds))


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
