"""Under the maximal update the kernel, and with it the sharpness, evolves alike at every width; under NTK it stays.

Two-layer tanh networks of 64, 256, 1024 and 4096 units on 40 points in 10 dimensions, y = sin(2 x_1) + x_2 / 2, by 300
steps of full-batch gradient descent with learning rate 0.5 γ²: with r the largest eigenvalue of γ² K, K the tangent
kernel, at the end over that at the start, under the maximal update r >= 2.5 at every width and its largest over its
smallest value from 256 units on is at most 1.3; under NTK parametrization |r - 1| <= 0.1 from 256 units on, less at
the largest width than at the smallest; in every seed. Control: the NTK parametrization in the place of the maximal
update.

Reported beside it: the slope of the best learning rate over the width on a log-log scale, 0 where it transfers, from
a scan over widths and learning rates; and a figure of γ² times the sharpness along training.

References:
    Noci, Meterez, Hofmann, Orvieto (2024), Why do learning rates transfer? Reconciling optimization and scaling limits
    for deep learning.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from experiments import claims, full_batch
from experiments.claims import Claim
from jaxdiv import diagnostics, linalg, nn

GROWS, ALIKE, STAYS = 2.5, 1.3, 0.1
EVERY = 20


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """Hidden units; the first does not enter the bounds on widths."""
    examples: int = 40
    """Points."""
    dimension: int = 10
    """Of the inputs."""
    learning_rate: float = 0.5
    """η_0."""
    steps: int = 300
    """Full-batch steps."""
    scan_widths: tuple[int, ...] = (64, 256, 1024)
    """Widths of the scan over learning rates."""
    scan_rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Learning rates of the scan."""
    scan_steps: int = 50
    """Its steps."""


SMOKE = Config(
    seeds=2,
    widths=(8, 16),
    examples=6,
    dimension=3,
    steps=20,
    scan_widths=(8, 16),
    scan_rates=(0.5,),
    scan_steps=2,
)


def problem(config: Config, seed: int):
    inputs = np.random.default_rng(seed).normal(size=(config.examples, config.dimension)).astype(np.float32)
    return {"inputs": inputs, "targets": np.sin(2 * inputs[:, :1]) + inputs[:, 1:2] / 2}


def run(config: Config) -> Claim:
    data = full_batch.stack(lambda seed: problem(config, seed), config.seeds)

    def make(width, parametrization, rngs):
        return nn.MuMLP(config.dimension, width, parametrization=parametrization, rngs=rngs)

    def training(model, scale, batch):
        """The loss and one step of gradient descent at a learning rate."""

        def loss(params, batch):
            outputs = model.apply(params, model.model_state, batch["inputs"], None)[0]
            return jnp.mean((outputs - batch["targets"]) ** 2) / 2

        def step(params, rate):
            return jax.tree.map(lambda w, g: w - rate * scale * g, params, jax.grad(loss)(params, batch))

        return loss, step

    def curves(width, parametrization):
        model = full_batch.models(partial(make, width, parametrization), config.seeds)
        scale = make(width, parametrization, nnx.Rngs(0)).learning_rate_scale

        def of_seed(key, params, batch):
            loss, step = training(model, scale, batch)

            def kernel_top(params):
                def outputs(p):
                    return model.apply(p, model.model_state, batch["inputs"], None)[0]

                matvec = linalg.gauss_newton_operator(outputs, lambda f: jnp.sum(f**2) / 2, params)
                start = jax.grad(loss)(params, batch)
                return scale * linalg.eigsh(matvec, start, k=1, num_steps=20).values[0]

            def block(params, _):
                top = diagnostics.hessian_eigenvalues(loss, params, batch, num_steps=15, key=key).values[0]
                params = jax.lax.fori_loop(0, EVERY, lambda _, p: step(p, config.learning_rate), params)
                return params, scale * top

            end, tops = jax.lax.scan(block, params, length=config.steps // EVERY)
            return kernel_top(end) / kernel_top(params), tops

        return map(np.asarray, full_batch.each_seed(of_seed, config.seeds)(model.params, data))

    def scan(parametrization):
        @partial(jax.jit, static_argnums=0)
        def final(width, rate, key):
            module = make(width, parametrization, nnx.Rngs(params=key))
            loss, step = training(model := nn.functional(module), module.learning_rate_scale, first)
            params = jax.lax.fori_loop(0, config.scan_steps, lambda _, p: step(p, rate), model.params)
            return loss(params, first)

        first = jax.tree.map(lambda x: x[0], data)
        return diagnostics.learning_rate_transfer(
            final, config.scan_widths, config.scan_rates, num_seeds=config.seeds, key=jax.random.key(1)
        )

    method = "ntp" if config.control else "mup"
    measured: dict[str, float | list[float]] = {}
    ratios: dict[str, list[np.ndarray]] = {"method": [], "ntp": []}
    figure_curves = {}
    for width in config.widths:
        for role, parametrization in (("method", method), ("ntp", "ntp")):
            ratio, tops = curves(width, parametrization)
            ratios[role].append(ratio)
            name = "NTK" if role == "ntp" else "maximal update"
            measured[f"growth of the kernel, {name}, width {width}"] = ratio.tolist()
            figure_curves[f"{name}, {width}"] = tops[0]
    for role, parametrization in (("maximal update", method), ("NTK", "ntp")):
        found = scan(parametrization)
        measured[f"drift of the best learning rate, {role}"] = found.drift()
        measured[f"regret at the largest width, {role}"] = float(found.regret()[-1])
    grown, still = np.array(ratios["method"]), np.abs(np.array(ratios["ntp"]) - 1)
    holds = (
        (grown >= GROWS).all()
        and (grown[1:].max(axis=0) <= ALIKE * grown[1:].min(axis=0)).all()
        and (still[1:] <= STAYS).all()
        and (still[-1] < still[0]).all()
    )
    figure = diagnostics.plots.sharpness_curves(figure_curves, EVERY, 2 / config.learning_rate)
    return Claim(measured, bool(holds), figure)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
