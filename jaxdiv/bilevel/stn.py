"""Self-tuning networks: weights that answer the hyperparameters, trained and tuned in turn.

The inner variable φ parametrizes a best response w_φ(λ) ≈ argmin_w L_T(w, λ) near the current hyperparameters λ,
which are unconstrained. With σ = softplus(ρ) and a perturbation ε for every example,

    φ descends    E_ε L_T(w_φ(λ + ε), λ + ε),                    ε ~ N(0, diag σ²),    T_train times,
    λ, ρ descend  E_ε L_V(w_φ(λ + ε)) − τ H[N(0, diag σ²)],      H = Σ_j log(σ_j √(2πe)),    T_valid times.

The scale σ is that at which the response fits: a large one spoils L_V, a tiny one leaves ∂w_φ/∂λ undetermined,
and the entropy holds against it. The gradient of λ passes through w_φ alone, never through L_T, so that L_T need
not be differentiable in λ: discrete hyperparameters, dropout and augmentation are tuned alike.

References:
    MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3 and algorithm 1; the authors'
    implementation, https://github.com/asteroidhouse/self-tuning-networks, from which the defaults are.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.bilevel.algorithm import Algorithm, Draws, Info, algorithm, apply, report
from jaxdiv.bilevel.hyperparameter_space import inverse_softplus
from jaxdiv.bilevel.problem import Losses, Problem
from jaxdiv.bilevel.sampler import Sampler, count, full_batch
from jaxdiv.core import checks
from jaxdiv.core.types import Key, Numeric, Scalar


class StnState(NamedTuple):
    """What self-tuning networks remember.

    Attributes:
        inner_tx: State of the transform of φ.
        outer_tx: State of the transform of the pair (λ, ρ), or (λ,) if scales are not tuned.
        rho: ρ, like λ; the scales are its softplus.
    """

    inner_tx: PyTree
    outer_tx: PyTree
    rho: PyTree


def _perturbed(lam: PyTree, rho: PyTree, rows: int, per_example: Any, key: Key) -> PyTree:
    """λ + ε, one row per example; coordinates with one ε for the batch repeat the first row's."""

    def one(x: Array, r: Array, key: Key) -> Array:
        noise = jax.random.normal(key, (rows, *x.shape), x.dtype)
        return x + jax.nn.softplus(r) * jnp.where(per_example, noise, noise[:1])

    leaves, tree = jax.tree.flatten(lam)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(one, lam, rho, keys)


def _entropy(rho: PyTree) -> Scalar:
    def one(r: Array) -> Array:
        # log softplus(r) tends to r, which it equals in floating point long before softplus(r) underflows.
        log_scale = jnp.log(jax.nn.softplus(jnp.maximum(r, -40.0))) + jnp.minimum(r + 40.0, 0.0)
        return jnp.sum(log_scale + 0.5 * math.log(2 * math.pi * math.e))

    return optax.tree.sum(jax.tree.map(one, rho))


def stn(
    problem: Problem,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    *,
    sigma: Float[Array, "..."] | float = 0.5,
    tau: Numeric = 1e-5,
    tune_scales: bool = True,
    inner_steps: int = 2,
    outer_steps: int = 1,
    warmup: Numeric = 0,
    per_example: bool | Bool[np.ndarray, "..."] = True,
    sampler: Sampler = full_batch,
) -> Algorithm:
    """Tunes hyperparameters online, while the weights are trained once.

    Both losses are called with a row of hyperparameters for each example: every leaf of λ has the batch as new first
    axis. `nn.HyperDense` and `nn.HyperConv` are layers that take such rows, and `hparam_space` gives the values that
    they stand for.

    Args:
        problem: Its inner variable is φ, its outer one λ, unconstrained. The inner loss is L_T, regularized as λ
            says. The outer loss is L_V, in which λ must enter by the weights alone: without dropout, weight decay or
            augmentation.
        inner_tx: Moves φ; the paper's is ``optax.sgd(0.01, momentum=0.9)``.
        outer_tx: Moves λ and ρ; the paper's is ``optax.adam(3e-3)``.
        sigma: Standard deviation of the perturbations at the start, > 0, or >= 0 if it is not tuned; a number, or an
            array that broadcasts against λ. Raise it if λ does not move, lower it if the response is nonlinear over
            that distance.
        tau: Weight of the entropy. The authors' 1e-5 is that of large networks; on small problems the scales then
            shrink until λ has no gradient to go by, and 1e-3 or fixed scales do better.
        tune_scales: Whether ρ is tuned. Else σ stays, and λ moves by L_V at ε = 0.
        inner_steps: T_train, updates of φ a step.
        outer_steps: T_valid, updates of λ and ρ a step.
        warmup: Steps before the first update of λ and ρ; the authors' code takes 5 epochs.
        per_example: Whether each example has its own ε; False for one per batch. An array that broadcasts against λ
            says it for each hyperparameter.
        sampler: Draws the examples of each update; all by default.

    Returns:
        ``(init, step)``; a step takes `inner_steps` + `outer_steps` gradients. To evaluate, use λ itself, ε = 0.

    Raises:
        ValueError: If an option is out of range. By `step`, if the data of a loss have no rows.

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), algorithm 1.

    Example:
        Ridge regression with the response w_φ(λ) = φ_0 + λ φ_1:

        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxdiv import bilevel
        >>> def squares(lam, phi, batch):
        ...     x, t = batch
        ...     w = phi["constant"] + lam[:, None] * phi["slope"]
        ...     return jnp.mean((jnp.sum(x * w, -1) - t) ** 2), jnp.mean(jnp.exp(lam) * jnp.sum(w**2, -1))
        >>> problem = bilevel.problem(
        ...     lambda lam, phi, batch: sum(squares(lam, phi, batch)),
        ...     lambda lam, phi, batch: squares(lam, phi, batch)[0],
        ... )
        >>> init, step = bilevel.stn(problem, optax.adam(0.03), optax.adam(0.03))
        >>> x = jax.random.normal(jax.random.key(0), (20, 3))
        >>> data = bilevel.Data(inner=(x[:10], x[:10].sum(1)), outer=(x[10:], x[10:].sum(1)))
        >>> state = init(jnp.array(0.0), {"constant": jnp.zeros(3), "slope": jnp.zeros(3)}, data, jax.random.key(1))
        >>> state, info = jax.lax.scan(lambda s, _: step(s, data), state, length=300)
        >>> bool(state.outer < -1)  # Without noise, the less penalty the better.
        True
    """
    checks.in_range("sigma", sigma, 0.0, np.inf, open_low=tune_scales, open_high=True)
    checks.in_range("tau", tau, 0.0)
    checks.in_range("inner_steps", inner_steps, 1)
    checks.in_range("outer_steps", outer_steps, 1)
    checks.in_range("warmup", warmup, 0)

    def noise_key(draws: Draws, i: Int[Array, ""]) -> Key:
        # Next to the sampler's two keys and the loss's own.
        return jax.random.fold_in(jax.random.fold_in(draws.key, i), 3)

    def start(draws: Draws, lam: PyTree, phi: PyTree) -> StnState:
        rho = jax.tree.map(lambda x: jnp.broadcast_to(inverse_softplus(sigma), x.shape).astype(x.dtype), lam)
        return StnState(inner_tx.init(phi), outer_tx.init((lam, rho) if tune_scales else (lam,)), rho)

    def advance(
        draws: Draws, lam: PyTree, phi: PyTree, extra: StnState, step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, StnState, Info]:
        def train(carry: tuple[PyTree, PyTree], i: Int[Array, ""]) -> tuple[tuple[PyTree, PyTree], None]:
            phi, tx_state = carry
            losses = draws(i)
            rows = _perturbed(lam, extra.rho, count(losses.batch.inner), per_example, noise_key(draws, i))
            return apply(inner_tx, losses.inner_gradient(rows, phi), tx_state, phi), None

        (phi, inner_state), _ = jax.lax.scan(train, (phi, extra.inner_tx), jnp.arange(inner_steps))

        def response_loss(tuned: tuple[PyTree, ...], losses: Losses, key: Key) -> tuple[Scalar, Scalar]:
            rows = count(losses.batch.outer)
            if tune_scales:
                lam, rho = tuned
                value = losses.outer(_perturbed(lam, rho, rows, per_example, key), phi)
                return value - tau * _entropy(rho), value
            (lam,) = tuned
            value = losses.outer(jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape)), lam), phi)
            return value, value

        def tune(carry: tuple[Any, PyTree], i: Int[Array, ""]) -> tuple[tuple[Any, PyTree], Any]:
            tuned, tx_state = carry
            gradient, value = jax.grad(response_loss, has_aux=True)(tuned, draws(i), noise_key(draws, i))
            return apply(outer_tx, gradient, tx_state, tuned), (value, gradient[0])

        before = ((lam, extra.rho) if tune_scales else (lam,), extra.outer_tx)
        after, seen = jax.lax.scan(tune, before, inner_steps + jnp.arange(outer_steps))
        (lam, *scales), outer_state = optax.tree.where(step >= warmup, after, before)
        rho = scales[0] if tune_scales else extra.rho
        value, direction = jax.tree.map(lambda x: x[-1], seen)
        info = report(value, direction, gradients=inner_steps + outer_steps)
        return lam, phi, StnState(inner_state, outer_state, rho), info

    return algorithm(problem, sampler, start, advance)
