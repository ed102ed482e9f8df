"""At a large step size, batches grown by the norm test end nearer to the optimum, in a tenth of the steps.

Problem: streaming least squares with 10 inputs of variances from 1 to 0.1, noise of deviation 0.5 and the optimum
at 0, from a start at 1; 60000 examples in all, each used once; step size 1 and an initial accumulator of 0.01.
AdAdaGradNorm (one accumulator) and AdAdaGrad (one for each coordinate) grow the batches from 8 to at most 4096 by
the norm test with eta = 1 at every step. Against the same optimizer at a constant 8, as means over the seeds: the
squared gradient norm of the exact objective at the end is at most half, the steps are at most a tenth, and the
last batch size is at least 1000. Control: the batches stay at 8. At a step size of 0.1 the claim does not hold:
growth takes the place of a smaller step size, which the figures beside it show.

References:
    Lau, Liu, Kolar (2024), AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import claims
from experiments.claims import Claim
from jaxdiv import diagnostics, sampling, transforms


@dataclasses.dataclass(frozen=True)
class Config(claims.Config):
    """Sizes of the experiment."""

    seeds: int = 5
    """Number of seeds."""
    examples: int = 60_000
    """Examples used in all."""
    batch_size: int = 8
    """The first batch size, and the constant one."""
    max_batch_size: int = 4096
    """The largest batch size."""
    eta: float = 1.0
    """Tolerance of the norm test."""
    least_batch_size: int = 1000
    """What the batches grow to at least."""
    small_learning_rate: float = 0.1
    """The step size at which growth does not help."""


SMOKE = Config(seeds=1, examples=400, max_batch_size=64, least_batch_size=16)
VARIANCES = np.geomspace(1, 0.1, 10)
OPTIMIZERS = {
    "norm": transforms.scale_by_adagrad_norm(0.01),
    "coordinates": optax.scale_by_rss(0.01, eps=0.0),
}


def stream(config: Config, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(config.examples, 10)) * np.sqrt(VARIANCES)
    return {
        "inputs": inputs.astype(np.float32),
        "targets": 0.5 * rng.normal(size=config.examples).astype(np.float32),
    }


def run(config: Config) -> Claim:
    def trained(name: str, rate: float, grow: bool) -> np.ndarray:
        """Squared gradient norm, steps and last batch size, one row per seed."""
        tx = optax.chain(OPTIMIZERS[name], optax.scale_by_learning_rate(rate))

        def step(carry, batch):
            theta, state = carry
            gradients = (batch["inputs"] @ theta - batch["targets"])[:, None] * batch["inputs"]
            asked = sampling.requested_batch_size(diagnostics.gradient_noise(gradients), eta=config.eta)
            update, state = tx.update(jnp.mean(gradients, 0), state)
            return (theta + update, state), asked

        growing = jax.jit(step)
        constant = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0])
        out = []
        for seed in range(config.seeds):
            data = stream(config, seed)
            carry = jnp.ones(10), tx.init(jnp.ones(10))
            size, steps, used = config.batch_size, config.examples // config.batch_size, 0
            if grow:
                sampler = sampling.batch_controller(size, config.max_batch_size)
                dealt, steps = sampler.init(config.examples, jax.random.key(seed)), 0
                while used + int(dealt.size) <= config.examples:
                    index, dealt = sampler.draw(dealt)
                    carry, asked = growing(carry, {key: value[index] for key, value in data.items()})
                    dealt = sampler.record(dealt, index, np.full(len(index), asked))
                    used, steps, size = used + len(index), steps + 1, len(index)
            else:
                batches = {
                    key: value[: steps * size].reshape(steps, size, *value.shape[1:])
                    for key, value in data.items()
                }
                carry = constant(carry, batches)
            out.append([np.sum((VARIANCES * np.asarray(carry[0])) ** 2), steps, size])
        return np.array(out)

    measured, holds = {}, True
    for name in OPTIMIZERS:
        ours = trained(name, 1.0, grow=not config.control)
        plain = trained(name, 1.0, grow=False)
        measured |= {
            f"squared gradient norm, {name}": ours[:, 0].tolist(),
            f"squared gradient norm, {name}, constant": plain[:, 0].tolist(),
            f"steps, {name}": ours[:, 1].tolist(),
            f"last batch size, {name}": ours[:, 2].tolist(),
        }
        ours, plain = ours.mean(0), plain.mean(0)
        holds &= bool(
            ours[0] <= 0.5 * plain[0] and ours[1] <= 0.1 * plain[1] and ours[2] >= config.least_batch_size
        )
    for grow in (True, False):
        small = trained("norm", config.small_learning_rate, grow)[:, 0]
        measured[f"squared gradient norm, norm, small step{'' if grow else ', constant'}"] = small.mean()
    return Claim(measured=measured, holds=holds)


def main() -> None:
    claims.show(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
